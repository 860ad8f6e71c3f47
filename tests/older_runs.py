"""Records as version 0.1 wrote them, made of those of today."""

from collections.abc import Mapping
from typing import Any

from cryoeq.config.older_keys import REMOVED, RENAMED


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings under dotted keys."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def with_older_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run, nested, under the keys of version 0.1."""
    older = {new: old for old, new in RENAMED.items()}
    values = {older.get(key, key): value for key, value in flat(settings).items()}
    values |= {key: gone.neutral for key, gone in REMOVED.items()}
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return nested
