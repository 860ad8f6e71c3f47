"""Events on a terminal, in a log and in a pipe."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from cryoeq.cli import drawing
from cryoeq.cli.drawing import PlainDrawer, draw
from cryoeq.domain.events import Event, Note, Progress, Report
from cryoeq.errors import OutputError, Terminated


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
    assert lines[-1].startswith("training: 100% 100/100 [00:00<00:00, loss 0.0099")
    assert "\r" not in err
    assert "\x1b" not in out + err


def plain_lines(events: list[tuple[float, Event]]) -> list[str]:
    lines: list[str] = []
    times = iter([time for time, _ in events])

    def write(line: str, is_result: bool) -> None:
        assert not is_result
        lines.append(line)

    drawer = PlainDrawer(write, clock=lambda: next(times))
    for _, event in events:
        drawer.show(event)
    return lines


def test_a_line_at_every_twentieth() -> None:
    lines = plain_lines([(1.0 * done, Progress("training", done, 1000)) for done in range(0, 1001, 10)])
    # A step takes 10 s here, so that a twentieth (50 s) is longer than the longest silence (30 s).
    assert len(lines) == 1 + 100 // 3 + 1
    lines = plain_lines([(0.5 * done, Progress("training", done, 100)) for done in range(101)])
    assert [line.split("%")[0][-3:].strip() for line in lines] == [str(percent) for percent in range(0, 101, 5)]


def test_a_short_stage_gets_two_lines_and_may_come_again() -> None:
    stage = [(0.0, Progress("reading", done, 50)) for done in range(51)]
    assert len(plain_lines(stage)) == 2
    assert len(plain_lines(stage + stage)) == 4


def test_the_time_that_remains() -> None:
    lines = plain_lines([(0.0, Progress("training", 0, 100)), (30.0, Progress("training", 25, 100))])
    assert lines[1] == "training:  25% 25/100 [00:30<01:30]"


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
def test_a_terminal_gets_rows_that_move(no_color: bool, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert "loss 0.0099" in shown
    assert ("\x1b[33m" in shown) != no_color
    assert "10.0 Å" in results.getvalue()
    assert "10.0 Å" not in shown


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
