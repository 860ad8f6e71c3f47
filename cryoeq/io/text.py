"""Text and JSON files, written atomically."""

import json
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


def read_json(path: Path) -> Any:  # JSON has no narrower type
    """Contents of a file of ``write_json``."""
    return json.loads(path.read_text(encoding="utf-8"))
