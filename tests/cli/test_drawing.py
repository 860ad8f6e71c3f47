"""Events on a terminal, in a log and in a pipe."""

import io
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from cryoeq.cli import drawing
from cryoeq.cli.drawing import PlainDrawer, draw, stage_bar, stage_summary
from cryoeq.cli.stage_clock import StageClock
from cryoeq.domain.events import Event, Note, Plan, Progress, Report
from cryoeq.errors import OutputError, Terminated
from cryoeq.outputs.metric_text import METRIC_TEXTS

METRICS = {
    "max_probability": 0.9,
    "log_likelihood": 48.23,
    "fsc_resolution_angstrom": 21.4,
    "resolution_limit_angstrom": 19.53,
}


def pipeline() -> Iterator[Event]:
    yield Note("contrast: protein is bright")
    yield Note("the header has no MAP stamp", "warning")
    for done in range(101):
        yield Progress("training", done, 100, {"loss": 1 / (1 + done)})
    yield Report("Resolution", {"at 0.143": "8.3 Å", "at 0.5, unmasked": "10.0 Å"})


def test_plain_lines_are_never_rewritten(capfd: pytest.CaptureFixture[str]) -> None:
    draw(pipeline())
    out, err = capfd.readouterr()
    assert out == "Resolution\n  at 0.143          8.3 Å\n  at 0.5, unmasked  10.0 Å\n"
    lines = err.splitlines()
    assert lines[0] == "contrast: protein is bright"
    assert lines[1] == "Warning: the header has no MAP stamp"
    assert lines[2:] == ["training 100/100: loss 0.009901"]
    assert "\r" not in err
    assert "\x1b" not in out + err


def plain_lines(events: list[tuple[float, Event]]) -> list[str]:
    lines: list[str] = []
    now_s = 0.0

    def write(line: str, is_result: bool) -> None:
        assert not is_result
        lines.append(line)

    drawer = PlainDrawer(write, clock=lambda: now_s)
    for now_s, event in events:  # noqa: B007 - the clock reads it
        drawer.show(event)
    return lines


def test_a_line_at_every_twentieth() -> None:
    lines = plain_lines([(1.0 * done, Progress("training", done, 1000)) for done in range(0, 1001, 10)])
    # A step takes 10 s here, so that a twentieth (50 s) is longer than the longest silence (30 s).
    assert len(lines) == 100 // 3 + 1
    lines = plain_lines([(2.5 * done, Progress("training", done, 100)) for done in range(101)])
    assert [line.split()[1] for line in lines] == [f"{done}/100:" for done in range(5, 101, 5)]


def test_a_short_stage_gets_one_line_and_may_be_repeated() -> None:
    stage: list[tuple[float, Event]] = [(0.0, Progress("reading", done, 50)) for done in range(51)]
    assert plain_lines(stage) == ["reading 50/50: 0:00 elapsed"]
    assert len(plain_lines(stage + stage)) == 2


def test_the_time_left() -> None:
    lines = plain_lines([(0.0, Progress("training", 0, 100)), (30.0, Progress("training", 25, 100))])
    assert lines == ["training 25/100: 0:30 elapsed; 1:30 left"]
    assert plain_lines([(0.0, Progress("m", 0, 2)), (7200.0, Progress("m", 1, 2))]) == [
        "m 1/2: 2:00:00 elapsed; 2:00:00 left"
    ]


def iterations(count: int, *, extra: int = 0, seconds: float = 1.0) -> list[tuple[float, Event]]:
    """Iterations of three batches of particles, with metrics after each; the stage has ``extra`` more."""
    events: list[tuple[float, Event]] = []
    for number in range(1, count + 1):
        for done in (100, 200, 300):
            metrics = METRICS if done == 300 else {}
            now_s = seconds * (number - 1 + done / 300)
            events.append((now_s, Progress("consensus refinement", done, 300, metrics, (number, count + extra))))
    return events


def test_one_line_for_each_iteration() -> None:
    lines = plain_lines(iterations(9, extra=24))
    assert len(lines) == 9
    assert lines[-1] == "consensus refinement 9/33: data to 19.5 Å, halves agree to 21.4 Å, log-likelihood 48.23"
    assert len(plain_lines(iterations(3) + iterations(2, extra=1))) == 5


def test_an_iteration_of_hours_is_not_silent() -> None:
    lines = plain_lines(iterations(2, seconds=3600.0))
    assert len(lines) == 5
    assert lines[2].startswith("consensus refinement 2/2: 33% of the iteration; ")


def test_many_short_iterations_get_lines_by_the_clock() -> None:
    events = [(0.01 * n, Progress("initial model", n, 150, {"log_likelihood": n}, (n, 150))) for n in range(1, 151)]
    assert plain_lines([*events]) == ["initial model 150/150: log-likelihood 150.00"]


def test_a_metric_without_a_value_is_left_out() -> None:
    metrics = {"fsc_resolution_angstrom": math.inf, "loss": math.nan, "resolution_limit_angstrom": 20.0}
    assert plain_lines([(0.0, Progress("refinement", 1, 1, metrics))]) == ["refinement: data to 20.0 Å"]


PLAN = Plan(("reading", "initial model", "refinement", "re-alignment", "halves", "re-alignment"))


