"""Errors become one clear message and the agreed exit code."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import cryoeq
from cryoeq.cli import main
from cryoeq.cli.drawing import draw
from cryoeq.cli.errors import CrashError, explain, print_message
from cryoeq.domain.events import Event, Note
from cryoeq.errors import (
    CheckpointError,
    ConfigError,
    CryoEqError,
    DivergedError,
    MapFileError,
    OutputError,
    ParticleFileError,
    Terminated,
)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (ConfigError, 2),
        (OutputError, 2),
        (ParticleFileError, 3),
        (MapFileError, 3),
        (CheckpointError, 3),
        (DivergedError, 4),
    ],
)
def test_an_error_for_the_user_is_one_message(kind: type[CryoEqError], code: int) -> None:
    error = kind("particles.star, row 1204: rlnDefocusU is missing", "cryoeq needs it", "Estimate it again")
    message = "cryoeq: particles.star, row 1204: rlnDefocusU is missing. cryoeq needs it. Estimate it again."
    assert explain(error) == (message, code)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("a.mrc is empty.", "expected a map", "check it."), "a.mrc is empty. Expected a map. Check it."),
        (("--set x", "", "Did you mean y?"), "--set x. Did you mean y?"),
        (("x", "cryoeq reads maps", "seed, too"), "x. cryoeq reads maps. Seed, too."),
        (("x", "rlnImageName is needed", "encoder.heads"), "x. rlnImageName is needed. encoder.heads."),
        (("x", "", "--box 32"), "x. --box 32."),
    ],
)
def test_sentences_begin_in_capitals_and_end_once(parts: tuple[str, str, str], message: str) -> None:
    assert str(CryoEqError(*parts)) == message


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), 4, "not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"), 4, "CUDA out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), 4, "smaller batch"),
        (KeyboardInterrupt(), 130, "Ctrl-C"),
        (Terminated("SIGUSR1"), 143, "SIGUSR1"),
    ],
)
def test_other_ends_have_their_codes(error: BaseException, code: int, words: str) -> None:
    message, found = explain(error)
    assert found == code
    assert words in message
    assert "\n" not in message


def test_torch_really_raises_what_we_take_for_lack_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert explain(caught.value)[1] == 4


def broken(note: str) -> Iterator[Event]:
    yield Note(note)
    raise ZeroDivisionError("nobody thought of this")


def test_a_bug_leaves_its_traceback_in_the_run_folder(tmp_path: Path) -> None:
    with pytest.raises(CrashError) as caught:
        draw(broken("working"), log=tmp_path / "run.log")
    message, code = explain(caught.value)
    assert code == 1
    assert "bug of ours" in message
    assert str(tmp_path / "traceback.txt") in message
    text = (tmp_path / "traceback.txt").read_text()
    assert "ZeroDivisionError: nobody thought of this" in text
    assert cryoeq.__version__ in text
    assert "working" in (tmp_path / "run.log").read_text()


def test_a_bug_without_a_run_folder_leaves_it_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    message, code = explain(ZeroDivisionError("oh"), debug=True)
    (saved,) = tmp_path.iterdir()
    assert code == 1
    assert str(saved) in message
    assert message.startswith("ZeroDivisionError: oh")


@pytest.mark.parametrize(("flags", "is_shown"), [([], False), (["--debug"], True)])
def test_debug_shows_where(
    flags: list[str], is_shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ConfigError("wrong")

    monkeypatch.setattr("cryoeq.pipelines.doctor.diagnose", fail)
    assert main.run(["doctor", *flags]) == 2
    shown = capsys.readouterr().err
    assert shown.endswith("cryoeq: wrong.\n")
    assert ("Traceback" in shown) == is_shown


WAITING = """
import os, signal, sys, time
from cryoeq.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores Ctrl-C
def wait() -> None:
    os.write(1, b"ready")
    time.sleep(60)
main.app.command("wait")(wait)
sys.argv[1:] = ["wait"]
main.main()
"""


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_program_with_its_code(stop: signal.Signals, code: int) -> None:
    with subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert os.read(program.stdout.fileno(), 5) == b"ready"
        program.send_signal(stop)
        _, errors = program.communicate(timeout=30)
    assert program.returncode == code
    assert errors.startswith(b"cryoeq: stopped by")
    assert b"Traceback" not in errors


@pytest.mark.parametrize("command", [["settings"], ["doctor"]])
def test_output_that_is_closed_is_no_bug(command: list[str]) -> None:
    """As after ``cryoeq ... | head``: the code of SIGPIPE, and nothing said."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        program = [sys.executable, "-m", "cryoeq", *command]
        ended = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    finally:
        os.close(writer)
    assert ended.returncode == 141
    assert "bug" not in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "BrokenPipe" not in ended.stderr


def test_messages_are_wrapped_between_words_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    message = (
        "Traceback (most recent call last), which is left as it was\ncryoeq: the rlnImageName of row 7 is missing-here"
    )
    print_message(message)
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == message.partition("\n")[0]
    assert all(len(line) <= 40 for line in shown[1:])
    assert " ".join(shown[1:]) == message.partition("\n")[2]
