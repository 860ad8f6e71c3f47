"""Output that is closed, full, or cannot write every character: the same result, or one sentence."""

import codecs
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryoeq.cli.errors import CrashError, explain, print_message
from cryoeq.cli.streams import finish_streams, prepare_streams
from cryoeq.errors import ConfigError, CryoEqError, OutputClosed, OutputError, ParticleFileError

BARE = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


class SpeechlessError(Exception):
    """An error that fails when it is asked what it is."""

    def __str__(self) -> str:
        raise RuntimeError("nor can I say this")


class Broken(io.StringIO):
    """A stream that nobody reads."""

    def write(self, text: str, /) -> int:
        del text
        raise BrokenPipeError


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


def ascii_only() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")


ODD_TEXT = st.text(st.characters(codec=None, categories=("L", "Cc", "Cs", "So", "Zl")), max_size=40) | st.sampled_from(
    ["", "M\udcfcller", "\x1b[31mred", "a\nb\r\nc", "\x00", "Å" * 20000]
)
ERRORS = st.one_of(
    st.builds(lambda kind, text: kind(text, text), st.sampled_from([ConfigError, ParticleFileError]), ODD_TEXT),
    st.builds(lambda text, number: OSError(number, "said", text), ODD_TEXT, st.integers(0, 140)),
    st.builds(ValueError, ODD_TEXT),
    st.just(SpeechlessError()),
    st.just(KeyboardInterrupt()),
    st.builds(lambda text: caused(CrashError(Path("/nowhere") / text.replace("\0", "")), SpeechlessError()), ODD_TEXT),
)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@given(ERRORS)
def test_the_handler_of_errors_never_fails(error: BaseException) -> None:
    """Whatever the error and the stream, there is one printable line and an agreed exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", "/nowhere")
        message, code = explain(error)
        for stream in (None, closed(), Broken(), ascii_only(), io.StringIO()):
            patch.setattr("sys.stderr", stream)
            print_message(message)
    assert code in {1, 2, 3, 4, 130}
    assert message.startswith("cryoeq: ")
    assert len(message) < 5000
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in message)


@contextmanager
def strict_streams() -> Iterator[pytest.MonkeyPatch]:
    """Standard streams in ASCII; pytest sets its own between a fixture and the test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("stdout", "stderr"):
            patch.setattr(sys, name, ascii_only())
        prepare_streams()
        yield patch


def test_any_character_can_be_printed() -> None:
    with strict_streams():
        written = sys.stdout
        written.write("7.75 Å at 30°, M\udcfcller, \u4e2d, é")
        written.flush()
        assert isinstance(written, io.TextIOWrapper)
        assert isinstance(written.buffer, io.BytesIO)
        assert written.buffer.getvalue() == rb"7.75 A at 30deg, M" + b"\xfc" + rb"ller, \u4e2d, \xe9"


@pytest.mark.parametrize(("problem", "error"), [(BrokenPipeError, OutputClosed), (OSError, OutputError)])
def test_what_was_printed_and_cannot_be_written_is_known_at_the_end(
    problem: type[OSError], error: type[BaseException]
) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise problem(28, "No space left on device")

    with strict_streams() as patch:
        patch.setattr(sys, "stdout", Full())
        with pytest.raises(error):
            finish_streams()


def test_streams_that_are_gone_are_no_error() -> None:
    for stream in (None, closed()):
        with strict_streams() as patch:
            patch.setattr(sys, "stdout", stream)
            finish_streams()


def test_the_handler_of_characters_is_for_writing() -> None:
    with strict_streams(), pytest.raises(UnicodeDecodeError):
        codecs.decode(b"\xff", "ascii", "cryoeq-ascii")


@pytest.mark.parametrize("redirected", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_no_file(redirected: str, tmp_path: Path) -> None:
    """The number of a closed stream goes to no other file, where what is printed would land."""
    record = tmp_path / "lattice.json"
    command = f"{sys.executable} -m cryoeq lattice reduce --cell '100 60 17' --json {record} {redirected}"
    assert subprocess.run(command, shell=True, check=False, timeout=60, stderr=subprocess.PIPE).returncode == 0
    assert record.read_text().lstrip().startswith("{")


def test_a_full_disk_behind_standard_output() -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "cryoeq", "settings"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("cryoeq: the output: the disk is full")


def test_the_locale_c_and_names_of_any_bytes(tmp_path: Path) -> None:
    """A folder named in Latin-1, without HOME, under an encoding that is strict."""
    folder = os.fsencode(tmp_path) + b"/M\xfcller"
    Path(os.fsdecode(folder)).mkdir()
    environment = BARE | {"PYTHONIOENCODING": "ascii:strict"}
    command = [sys.executable.encode(), b"-m", b"cryoeq", b"reconstruct", folder + b"/none \xc3\x85.star"]
    ended = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=60, cwd=Path.cwd())
    assert ended.returncode == 3
    (line,) = ended.stderr.splitlines()
    assert line.startswith(b"cryoeq: " + folder)
    assert b"does not exist" in line


def test_errors_of_the_system_name_the_file() -> None:
    for number, code, words in [(13, 3, "permission denied"), (24, 4, "ulimit -n"), (28, 2, "disk is full")]:
        message, found = explain(caused(CrashError(None), OSError(number, "said", "/data/a.mrcs")))
        assert found == code
        assert message.startswith("cryoeq: /data/a.mrcs: ")
        assert words in message


def test_sentences_of_errors_are_kept() -> None:
    assert explain(CryoEqError("a.mrc is empty"))[0] == "cryoeq: a.mrc is empty."
