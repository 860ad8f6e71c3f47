"""Point groups of rotations with RELION's axes: Cn, Dn, T, O, I (I1 and I2)."""

import math
import re

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryoeq.errors import ConfigError
from cryoeq.geometry.so3 import rotation_from_vector

_GOLDEN = (1 + math.sqrt(5)) / 2

# (order, axis x, y, z) of two generating rotations. RELION's I is I2.
_POLYHEDRAL: dict[str, tuple[tuple[int, float, float, float], ...]] = {
    "T": ((3, 0.0, 0.0, 1.0), (2, 0.0, math.sqrt(2), 1.0)),
    "O": ((4, 0.0, 0.0, 1.0), (3, 1.0, 1.0, 1.0)),
    "I1": ((2, 1.0, 0.0, 0.0), (5, _GOLDEN, 0.0, -1.0)),
    "I2": ((2, 0.0, 0.0, 1.0), (5, 1.0, 0.0, _GOLDEN)),
}
_POLYHEDRAL["I"] = _POLYHEDRAL["I2"]
_MAX_ORDER = 360
_TOLERANCE = 1e-4
_GENERIC_DIRECTION = (0.215, 0.378, 0.901)  # on no axis and no mirror plane of any group


def symmetry_rotations(name: str) -> Float[Tensor, "order 3 3"]:
    """All rotations of a point group, in float64, the identity first.

    Args:
        name: ``C1``, ``C4``, ``D7``, ``T``, ``O``, ``I``, ``I1`` or ``I2``, in capitals or not. Cn: n-fold on z; Dn:
            also 2-fold on x; T: 3-fold on z; O: 4-fold on z; I (= I2) and I1: 2-folds on the axes.

    Raises:
        ConfigError: no such group.
    """
    return _generate([_about(*generator) for generator in _generators(name)])


def is_polyhedral(name: str) -> bool:
    """Whether a point group is T, O or I, whose axes meet in one point and leave it no freedom."""
    return name.strip().upper() in _POLYHEDRAL


def frames_of_polyhedral_group(name: str) -> Float[Tensor, "frames 3 3"]:
    """Rotations that take the axes of T, O or I onto themselves, one of each coset of the group: two for T, else one.

    Args:
        name: T, O, I, I1 or I2.
    """
    identity = torch.eye(3, dtype=torch.float64)[None]
    is_tetrahedral = name.strip().upper() == "T"
    # A quarter turn about a 2-fold axis of T is in the octahedral group.
    return torch.cat([identity, _about(4, 0.0, math.sqrt(2), 1.0)[None]]) if is_tetrahedral else identity


def split_over_lattice(
    group: Float[Tensor, "order 3 3"],
) -> tuple[Float[Tensor, "cosets 3 3"], Float[Tensor, "elements 3 3"]]:
    """Rotations r and s with each element of a group once as r s, where s permutes the axes of a grid, signs apart.

    Args:
        group: rotations, a group.
    """
    is_permutation = ((group - group.round()).abs() < _TOLERANCE).all((-2, -1))
    on_lattice = group[is_permutation]
    representatives: list[Tensor] = []
    for element in group:
        cosets = torch.stack(representatives) @ on_lattice[:, None] if representatives else group[:0, None]
        if not bool(((cosets - element).abs() < _TOLERANCE).all((-2, -1)).any()):
            representatives.append(element)
    return torch.stack(representatives), on_lattice.round()


def in_asymmetric_unit(
    directions: Float[Tensor, "directions 3"], group: Float[Tensor, "order 3 3"]
) -> Bool[Tensor, " directions"]:
    """Whether each direction, or its opposite, is the one of its orbit to keep: that nearest to a fixed direction.

    Of the directions +-g d over all g in the group one pair at most is kept, and one pair exactly but where two are
    equally near.

    Args:
        directions: unit vectors; of an opposite pair both are kept or neither.
        group: rotations, a group.
    """
    near = directions.new_tensor(_GENERIC_DIRECTION)
    distances = (directions @ (group.to(directions) @ near).T).abs()
    return distances[:, 0] >= distances.amax(1)


def _generators(name: str) -> tuple[tuple[int, float, float, float], ...]:
    key = name.strip().upper()
    if key in _POLYHEDRAL:
        return _POLYHEDRAL[key]
    match = re.fullmatch(r"([CD])([1-9]\d*)", key)
    if match is None or int(match[2]) > _MAX_ORDER:
        raise ConfigError(
            f"symmetry {name!r} is not known",
            f"Expected one of C1, C2, ... C{_MAX_ORDER}, D1, D2, ..., T, O, I, I1, I2",
            "Check --sym",
        )
    principal = (int(match[2]), 0.0, 0.0, 1.0)
    return (principal,) if match[1] == "C" else (principal, (2, 1.0, 0.0, 0.0))


def _about(order: int, x: float, y: float, z: float) -> Float[Tensor, "3 3"]:
    axis = torch.tensor([x, y, z], dtype=torch.float64)
    return rotation_from_vector(axis / axis.norm() * (2 * math.pi / order))


def _generate(generators: list[Float[Tensor, "3 3"]]) -> Float[Tensor, "order 3 3"]:
    """The closure: multiply the newest elements by the generators until nothing new appears."""
    elements = torch.eye(3, dtype=torch.float64)[None]
    newest = elements
    while len(newest):
        products = torch.cat([newest @ generator for generator in generators])
        fresh: list[Tensor] = []
        for product in products:
            known = torch.cat([elements, *[element[None] for element in fresh]])
            if (known - product).abs().amax((-2, -1)).min() > 1e-6:
                fresh.append(product)
        newest = torch.stack(fresh) if fresh else elements[:0]
        elements = torch.cat([elements, newest])
    return elements
