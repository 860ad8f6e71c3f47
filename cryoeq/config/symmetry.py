"""The names of point groups, checked before any file is read."""

import re
from typing import Annotated

from pydantic import AfterValidator

_MAX_ORDER = 360


def _checked(name: str) -> str:
    match = re.fullmatch(r"[CD]([1-9]\d*)|T|O|I[12]?", name.strip().upper())
    if match is None or int(match[1] or 1) > _MAX_ORDER:
        raise ValueError(f"Expected C1, C2, ... C{_MAX_ORDER}, D1, D2, ..., T, O, I, I1 or I2")
    return name


def _all_checked(names: str) -> str:
    for name in point_groups(names):
        _checked(name)
    return names


def point_groups(names: str) -> tuple[str, ...]:
    """The point groups of a list with commas."""
    return tuple(name.strip() for name in names.split(","))


PointGroup = Annotated[str, AfterValidator(_checked)]
PointGroups = Annotated[str, AfterValidator(_all_checked)]
