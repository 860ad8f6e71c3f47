"""Text and JSON files, written atomically."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryoeq.io.atomic import atomic_path


def write_text(path: Path, text: str, errors: str = "surrogateescape") -> None:
    """Write ``text`` as UTF-8, atomically; bytes read with ``surrogateescape`` return unchanged.

    Args:
        path: the file to create or replace.
        text: its content.
        errors: what becomes of characters that UTF-8 does not have, as for ``str.encode``.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors)


def write_json(path: Path, obj: object) -> None:
    """Write ``obj`` as indented JSON, atomically; NaN and infinity are refused, since JSON has neither."""
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text, errors="backslashreplace")  # bytes of file names as JSON's own escapes


@contextmanager
def name_in_utf8(path: Path) -> Iterator[str]:
    """A name of a file for libraries that take no other bytes than UTF-8: its own, or that of a link while it is read.

    Args:
        path: an existing file.

    Yields:
        The name, with the suffixes of the file.
    """
    if not any(0xDC80 <= ord(character) <= 0xDCFF for character in str(path)):  # bytes that are no UTF-8
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"file{''.join(path.suffixes)}"
        link.symlink_to(path.absolute())
        yield str(link)


def read_json(path: Path) -> Any:  # JSON has no narrower type
    """Contents of a file of ``write_json``."""
    return json.loads(path.read_text(encoding="utf-8"))
