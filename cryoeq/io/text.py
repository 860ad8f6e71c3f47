"""Text and JSON files, written atomically."""

import json
from pathlib import Path
from typing import Any

from cryoeq.io.atomic import atomic_path


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all; bytes read with ``surrogateescape`` come back as they were."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path: Path, obj: object) -> None:
    """Write ``obj`` as indented JSON, whole or not at all; NaN and infinity are refused, since JSON has neither."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:  # JSON has no narrower type
    """What ``write_json`` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))