def test_stages_are_numbered_by_the_plan() -> None:
    clock = StageClock(lambda: 0.0)
    assert clock.advance(Progress("reading", 1, 1)).title == "reading"
    clock.plan(PLAN)
    stages = ["reading", "initial model", "refinement", "initial model", "refinement", "refinement", "re-alignment",
              "halves", "re-alignment", "another"]  # fmt: skip
    titles = [clock.advance(Progress(stage, 1, 1)).title for stage in stages]
    assert [title.split()[1] for title in titles[:-1]] == [f"{number}/6" for number in (1, 2, 3, 2, 3, 3, 4, 5, 6)]
    assert titles[-1] == "another"


def test_a_stage_that_starts_over_is_another_pass() -> None:
    clock = StageClock(lambda: 0.0)
    first = clock.advance(Progress("refinement", 300, 300, {"loss": 1.0}, (1, 3)))
    assert clock.advance(Progress("refinement", 100, 300, {}, (2, 3))) is first
    assert first.fraction == pytest.approx(4 / 9)
    assert clock.advance(Progress("refinement", 200, 300, {}, (1, 3))) is not first


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("metrics", [METRICS, dict.fromkeys(METRIC_TEXTS, 123456.789), {}])
def test_a_bar_can_be_read_whatever_the_metrics(width: int, metrics: dict[str, float]) -> None:
    now_s = 0.0
    clock = StageClock(lambda: now_s)
    clock.plan(Plan(("consensus refinement",) * 10))
    clock.advance(Progress("consensus refinement", 1, 300_000, {}, (1, 33)))
    now_s = 36_000.0
    stage = clock.advance(Progress("consensus refinement", 300_000, 300_000, metrics, (12, 33)))
    screen = io.StringIO()
    Console(file=screen, width=width, force_terminal=True, color_system=None).print(stage_bar(stage, now_s, width))
    row, *below = screen.getvalue().splitlines()
    assert row.startswith("Stage 1/10 consensus refinement  ━━")
    assert row.endswith("iteration 12/33  17:30:00 left")
    assert len(below) == bool(metrics)
    assert all(len(line) <= width for line in (row, *below))
    summary = stage_summary(stage, width).plain
    assert summary.startswith("Stage 1/10 consensus refinement: 12/33, 10:00:00")
    assert len(summary) <= width
    if metrics is METRICS:
        assert below == ["  data to 19.5 Å, halves agree to 21.4 Å"]


def test_everything_goes_to_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "new" / "run.log"
    draw(pipeline(), log)
    draw(iter([Note("again")]), log)
    text = log.read_text(encoding="utf-8")
    shown = "".join(capfd.readouterr())
    for part in ("MAP stamp", "100/100", "at 0.5, unmasked  10.0 Å"):
        assert part in text
        assert part in shown
    assert text.splitlines()[-1].endswith("  again")
    assert "\r" not in text


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Terminated])
def test_a_signal_during_drawing_reaches_the_pipeline(
    stop: type[BaseException], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def training() -> Iterator[Event]:
        try:
            yield Note("step 1")
        except stop:
            yield Note("saved a checkpoint")
            yield Note("and the log")
            raise

    def interrupted(line: str, is_result: bool) -> None:
        print(line)
        if line == "step 1":
            raise stop

    monkeypatch.setattr(drawing, "_print_plain", interrupted)
    with pytest.raises(stop):
        draw(training())
    assert capfd.readouterr().out.splitlines() == ["step 1", "saved a checkpoint", "and the log"]


def test_a_refused_run_leaves_no_log(tmp_path: Path) -> None:
    def refused() -> Iterator[Event]:
        yield from ()
        raise OutputError("holds another run")

    with pytest.raises(OutputError):
        draw(refused(), tmp_path / "run.log")
    assert not list(tmp_path.iterdir())


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"run\.log cannot be written"):
        draw(pipeline(), tmp_path / "file" / "run.log")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_gets_a_bar_and_then_a_line_for_each_stage(no_color: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("COLORTERM", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    else:
        monkeypatch.delenv("NO_COLOR", raising=False)
    screen, results = Terminal(), io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("sys.stdout", results)
    draw(pipeline())
    shown = screen.getvalue()
    assert "training" in shown
    assert "100/100" in shown
    assert shown.count("training: 100/100, 0:00; loss 0.009901") == 1
    assert ("\x1b[33m" in shown) != no_color
    assert "10.0 Å" in results.getvalue()
    assert "10.0 Å" not in shown


def test_a_stage_that_is_over_has_its_line_before_the_next_message(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stderr", screen)
    refinement = [event for _, event in iterations(2)]
    draw(iter([*refinement, Note("the half sets part"), *refinement, Progress("final iteration", 1, 2)]))
    shown = screen.getvalue()
    summary = "consensus refinement: 2/2, 0:00; data to 19.5 Å, halves agree to 21.4 Å"
    assert shown.count(summary) == 2
    assert shown.index(summary) < shown.index("the half sets part")
    assert "final iteration: 1/2, 0:00" in shown.splitlines()[-1]  # also of a stage that was cut short


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    draw(pipeline())
    assert "\x1b" not in screen.getvalue()


def test_markup_in_a_message_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", screen)
    draw(iter([Note("rows [/0] and [red]")]))
    assert "rows [/0] and [red]" in screen.getvalue()
    assert isinstance(drawing.TerminalDrawer()._console, Console)


def test_a_report_of_a_title_alone_is_a_line_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table without rows is nothing at all on a terminal."""
    screen, results = Terminal(), Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("sys.stdout", results)
    monkeypatch.setenv("TERM", "xterm")
    draw(iter([Report("All is well [here]", {})]))
    assert results.getvalue() == "All is well [here]\n"
