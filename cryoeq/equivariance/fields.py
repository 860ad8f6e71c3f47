"""Fields: the kinds of features that a group of the plane acts on, by its representations."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from escnn.group import directsum
from jaxtyping import Float
from torch import Tensor

from cryoeq.equivariance.spaces import gspace, subgroup_id

FieldName = Literal["scalar", "hidden", "vector", "determinant", "regular"]
"""Kinds without parameters: an invariant number, a function on the group, a vector (x, y), a number whose sign mirrors
change, values on all elements.

``hidden`` is ``regular`` for a finite group and ``Fourier(2)`` for so2 and o2."""

_HIDDEN_FREQUENCY = 2


@dataclass(frozen=True)
class Quotient:
    """Values on the elements of a finite group that do not change under a subgroup's right action.

    Args:
        subgroup: name of the subgroup; c2 makes features of axes rather than of directions.
    """

    subgroup: str


@dataclass(frozen=True)
class Irrep:
    """One irreducible representation.

    Args:
        frequency: angular frequency of the irrep.
        is_odd: whether a mirror changes its sign, where there are two irreps of a frequency: at 0, and at half the
            number of rotations.
    """

    frequency: int
    is_odd: bool = False


@dataclass(frozen=True)
class Irreps:
    """Every irreducible representation up to a frequency, once.

    Args:
        frequency: highest angular frequency; at most that of the group where it is finite.
    """

    frequency: int


@dataclass(frozen=True)
class Fourier:
    """Fourier coefficients of a band-limited function on the group, or on its quotient by a subgroup.

    Args:
        frequency: highest angular frequency.
        subgroup: name of the subgroup; None for functions on the group itself.
    """

    frequency: int
    subgroup: str | None = None


SimpleKind = FieldName | Quotient | Irrep | Irreps | Fourier


@dataclass(frozen=True)
class Restricted:
    """A field of a larger group as a representation of a subgroup.

    Args:
        group: name of the larger group.
        kind: kind of field of the larger group.
    """

    group: str
    kind: SimpleKind


@dataclass(frozen=True)
class Product:
    """The tensor product of an irrep and a field, the field's components running faster.

    Args:
        irrep: first factor, an irreducible representation.
        kind: second factor, a kind of field.
    """

    irrep: Irrep
    kind: SimpleKind


FieldKind = SimpleKind | Restricted | Product


@lru_cache(maxsize=1024)
def representation(name: str, kind: FieldKind) -> Any:
    """The representation of one kind of field, as escnn's object."""
    space = gspace(name)
    group = space.fibergroup
    match kind:
        case "scalar":
            return group.trivial_representation
        case "vector":
            return space.basespace_action
        case "determinant" | Irrep():
            return _irrep(name, kind)
        case Irreps():
            return directsum([group.irrep(*key) for key in _irreps_up_to(name, kind.frequency)])
        case Restricted() | Product():
            return _composed(name, kind)
        case _:
            return _function_space(name, kind)


def is_vector(kind: FieldKind) -> bool:
    """Whether the components are (x, y) in our axes, whose y points down, as escnn's does not."""
    return kind == "vector" or (isinstance(kind, Restricted | Product) and kind.kind == "vector")


def fourier_of(name: str, kind: FieldKind) -> Fourier | None:
    """The Fourier kind of a field that holds coefficients of a function; None for all others."""
    if kind == "hidden" and name in ("so2", "o2"):
        return Fourier(_HIDDEN_FREQUENCY)
    return kind if isinstance(kind, Fourier) else None


def is_values(name: str, kind: FieldKind) -> bool:
    """Whether elements only permute the components, so that any pointwise function commutes with them."""
    if isinstance(kind, Restricted):
        return is_values(kind.group, kind.kind)
    is_hidden_values = kind == "hidden" and name not in ("so2", "o2")
    return is_hidden_values or kind in ("scalar", "regular") or isinstance(kind, Quotient)


def sampling_matrix(name: str, kind: FieldKind, samples: int | None = None) -> Tensor | None:
    """Matrix from the coefficients of a function on the group to its values on a uniform grid; None for value fields.

    Args:
        name: name of the group.
        kind: kind of the field.
        samples: number of rotations of the grid, for so2 and o2 (and the same number of mirrors); None for six per
            frequency, quarter rotations among them. A finite group is sampled on all its elements.

    Raises:
        ValueError: the field is no function on the group.
    """
    if is_values(name, kind):
        return None
    band = fourier_of(name, kind)
    if band is None:
        raise ValueError(f"a field of {kind} of {name} is no function: it cannot be sampled")
    group = gspace(name).fibergroup
    if name in ("so2", "o2"):
        grid = group.grid(N=samples or 4 * max(1, math.ceil(1.5 * band.frequency)), type="regular")
    else:
        grid = list(group.testing_elements())
    acts = representation(name, kind)
    peak = delta(name, kind)
    values = np.stack([acts(g) @ peak for g in grid]) / np.linalg.norm(peak)
    return torch.tensor(values, dtype=torch.get_default_dtype()) * values.shape[1] ** 0.5


