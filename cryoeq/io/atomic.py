"""Atomic writing of files: a reader sees the old file or the new one."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryoeq.errors import OutputError

_ADVICE = {
    errno.ENOSPC: ("the disk is full", "Free some space or write to another folder with -o"),
    errno.EDQUOT: ("your disk quota is used up", "Free some space or write to another folder with -o"),
    errno.EFBIG: (
        "the file is larger than is allowed",
        "Raise the limit (ulimit -f) or write to another folder with -o",
    ),
    errno.EACCES: ("permission denied", "Make the folder writable or choose another one with -o"),
    errno.EPERM: ("permission denied", "Make the folder writable or choose another one with -o"),
    errno.EROFS: ("the file system is read-only", "Choose another folder with -o"),
    errno.ENOENT: ("its folder does not exist", "Create the folder or choose another one"),
    errno.ENOTDIR: ("a part of its path is a file, not a folder", "Choose another path"),
    errno.EISDIR: ("a folder of that name exists", "Choose another name"),
}


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place when the block ends without an error.

    A reader sees the old file or the new one, never half of it, also after a crash: the bytes are forced to the disk
    before the rename.

    Args:
        path: the file to create or replace; its folder must exist.

    Yields:
        The name to write to, with the suffix of ``path``.

    Raises:
        OutputError: the disk is full or the path cannot be written.
    """
    if not path.name:
        raise OutputError(f"{path} could not be written: it is a folder", "", "Choose another name")
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        _force_to_disk(temporary)
        temporary.replace(path)
        _force_to_disk(path.parent)
    except OSError as error:
        if (explained := why_unwritable(error)) is None:
            raise
        reason, advice = explained
        raise OutputError(f"{path} could not be written: {reason}", "", advice) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def why_unwritable(error: OSError) -> tuple[str, str] | None:
    """Why a file cannot be written, and what to do; None where the system's reason is none of these."""
    return _ADVICE.get(error.errno or 0)


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
