"""Drawing of a pipeline's events: live on a terminal, as plain lines in logs, pipes and notebooks.

Progress and notes go to standard error, results to standard output.
"""

import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cryoeq.cli.errors import CrashError
from cryoeq.cli.stage_clock import StageClock, StagePass, clock_text, ends_iteration
from cryoeq.domain.events import Event, Note, Plan, Progress, Report
from cryoeq.errors import CryoEqError, OutputError, Terminated
from cryoeq.outputs.metric_text import metric_phrases
from cryoeq.runtime.torchrun import torchrun_environment

_MAX_ITERATION_LINES = 50  # stages of more iterations get plain lines by the clock
_ITERATION_SILENCE_S = 300.0  # a plain line within an iteration that takes longer
_STEP_FRACTION = 0.05  # else a plain line at every twentieth of a stage ...
_MIN_SILENCE_S, _MAX_SILENCE_S = 10.0, 30.0  # ... but not more often than this, and at least this often
_MIN_LEFT_S = 30.0  # time left that a plain line names
_PLAIN_METRICS, _TERMINAL_METRICS = 3, 2
_MIN_BAR = 8


def draw(events: Iterator[Event], log: Path | None = None) -> None:
    """Run a pipeline and show its events.

    Args:
        events: the pipeline; it works while we iterate.
        log: file to append everything to, as plain lines; its folder is made by the pipeline before its first event.

    Raises:
        CrashError: the pipeline raised an error on which no user can act; holds the run folder.
    """
    with ExitStack() as stack:
        drawers: list[TerminalDrawer | PlainDrawer] = []
        if torchrun_environment().is_main_process:  # the other processes of a job report the same
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
        # The signal may have arrived while we drew, but only the pipeline knows what to save; where it has received the
        # signal itself it is over, and raises it again.
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
        path: opened at the first line, so that a refused run leaves no file in the folder of another.
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
                self._file = self._path.open("a", encoding="utf-8", errors="surrogateescape")
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


