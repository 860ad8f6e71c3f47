"""Which message and which exit code an error becomes."""

import errno
import os
import re
import shutil
import sys
import tempfile
import textwrap
import traceback
from contextlib import suppress
from pathlib import Path

import cryoeq
from cryoeq.cli.wrong_use import explain_wrong_use
from cryoeq.errors import CryoEqError, LostProcessError, OutputError, Terminated
from cryoeq.io.atomic import why_unwritable
from cryoeq.runtime.torchrun import torchrun_environment

_MAX_LENGTH, _HEAD = 4000, 3000
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# What the system refuses, in words, with advice and exit code; those of written files are explained where they arise.
_REFUSALS = {
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM),
        ("permission denied", "Ask the owner of the file or folder for access, or choose another one", 3),
    ),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), ("too many files are open", "Raise the limit, with ulimit -n", 4)),
    errno.EIO: ("the disk or its server has failed", "Try again later, or copy the files to another disk", 3),
    errno.ESTALE: ("the file was replaced on its server", "Start the command again", 3),
    errno.ETIMEDOUT: ("the file server does not answer", "Try again later, or copy the files to another disk", 3),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter one", 2),
    errno.ELOOP: ("its symbolic links lead in a circle", "Correct the links", 3),
}


class CrashError(Exception):
    """An error that nobody foresaw, on its way from a running pipeline to the exit of the program.

    Args:
        folder: the run folder, None where there is none yet.
    """

    def __init__(self, folder: Path | None) -> None:
        super().__init__(folder)
        self.folder = folder


def explain(error: BaseException, *, debug: bool = False) -> tuple[str, int]:
    """Put an error into words for the user.

    Args:
        error: whatever ended the command.
        debug: whether to show where in the code it arose.

    Returns:
        The message (without a final newline) and the exit code.
    """
    if hasattr(error, "format_message"):
        said = explain_wrong_use(error)
        return said if "\n" in said else f"cryoeq: {_one_line(said)}", int(getattr(error, "exit_code", 2))
    cause = error.__cause__ if isinstance(error, CrashError) and error.__cause__ is not None else error
    try:
        message, code = _message(cause, error.folder if isinstance(error, CrashError) else None)
        trace = "".join(traceback.format_exception(cause)) if debug else ""
    except Exception as second:  # noqa: BLE001 - whatever fails here must not hide that the command has failed
        message, code, trace = f"this is a bug of ours ({_name(cause)}, then {_name(second)} in its message).", 1, ""
    me = torchrun_environment()
    who = f"cryoeq, process {me.rank + 1} of {me.size}" if me.size > 1 else "cryoeq"
    return f"{trace}{who}: {_one_line(message)}", code


def print_message(message: str) -> None:
    """Print to standard error; on a terminal the lines are wrapped between words.

    A stream that cannot be written is no error: the exit code remains.
    """
    if sys.stderr is None:
        return
    with suppress(OSError, ValueError):
        if sys.stderr.isatty():
            above, newline, last = message.rpartition("\n")  # above it, a traceback or the usage
            width = shutil.get_terminal_size().columns
            message = above + newline + textwrap.fill(last, width, break_long_words=False, break_on_hyphens=False)
        try:
            print(message, file=sys.stderr, flush=True)  # noqa: T201 - this is the command line
        except UnicodeEncodeError:
            print(message.encode("ascii", "backslashreplace").decode(), file=sys.stderr, flush=True)  # noqa: T201


def _one_line(message: str) -> str:
    """A message that no file name or value can break up, colour, or make longer than a screen."""
    text = _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), message)
    return text if len(text) <= _MAX_LENGTH else f"{text[:_HEAD]} [...] {text[_HEAD - _MAX_LENGTH :]}"


def _message(cause: BaseException, folder: Path | None) -> tuple[str, int]:
    if isinstance(cause, CryoEqError):
        return str(cause), cause.exit_code
    if isinstance(cause, Terminated):
        lost = f"{cause.__context__} " if isinstance(cause.__context__, LostProcessError) else ""
        return f"stopped by {cause}. {lost}What was saved stays; --resume goes on from there.", cause.exit_code
    if isinstance(cause, KeyboardInterrupt):
        return "stopped by Ctrl-C. What was saved stays; --resume goes on from there.", 130
    if isinstance(cause, OSError) and (refusal := _refusal(cause)):
        return refusal
    if _is_out_of_memory(cause):
        return (
            f"there is not enough memory ({_first_line(cause)}). "
            "Use a smaller batch or box (`cryoeq COMMAND --help` lists the options), or a device with more memory."
        ), 4
    return _bug(cause, folder), 1


def _refusal(cause: OSError) -> tuple[str, int] | None:
    """Message and exit code where the system refused something that we had asked for rightly."""
    if (explained := why_unwritable(cause)) is not None and cause.errno not in {errno.EACCES, errno.EPERM}:
        reason, advice, code = *explained, OutputError.exit_code
    elif cause.errno in _REFUSALS:
        reason, advice, code = _REFUSALS[cause.errno]
    else:
        return None
    names = [os.fsdecode(name) for name in (cause.filename, cause.filename2) if isinstance(name, str | bytes)]
    return str(CryoEqError(f"{' and '.join(names) or 'the output'}: {reason}", "", advice)), code


def _is_out_of_memory(cause: BaseException) -> bool:
    torch = sys.modules.get("torch")  # the command line itself never imports it
    if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM):
        return True
    if torch is not None and isinstance(cause, torch.OutOfMemoryError):
        return True
    # On the CPU torch raises a plain RuntimeError when malloc fails.
    return isinstance(cause, RuntimeError) and "DefaultCPUAllocator: " in str(cause)


def _first_line(cause: BaseException) -> str:
    return next(iter(str(cause).splitlines()), _name(cause))


def _name(cause: BaseException) -> str:
    return type(cause).__name__


def _bug(cause: BaseException, folder: Path | None) -> str:
    try:
        said = f"{_name(cause)}: {_first_line(cause)}"
    except Exception:  # noqa: BLE001 - an error that cannot say what it is
        said = _name(cause)
    path = _save_traceback(cause, folder)
    where = (
        f"The traceback is in {path}: please send it to us with the command you ran."
        if path
        else "Its traceback could not be saved: please run the command again with --debug, and send us what it prints."
    )
    return f"this is a bug of ours, not of your data ({said}). {where}"


def _save_traceback(cause: BaseException, folder: Path | None) -> Path | None:
    """The file of the traceback: in the run folder, else in the temporary one; None where neither can be written."""
    text = f"cryoeq {cryoeq.__version__}: {' '.join(sys.argv)}\n{''.join(traceback.format_exception(cause))}"
    content = text.encode("utf-8", "backslashreplace")
    with suppress(OSError):  # a full disk may be the very cause
        if folder is not None and folder.is_dir():
            path = folder / "traceback.txt"
            path.write_bytes(content)
            return path
    with suppress(OSError):
        descriptor, name = tempfile.mkstemp(prefix="cryoeq_", suffix="_traceback.txt")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        return Path(name)
    return None
