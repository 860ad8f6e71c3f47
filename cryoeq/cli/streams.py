"""Standard streams that can always be written to, whatever the shell made of them.

A closed stream becomes the null device: else the next file that is opened would get its number, and with it what is
printed. Characters that the locale cannot write become ASCII, and the bytes of file names return as they were.
"""

import codecs
import io
import os
import sys
from contextlib import suppress
from typing import Any

from cryoeq.errors import OutputClosed, OutputError

_ERRORS = "cryoeq-ascii"
_IN_ASCII = {"Å": "A", "°": "deg", "µ": "u", "μ": "u", "σ": "sigma", "×": "x", "−": "-", "–": "-", "…": "...", "²": "2"}


def prepare_streams() -> None:
    """Open what is closed, and let no character raise an error."""
    codecs.register_error(_ERRORS, _in_ascii)
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(descriptor, "w", encoding="utf-8", errors=_ERRORS, closefd=False))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def finish_streams() -> None:
    """Write what is buffered; what cannot be written is dropped, so that the interpreter ends in peace.

    Raises:
        OutputClosed: nobody reads standard output any longer.
        OutputError: the file or disk behind it cannot take it.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError as error:
        raise OutputClosed from error
    except OSError as error:
        raise OutputError(f"standard output cannot be written ({error.strerror})", "", "Make room for it") from error
    except ValueError:  # closed by the program itself
        pass
    finally:
        for stream in (sys.stdout, sys.stderr):
            _drop_unwritable(stream)


def _drop_unwritable(stream: Any) -> None:
    """Send what a stream still buffers to the null device, where it cannot be written."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):  # a stream without a descriptor
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """Stand-in for the first character that an encoding does not have, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    after = error.start + 1
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte of a file name that is no UTF-8
        return bytes([ord(character) - 0xDC00]), after
    return _IN_ASCII.get(character) or character.encode("ascii", "backslashreplace").decode("ascii"), after
