"""Which message and which exit code an error becomes."""

import io
import shutil
import sys
import tempfile
import textwrap
import traceback
from pathlib import Path
from typing import Any

import cryoeq
from cryoeq.errors import CryoEqError, LostProcessError, Terminated
from cryoeq.runtime.torchrun import torchrun_environment


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
        return _wrong_use(error)
    cause = error.__cause__ if isinstance(error, CrashError) and error.__cause__ is not None else error
    message, code = _message(cause, error.folder if isinstance(error, CrashError) else None)
    trace = "".join(traceback.format_exception(cause)) if debug else ""
    me = torchrun_environment()
    who = f"cryoeq, process {me.rank + 1} of {me.size}" if me.size > 1 else "cryoeq"
    return f"{trace}{who}: {message}", code


def print_message(message: str) -> None:
    """Print to standard error; on a terminal the lines are wrapped between words."""
    if sys.stderr.isatty():
        above, newline, last = message.rpartition("\n")  # above it, a traceback or the usage
        width = shutil.get_terminal_size().columns
        message = above + newline + textwrap.fill(last, width, break_long_words=False, break_on_hyphens=False)
    print(message, file=sys.stderr)  # noqa: T201 - this is the command line


def _wrong_use(error: Any) -> tuple[str, int]:
    """Typer's own message, which begins with the usage of the command."""
    if hasattr(error, "message"):
        error.message = error.message.replace("Value error, ", "")  # of pydantic, on its choices
    shown = io.StringIO()
    error.show(file=shown)
    return shown.getvalue().rstrip("\n"), error.exit_code


def _message(cause: BaseException, folder: Path | None) -> tuple[str, int]:
    if isinstance(cause, CryoEqError):
        return str(cause), cause.exit_code
    if isinstance(cause, Terminated):
        lost = f"{cause.__context__} " if isinstance(cause.__context__, LostProcessError) else ""
        return f"stopped by {cause}. {lost}What was saved stays; --resume goes on from there.", cause.exit_code
    if isinstance(cause, KeyboardInterrupt):
        return "stopped by Ctrl-C. What was saved stays; --resume goes on from there.", 130
    if _is_out_of_memory(cause):
        return (
            f"there is not enough memory ({_first_line(cause)}). "
            "Use a smaller batch or box (`cryoeq COMMAND --help` lists the options), or a device with more memory."
        ), 4
    return _bug(cause, folder), 1


def _is_out_of_memory(cause: BaseException) -> bool:
    torch = sys.modules.get("torch")  # the command line itself never imports it
    if isinstance(cause, MemoryError) or (torch is not None and isinstance(cause, torch.OutOfMemoryError)):
        return True
    # On the CPU torch raises a plain RuntimeError when malloc fails.
    return isinstance(cause, RuntimeError) and "DefaultCPUAllocator: " in str(cause)


def _first_line(cause: BaseException) -> str:
    return next(iter(str(cause).splitlines()), type(cause).__name__)


def _bug(cause: BaseException, folder: Path | None) -> str:
    path = _save_traceback(cause, folder)
    where = f"The traceback is in {path}: please send it to us with the command you ran."
    return f"this is a bug of ours, not of your data ({type(cause).__name__}: {_first_line(cause)}). {where}"


def _save_traceback(cause: BaseException, folder: Path | None) -> Path:
    text = f"cryoeq {cryoeq.__version__}: {' '.join(sys.argv)}\n{''.join(traceback.format_exception(cause))}"
    if folder is not None and folder.is_dir():
        try:
            path = folder / "traceback.txt"
            path.write_text(text, encoding="utf-8")
        except OSError:  # a full disk may be the very cause
            pass
        else:
            return path
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", prefix="cryoeq_", suffix="_traceback.txt", delete=False
    ) as file:
        file.write(text)
    return Path(file.name)
