"""The event log of a run: metrics and notes are kept, however it ends, and signals reach the pipeline."""

from collections.abc import Generator
from pathlib import Path

import pytest

from cryoeq.domain.events import Event, Note, Progress
from cryoeq.errors import DivergedError, Terminated
from cryoeq.outputs.progress_file import read_progress
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.reconstruct.event_log import record_events

EVENTS = [Note("begun"), Progress("training", 1, 2, {"loss": 0.5}), Progress("writing", 1, 1), Note("odd", "warning")]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", command=["cryoeq"], settings={})


def pipeline(signals: list[str], *, fails: bool = False) -> Generator[Event, None, int]:
    try:
        yield from EVENTS
    except (KeyboardInterrupt, Terminated) as stop:
        signals.append(type(stop).__name__)
        raise
    if fails:
        raise DivergedError("nothing was found")
    return 42


def metrics(run: RunFolder) -> list[tuple[str, dict[str, float]]]:
    return [(row.stage, dict(row.metrics)) for row in read_progress(run.path("progress.csv"))]


def test_all_events_are_passed_on_and_kept(run: RunFolder) -> None:
    results: list[int] = []

    def caller() -> Generator[Event, None, None]:
        results.append((yield from record_events(pipeline([]), run)))

    assert list(caller()) == EVENTS
    assert results == [42]
    assert metrics(run) == [("training", {"loss": 0.5})]
    assert run.notes() == (EVENTS[0], EVENTS[3])


def test_a_failure_leaves_the_log(run: RunFolder) -> None:
    with pytest.raises(DivergedError):
        list(record_events(pipeline([], fails=True), run))
    assert metrics(run) == [("training", {"loss": 0.5})]
    assert run.notes() == (EVENTS[0], EVENTS[3])


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Terminated])
def test_signals_reach_the_pipeline(run: RunFolder, stop: type[BaseException]) -> None:
    signals: list[str] = []
    events = record_events(pipeline(signals), run)
    next(events)
    next(events)
    with pytest.raises(stop):
        events.throw(stop())
    assert signals == [stop.__name__]
    assert metrics(run) == [("training", {"loss": 0.5})]


def test_a_resumed_run_goes_on(run: RunFolder) -> None:
    for _ in range(2):
        list(record_events(pipeline([]), run))
    assert metrics(run) == [("training", {"loss": 0.5})] * 2
    seconds = [row.seconds for row in read_progress(run.path("progress.csv"))]
    assert seconds == sorted(seconds)
    assert run.notes() == (EVENTS[0], EVENTS[3])
