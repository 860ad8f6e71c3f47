"""Draws the events of a pipeline: live on a terminal, as plain lines in logs, pipes and notebooks.

Progress and notes go to standard error, results to standard output.
"""

import math
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as LiveBars
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from cryoeq.cli.errors import CrashError
from cryoeq.domain.events import Event, Note, Progress, Report
from cryoeq.errors import CryoEqError, OutputError, Terminated
from cryoeq.runtime.torchrun import torchrun_environment

_STEP_FRACTION = 0.05  # a plain line at every twentieth of a stage ...
_SHORTEST_S, _LONGEST_S = 1.0, 30.0  # ... but not more often than this, and at least this often


def draw(events: Iterator[Event], log: Path | None = None) -> None:
    """Run a pipeline and show what it says.

    Args:
        events: the pipeline; it works while we iterate.
        log: file to append everything to, as plain lines; its folder is made by the pipeline before its first event.

    Raises:
        CrashError: the pipeline raised what no user can act on; knows the run folder.
    """
    with ExitStack() as stack:
        drawers: list[TerminalDrawer | PlainDrawer] = []
        if torchrun_environment().is_main_process:  # the other processes of a job say the same
            drawers.append(TerminalDrawer() if _is_live_terminal() else PlainDrawer(_print_plain))
            if log is not None:
                drawers.append(PlainDrawer(stack.enter_context(closing(LogFile(log))).write))
        for drawer in drawers:
            stack.callback(drawer.close)

        def show(event: Event) -> None:
            for drawer in drawers:
                drawer.show(event)

        try:
            _run(events, show)
        except (CryoEqError, MemoryError, BrokenPipeError):
            raise
        except Exception as error:
            raise CrashError(log.parent if log else None) from error


def _run(events: Iterator[Event], show: Callable[[Event], None]) -> None:
    try:
        for event in events:
            show(event)
    except (KeyboardInterrupt, Terminated) as stop:
        # The signal may have come while we drew, but only the pipeline knows what to save; where it has seen the signal
        # itself it is over, and raises it again.
        with suppress(StopIteration):
            if isinstance(events, Generator):
                show(events.throw(stop))
                _run(events, show)
        raise


def _is_live_terminal() -> bool:
    return sys.stderr.isatty() and not Console(stderr=True).is_dumb_terminal


def _print_plain(line: str, is_result: bool) -> None:
    sys.stdout.flush()
    print(line, file=sys.stdout if is_result else sys.stderr, flush=True)


class LogFile:
    """The run's log: lines with the time of day, appended.

    Args:
        path: opened at the first line, so that a run that is refused leaves no trace in the folder of another.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def write(self, line: str, is_result: bool) -> None:
        """Append one line."""
        del is_result
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("a", encoding="utf-8")
            self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(
                f"{self._path} cannot be written ({error.strerror})", "", "Make room or pass -o"
            ) from error

    def close(self) -> None:
        """Close the file, if it was ever opened."""
        if self._file is not None:
            self._file.close()


@dataclass(frozen=True)
class _Mark:
    """When a stage last got a line, and how far it was."""

    started_s: float
    printed_s: float
    done: int


class PlainDrawer:
    """Lines that are never rewritten: tqdm's meter without carriage returns.

    Args:
        write: takes each line, and whether it is a result.
        clock: time in seconds.
    """

    def __init__(self, write: Callable[[str, bool], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._marks: dict[str, _Mark] = {}

    def show(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Note():
                self._write(f"Warning: {event.text}" if event.level == "warning" else event.text, False)
            case Report():
                self._write(aligned(event), True)
            case Progress():
                self._show_progress(event)

    def close(self) -> None:
        """Nothing to tidy."""

    def _show_progress(self, progress: Progress) -> None:
        now = self._clock()
        mark = self._marks.get(progress.stage)
        if mark is not None and not self._is_due(progress, mark, now):
            return
        started = now if mark is None else mark.started_s
        meter = tqdm.format_meter(
            progress.done,
            progress.total,
            now - started,
            ascii=True,
            prefix=progress.stage,
            postfix=_figures(progress.metrics),
            bar_format="{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )
        self._write(meter, False)
        self._marks[progress.stage] = _Mark(started, now, progress.done)
        if progress.done >= progress.total:
            del self._marks[progress.stage]  # the stage may come again

    def _is_due(self, progress: Progress, mark: _Mark, now: float) -> bool:
        waited_s = now - mark.printed_s
        stepped = progress.done - mark.done >= _STEP_FRACTION * progress.total
        return progress.done >= progress.total or waited_s >= _LONGEST_S or (stepped and waited_s >= _SHORTEST_S)


class TerminalDrawer:
    """Rich: one moving row per stage with its figures and the time that remains."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars: LiveBars | None = None
        self._rows: dict[str, TaskID] = {}

    def show(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Note():
                style = "yellow" if event.level == "warning" else ""
                prefix = "Warning: " if event.level == "warning" else ""
                self._console.print(Text(prefix + event.text, style=style))
            case Report():
                self.close()  # results go to standard output, which may be a file
                Console().print(_table(event))
            case Progress():
                self._show_progress(event)

    def close(self) -> None:
        """Leave the rows as they stand."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = None
        self._rows = {}

    def _show_progress(self, progress: Progress) -> None:
        if self._bars is None:
            self._bars = LiveBars(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
                TextColumn("{task.fields[figures]}"),
                console=self._console,
            )
            self._bars.start()
        if progress.stage not in self._rows:
            self._rows[progress.stage] = self._bars.add_task(progress.stage, total=progress.total, figures="")
        row = self._rows[progress.stage]
        self._bars.update(row, completed=progress.done, total=progress.total, figures=_figures(progress.metrics))


def _figures(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if not math.isnan(value))


def aligned(report: Report) -> str:
    """A report as plain text, the values in one column."""
    width = max((len(label) for label in report.rows), default=0)
    return "\n".join([report.title, *(f"  {label:<{width}}  {value}" for label, value in report.rows.items())])


def _table(report: Report) -> Table:
    table = Table(title=Text(report.title), show_header=False, title_justify="left")
    for label, value in report.rows.items():
        table.add_row(Text(label), Text(value))
    return table
