"""Event log of a run: metrics in ``progress.csv``, notes in ``job.json``."""

import time
from collections.abc import Generator
from contextlib import suppress
from functools import partial
from typing import TypeVar

from cryoeq.domain.events import Event, Note, Progress
from cryoeq.errors import OutputError, Terminated
from cryoeq.outputs.progress_file import ProgressRow, read_progress, write_progress
from cryoeq.outputs.run_folder import RunFolder

Result = TypeVar("Result")

PROGRESS_FILE = "progress.csv"


def record_events(events: Generator[Event, None, Result], run: RunFolder) -> Generator[Event, None, Result]:
    """Pass on the events of a pipeline, and write them to the run folder when the pipeline ends, however it ends.

    Signals that are thrown into the generator reach the pipeline, which alone knows what to save.

    Args:
        events: the pipeline.
        run: the run folder; metrics and notes of a run that is resumed are kept.
    """
    rows, notes = read_progress(run.path(PROGRESS_FILE)), list(run.notes())
    started_s = time.monotonic() - (rows[-1].seconds if rows else 0.0)
    advance = partial(next, events)
    try:
        while True:
            try:
                event = advance()
            except StopIteration as end:
                result: Result = end.value
                return result
            if isinstance(event, Note):
                notes.append(event)
            elif isinstance(event, Progress) and event.metrics:
                seconds = time.monotonic() - started_s
                done, total = event.iteration or (event.done, event.total)
                rows.append(ProgressRow(seconds, event.stage, done, total, event.metrics))
            advance = partial(next, events)
            try:
                yield event
            except (KeyboardInterrupt, Terminated, GeneratorExit) as stop:
                advance = partial(events.throw, stop)
    finally:
        with suppress(OutputError):  # a full disk is reported by what the run itself writes
            write_progress(run.path(PROGRESS_FILE), rows)
            run.keep_notes(list(dict.fromkeys(notes)))  # a run that is resumed repeats many of them
