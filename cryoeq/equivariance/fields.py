"""Fields: the kinds of features that a group of the plane acts on, by its representations."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.equivariance.irreps import Irrep, elements, irreps_up_to
from cryoeq.equivariance.representations import (
    Representation,
    band_limited_functions,
    functions_on_cosets,
    peak_of_functions,
    plane_vectors,
    product_of,
    restricted,
    sum_of,
)

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
def representation(name: str, kind: FieldKind) -> Representation:
    """The representation of one kind of field."""
    match kind:
        case "vector":
            return plane_vectors(name)
        case "scalar" | "determinant" | Irrep() | Irreps():
            return sum_of(name, _irreps(name, kind))
        case Product():
            return product_of(sum_of(name, [kind.irrep]), representation(name, kind.kind))
        case Restricted():
            return restricted(representation(kind.group, kind.kind), name)
        case _:
            return _function_space(name, kind)


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
    grid = elements(name, samples or 4 * max(1, math.ceil(1.5 * band.frequency)))
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
    return peak_of_functions(name, band.frequency, band.subgroup or "c1")


def _irreps(name: str, kind: Literal["scalar", "determinant"] | Irrep | Irreps) -> list[Irrep]:
    """The irreps of a field that is a sum of some."""
    if isinstance(kind, Irreps):
        return irreps_up_to(name, kind.frequency)
    return [kind if isinstance(kind, Irrep) else Irrep(0, is_odd=kind == "determinant")]


def _function_space(name: str, kind: FieldKind) -> Representation:
    """Functions on the group or a quotient, as values or as coefficients."""
    if name in ("so2", "o2") and (kind == "regular" or isinstance(kind, Quotient)):
        raise ValueError(f"{name} has infinitely many elements: hold coefficients, as Fourier does, in place of {kind}")
    band = fourier_of(name, kind)
    if band is not None:
        return band_limited_functions(name, band.frequency, band.subgroup or "c1")
    return functions_on_cosets(name, kind.subgroup if isinstance(kind, Quotient) else "c1")