def delta(name: str, kind: FieldKind) -> Float[np.ndarray, " components"]:
    """The function that is concentrated at the identity, in the components of a field."""
    band = fourier_of(name, kind)
    if band is None:
        identity: np.ndarray = np.eye(representation(name, kind).size)[0]
        return identity
    irreps = _irreps_up_to(name, band.frequency)
    group = gspace(name).fibergroup
    if band.subgroup is not None:
        space = group.homspace(subgroup_id(name, band.subgroup))
        trivial = space.H.trivial_representation.id
        sizes = [math.sqrt(group.irrep(*key).size) for key in irreps]
        columns = [space._dirac_kernel_ft(key, trivial).T.flatten() for key in irreps]
        return np.concatenate([size * column for size, column in zip(sizes, columns, strict=True)])
    parts = []
    for irrep in (group.irrep(*key) for key in irreps):
        multiplicity = irrep.size // irrep.sum_of_squares_constituents
        parts.append(math.sqrt(irrep.size) * np.eye(irrep.size)[:, :multiplicity].T.flatten())
    return np.concatenate(parts)


def _function_space(name: str, kind: FieldKind) -> Any:
    """Functions on the group or a quotient, as values or as coefficients."""
    group = gspace(name).fibergroup
    if name in ("so2", "o2") and (kind == "regular" or isinstance(kind, Quotient)):
        raise ValueError(f"{name} has infinitely many elements: hold coefficients, as Fourier does, in place of {kind}")
    if isinstance(kind, Quotient):
        return group.quotient_representation(subgroup_id(name, kind.subgroup))
    band = fourier_of(name, kind)
    if band is None:
        return group.regular_representation
    irreps = _irreps_up_to(name, band.frequency)
    if band.subgroup is None:
        return group.spectral_regular_representation(*irreps)
    return group.spectral_quotient_representation(subgroup_id(name, band.subgroup), *irreps)


def irreps_up_to(name: str, frequency: int) -> list[Irrep]:
    """All irreps up to a frequency, the trivial one first."""
    irreps = []
    for key in _irreps_up_to(name, frequency):
        is_dihedral = len(key) == 2
        order = 0 if name in ("so2", "o2") else int(name[1:])
        is_paired = is_dihedral and (key[1] == 0 or 2 * key[1] == order)
        if name == "d1":
            irreps.append(Irrep(0, is_odd=key == (1,)))
        else:
            irreps.append(Irrep(key[-1], is_odd=is_paired and key[0] == 1))
    return irreps


def _irreps_up_to(name: str, frequency: int) -> list[tuple[int, ...]]:
    """Escnn's names of all irreps up to a frequency, of which a finite group has a highest."""
    group = gspace(name).fibergroup
    if name in ("so2", "o2"):
        return list(group.bl_irreps(frequency))
    rotations = 2 if name == "d1" else int(name[1:])  # escnn takes the one mirror of d1 for a half-turn
    return list(group.bl_irreps(min(frequency, rotations // 2)))


def _irrep(name: str, kind: Irrep | Literal["determinant"]) -> Any:
    """One irrep; of a dihedral group those that are no pair of an even and an odd one have only one name."""
    space = gspace(name)
    group = space.fibergroup
    if kind == "determinant":
        return next(irrep for irrep in group.irreps() if irrep.size == 1 and _is_determinant(space, irrep))
    if name in ("c1", "d1"):
        return group.irrep(int(kind.is_odd))
    if name[0] == "c" or name == "so2":
        return group.irrep(kind.frequency)
    is_paired = kind.frequency == 0 or (name != "o2" and 2 * kind.frequency == int(name[1:]))
    return group.irrep(int(kind.is_odd or not is_paired), kind.frequency)


def _composed(name: str, kind: Restricted | Product) -> Any:
    """The larger group's representation on the elements of this one; or a tensor product."""
    if isinstance(kind, Product):
        return representation(name, kind.irrep).tensor(representation(name, kind.kind))
    whole = representation(kind.group, kind.kind)
    return whole if kind.group == name else whole.restrict(subgroup_id(kind.group, name))


def _is_determinant(space: Any, irrep: Any) -> bool:
    """Whether a one-dimensional representation is the determinant of the action on the plane."""
    elements = list(space.fibergroup.testing_elements())
    return all(np.isclose(irrep(g)[0, 0], np.linalg.det(space.basespace_action(g))) for g in elements)
