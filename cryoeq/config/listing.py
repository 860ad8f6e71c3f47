"""Every setting of a command in words: key, default, meaning, range."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cryoeq.config.frozen import FrozenConfig

_SEEDS = 2**63  # every integer that a seed can be: not worth telling
_NAMES = {int: "integer", float: "number", str: "text", Path: "path", bool: "true|false"}


@dataclass(frozen=True)
class Setting:
    """One line of ``--set``.

    Args:
        key: dotted.
        default: as ``--set`` takes it; empty where the setting has none.
        description: its meaning and unit.
        values: choices, or type and range.
    """

    key: str
    default: str
    description: str
    values: str


@dataclass(frozen=True)
class Section:
    """Settings that belong together.

    Args:
        title: first line of the section's documentation.
        settings: those of the section itself, in order.
    """

    title: str
    settings: tuple[Setting, ...]


def list_settings(kind: type[FrozenConfig]) -> Iterator[Section]:
    """All settings, the sections within a section after its own settings."""
    yield from _list(kind, "")


def _list(kind: type[BaseModel], above: str) -> Iterator[Section]:
    own, sections = [], []
    for name, field in kind.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            sections.append((name, annotation))
        else:
            own.append(_setting(above + name, field))
    if own:
        yield Section((kind.__doc__ or "").partition("\n")[0].rstrip("."), tuple(own))
    for name, section in sections:
        yield from _list(section, f"{above}{name}.")


def _setting(key: str, field: FieldInfo) -> Setting:
    default = "" if field.is_required() else _as_yaml(field.default)
    description = re.sub(r"\bNone\b", "null", field.description or "")
    return Setting(key, default, description, _values(field.annotation, field.metadata))


def _as_yaml(value: object) -> str:
    if isinstance(value, str | Path):
        return str(value)
    return json.dumps(value, separators=(",", ":"))


def _values(annotation: Any, metadata: list[Any]) -> str:
    """Choices, or type and range, of what a setting may be besides null."""
    if hasattr(annotation, "__metadata__"):
        return _values(get_args(annotation)[0], [*metadata, *annotation.__metadata__])
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        inner, *others = get_args(annotation)
        length = "list" if others == [...] else f"list of {1 + len(others)}"
        return f"{length}, each {_values(inner, metadata)}"
    alternatives = [kind for kind in get_args(annotation) if kind is not NoneType]
    if alternatives:
        return " or ".join(_values(kind, metadata) for kind in alternatives)
    return " ".join([_NAMES.get(annotation, str(annotation)), *_bounds(metadata)])


def _bounds(metadata: list[Any]) -> Iterator[str]:
    least = next((bound.ge for bound in metadata if isinstance(bound, Ge)), None)
    most = next((bound.le for bound in metadata if isinstance(bound, Le)), None)
    if least is not None:
        yield f"from {least}"
    yield from (f"above {bound.gt}" for bound in metadata if isinstance(bound, Gt))
    if most is not None:
        yield f"to {most}"
    yield from (f"to below {bound.lt}" for bound in metadata if isinstance(bound, Lt) and bound.lt != _SEEDS)
    yield from (f"in steps of {bound.multiple_of}" for bound in metadata if isinstance(bound, MultipleOf))