class PlainDrawer:
    """Lines that are never rewritten: one for each iteration; of other stages one at the end, and some by the clock.

    Args:
        write: takes each line, and whether it is a result.
        clock: time in seconds.
    """

    def __init__(self, write: Callable[[str, bool], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._stages = StageClock(clock)
        self._printed_s, self._printed_fraction = 0.0, 0.0

    def show(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Note():
                self._write(f"Warning: {event.text}" if event.level == "warning" else event.text, False)
            case Report():
                self._write(aligned(event), True)
            case Plan():
                self._stages.plan(event)
            case Progress():
                self._show_progress(event)

    def close(self) -> None:
        """Nothing to tidy."""

    def _show_progress(self, progress: Progress) -> None:
        before, stage = self._stages.current, self._stages.advance(progress)
        if stage is not before:
            self._printed_s, self._printed_fraction = stage.began_s, stage.fraction
        if self._is_due(stage):
            self._write(_plain_line(stage), False)
            self._printed_s, self._printed_fraction = stage.latest_s, stage.fraction

    def _is_due(self, stage: StagePass) -> bool:
        progress, waited_s = stage.latest, stage.latest_s - self._printed_s
        if progress.iteration is not None and progress.iteration[1] <= _MAX_ITERATION_LINES:
            return ends_iteration(progress) or waited_s >= _ITERATION_SILENCE_S
        stepped = stage.fraction - self._printed_fraction >= _STEP_FRACTION - 1e-9
        return stage.fraction >= 1 or waited_s >= _MAX_SILENCE_S or (stepped and waited_s >= _MIN_SILENCE_S)


def _plain_line(stage: StagePass) -> str:
    """For example ``consensus refinement 9/33: data to 19.5 Å, log-likelihood 48.23``."""
    progress = stage.latest
    if progress.iteration is not None and not ends_iteration(progress):
        text = f"{progress.done / progress.total:.0%} of the iteration"
    else:
        text = ", ".join(metric_phrases(stage.metrics)[:_PLAIN_METRICS]) or f"{clock_text(stage.elapsed_s)} elapsed"
    left_s = stage.left_s(stage.latest_s) or 0.0
    left = f"; {clock_text(left_s)} left" if left_s >= _MIN_LEFT_S else ""
    return f"{' '.join(filter(None, (stage.name, stage.count)))}: {text}{left}"


class TerminalDrawer:
    """Rich: the current stage as a bar with its metrics below, and one line for each stage that is over."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._stages = StageClock()
        self._live: Live | None = None
        self._summarised: StagePass | None = None

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
            case Plan():
                self._stages.plan(event)
            case Progress():
                self._show_progress(event)

    def close(self) -> None:
        """Leave one line of the current stage."""
        if self._live is not None:
            self._live.stop()
            self._print_summary(self._stages.current)
        self._live, self._stages.current = None, None

    def _show_progress(self, progress: Progress) -> None:
        before, stage = self._stages.current, self._stages.advance(progress)
        if self._live is None:
            self._live = Live(get_renderable=self._render, console=self._console, transient=True)
            self._live.start()
        elif stage is not before:
            self._print_summary(before)
        if stage.fraction >= 1:
            self._print_summary(stage)

    def _print_summary(self, stage: StagePass | None) -> None:
        """One line for each stage, when it is over."""
        if stage is not None and stage is not self._summarised:
            self._summarised = stage
            self._console.print(stage_summary(stage, self._console.width))

    def _render(self) -> RenderableType:
        stage = self._stages.current
        return (
            ""
            if stage is None or stage is self._summarised
            else stage_bar(stage, self._stages.now(), self._console.width)
        )


def stage_bar(stage: StagePass, now_s: float, width: int) -> RenderableType:
    """Title, bar, count and time left on one line, and two metrics at most on the next.

    Args:
        stage: the current stage.
        now_s: the time.
        width: columns of the terminal.
    """
    left_s = stage.left_s(now_s)
    count = f"iteration {stage.count}" if stage.latest.iteration else stage.count
    bar = ProgressBar(total=1.0, completed=stage.fraction, pulse=not stage.count)
    row = Table.grid(expand=True, padding=(0, 2, 0, 0))
    row.add_column(no_wrap=True)
    row.add_column(ratio=1, min_width=_MIN_BAR)
    row.add_column(no_wrap=True)
    row.add_column(no_wrap=True, min_width=len("0:00 left"), justify="right")
    row.add_row(Text(stage.title), bar, Text(count), Text("" if left_s is None else f"{clock_text(left_s)} left"))
    metrics = _fitting(stage, width - 2)
    return Group(row, Text(f"  {metrics}")) if metrics else row


def stage_summary(stage: StagePass, width: int) -> Text:
    """One line about a stage that is over, no wider than the terminal.

    Args:
        stage: the stage.
        width: columns of the terminal.
    """
    line = f"{stage.title}: {', '.join(filter(None, (stage.count, clock_text(stage.elapsed_s))))}"
    metrics = _fitting(stage, width - cell_len(line) - 2)
    return Text(f"{line}; {metrics}" if metrics else line)


def _fitting(stage: StagePass, width: int) -> str:
    """The most important metrics, two at most, as far as they fit."""
    text = ""
    for phrase in metric_phrases(stage.metrics)[:_TERMINAL_METRICS]:
        longer = f"{text}, {phrase}" if text else phrase
        if cell_len(longer) > width:
            break
        text = longer
    return text


def aligned(report: Report) -> str:
    """A report as plain text, the values in one column."""
    width = max((len(label) for label in report.rows), default=0)
    return "\n".join([report.title, *(f"  {label:<{width}}  {value}" for label, value in report.rows.items())])


def _table(report: Report) -> RenderableType:
    if not report.rows:
        return Text(report.title)
    table = Table(title=Text(report.title), show_header=False, title_justify="left")
    for label, value in report.rows.items():
        table.add_row(Text(label), Text(value))
    return table
