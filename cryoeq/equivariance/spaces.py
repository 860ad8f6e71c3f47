"""Groups of the plane as escnn's objects: spaces, elements and subgroups."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from escnn import gspaces
from jaxtyping import Float

MAXIMUM_FREQUENCY = 12

_FLIP = np.diag([1.0, -1.0])
"""escnn's y axis points up, that of array rows down."""


@lru_cache
def gspace(name: str) -> Any:
    """The plane with a group acting on it."""
    if name == "c1":
        return gspaces.trivialOnR2()
    if name == "d1":
        return gspaces.flip2dOnR2()
    if name in ("so2", "o2"):
        build = gspaces.rot2dOnR2 if name == "so2" else gspaces.flipRot2dOnR2
        return build(-1, maximum_frequency=MAXIMUM_FREQUENCY)
    build = gspaces.rot2dOnR2 if name[0] == "c" else gspaces.flipRot2dOnR2
    return build(int(name[1:]))


def element_of(name: str, g: Float[np.ndarray, "2 2"]) -> Any:
    """The element of escnn's group that acts on the plane as the matrix g does on (x, y), y downwards."""
    space = gspace(name)
    group = space.fibergroup
    matrix = _FLIP @ g @ _FLIP
    mirror = _mirror(name)
    is_mirrored = np.linalg.det(matrix) < 0
    if is_mirrored:
        if mirror is None:
            raise ValueError(f"{name} has no mirrors")
        matrix = matrix @ np.linalg.inv(space.basespace_action(mirror))
    rotation = _rotation(name, math.atan2(matrix[1, 0], matrix[0, 0]))
    element = rotation @ mirror if is_mirrored else rotation
    if not np.allclose(space.basespace_action(element), _FLIP @ g @ _FLIP, atol=1e-6):
        raise ValueError(f"{g.tolist()} is no element of {name}")
    return group.element(element.value, element.param)


def matrix_of(name: str, element: Any) -> Float[np.ndarray, "2 2"]:
    """The matrix by which an element of escnn's group acts on (x, y), y downwards."""
    return _FLIP @ gspace(name).basespace_action(element) @ _FLIP


def subgroup_id(name: str, subgroup: str) -> Any:
    """Identifier of a subgroup in escnn; its mirrors contain that of the whole group's first axis.

    Raises:
        ValueError: it is no subgroup.
    """
    order = -1 if subgroup in ("so2", "o2") else int(subgroup[1:])
    group_order = -1 if name in ("so2", "o2") else int(name[1:])
    has_mirrors, is_mirrored = name[0] in "do", subgroup[0] in "do"
    divides = group_order == -1 or (order > 0 and group_order % order == 0)
    if not divides or (is_mirrored and not has_mirrors):
        raise ValueError(f"{subgroup} is no subgroup of {name}")
    if name == "d1":
        return 2 if is_mirrored else 1
    if not has_mirrors:
        return order
    axis = 0.0 if name == "o2" else 0
    return (axis if is_mirrored else None, order)


def _mirror(name: str) -> Any:
    """One reflection of the group."""
    group = gspace(name).fibergroup
    if name == "d1":
        return group.element(1)
    if name == "o2":
        return group.element((1, 0.0), "radians")
    return group.element((1, 0)) if name[0] == "d" else None


def _rotation(name: str, angle_rad: float) -> Any:
    """The rotation by an angle, to the nearest element where the group is finite."""
    group = gspace(name).fibergroup
    if name == "so2":
        return group.element(angle_rad, "radians")
    if name == "o2":
        return group.element((0, angle_rad), "radians")
    order = int(name[1:])
    step = round(angle_rad * order / (2 * math.pi)) % order
    if name == "d1":
        return group.identity
    return group.element((0, step)) if name[0] == "d" else group.element(step)
