"""Representations of the plane's groups: orthogonal sums of irreps, in the basis of a field's components."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from cryoeq.equivariance.irreps import (
    FLIP,
    Element,
    Irrep,
    Matrix,
    clebsch_gordan,
    elements,
    endomorphisms,
    has_mirrors,
    irrep_matrix,
    irrep_of,
    irrep_size,
    irreps_up_to,
    is_paired,
    require_subgroup,
    rotation,
    rotation_order,
)


@dataclass(frozen=True, eq=False)
class Representation:
    """A representation, rho(g) = Q blockdiag(irreps at g) Q^T.

    Args:
        group: name of the group.
        irreps: the irreps, as often as they occur.
        change: the orthogonal matrix Q, from the components of the irreps to those of the field.
    """

    group: str
    irreps: tuple[Irrep, ...]
    change: Float[np.ndarray, "size size"]

    @property
    def size(self) -> int:
        """Number of components."""
        return len(self.change)

    @cached_property
    def blocks(self) -> tuple[slice, ...]:
        """Columns of Q that each irrep has."""
        stops = np.cumsum([irrep_size(self.group, irrep) for irrep in self.irreps])
        return tuple(slice(int(start), int(stop)) for start, stop in zip([0, *stops[:-1]], stops, strict=True))

    @property
    def parts(self) -> list[tuple[Irrep, Matrix]]:
        """Each irrep, with its columns of Q."""
        return [(irrep, self.change[:, block]) for irrep, block in zip(self.irreps, self.blocks, strict=True)]

    def __call__(self, g: Element) -> Matrix:
        """The matrix at an element."""
        diagonal = np.zeros_like(self.change)
        for irrep, block in zip(self.irreps, self.blocks, strict=True):
            diagonal[block, block] = irrep_matrix(self.group, irrep, g)
        return self.change @ diagonal @ self.change.T


def sum_of(name: str, irreps: Sequence[Irrep]) -> Representation:
    """The direct sum of irreps.

    Raises:
        ValueError: the group has no such irrep.
    """
    known = tuple(irrep_of(name, irrep) for irrep in irreps)
    return Representation(name, known, np.eye(sum(irrep_size(name, irrep) for irrep in known)))


def restricted(whole: Representation, name: str) -> Representation:
    """A representation of a larger group on the elements of a smaller one.

    Raises:
        ValueError: the smaller group is no subgroup.
    """
    require_subgroup(whole.group, name)
    irreps: list[Irrep] = []
    change = whole.change.copy()
    order = rotation_order(name)
    for irrep, block in zip(whole.irreps, whole.blocks, strict=True):
        frequency = irrep.frequency % order if order else irrep.frequency
        if 2 * frequency > order > 0:  # as seen by fewer rotations it turns the other way
            frequency = order - frequency
            change[:, block.stop - 1] *= -1
        is_split = irrep_size(whole.group, irrep) == 2 and is_paired(name, frequency)
        for is_odd in (False, True) if is_split else (irrep.is_odd,):
            irreps.append(Irrep(frequency, is_odd and has_mirrors(name)))
    return Representation(name, tuple(irreps), change)


def plane_vectors(name: str) -> Representation:
    """The action on (x, y), y downwards."""
    y_up = rotation(math.pi / 2).round() if has_mirrors(name) else np.eye(2)
    whole = Representation("o2" if has_mirrors(name) else "so2", (Irrep(1),), FLIP @ y_up)
    return restricted(whole, name)


def product_of(first: Representation, second: Representation) -> Representation:
    """The tensor product of two representations of a group, the second's components running faster."""
    name = first.group
    irreps: list[Irrep] = []
    columns: list[Matrix] = []
    for (one, rows), (other, more) in itertools.product(first.parts, second.parts):
        into = np.kron(rows, more)
        for irrep in irreps_up_to(name, one.frequency + other.frequency):
            for isometry in clebsch_gordan(name, one, other, irrep):
                irreps.append(irrep)
                columns.append(into @ isometry)
    return Representation(name, tuple(irreps), np.concatenate(columns, 1))


def invariant_vectors(name: str, irrep: Irrep, subgroup: str) -> list[Float[np.ndarray, " size"]]:
    """Vectors of an irrep that a subgroup does not change, one for each copy of it among functions on the cosets.

    Where a quarter turn commutes with the irrep it takes a vector to another one, which is left out.
    """
    require_subgroup(name, subgroup)
    within = restricted(sum_of(name, [irrep]), subgroup)
    fixed = [columns[:, 0] for part, columns in within.parts if part == Irrep(0)]
    return fixed[: len(fixed) // len(endomorphisms(name, irrep))]


def functions_on_cosets(name: str, subgroup: str) -> Representation:
    """Functions on the elements of a finite group that do not change under a subgroup's right action, by their values.

    One value for each coset, in the order of its first element; for c1 one for each element, the regular
    representation. Columns of Q are the matrix elements of the irreps (Peter and Weyl).
    """
    representatives = _representatives(name, subgroup)
    irreps: list[Irrep] = []
    columns: list[Matrix] = []
    for irrep in irreps_up_to(name, rotation_order(name)):
        for vector in invariant_vectors(name, irrep, subgroup):
            values = np.stack([irrep_matrix(name, irrep, g) @ vector for g in representatives])
            irreps.append(irrep)
            columns.append(values * math.sqrt(len(vector) / len(representatives)))
    return Representation(name, tuple(irreps), np.concatenate(columns, 1))


def band_limited_functions(name: str, frequency: int, subgroup: str) -> Representation:
    """The same by their Fourier coefficients up to a frequency; for so2 and o2 too."""
    return sum_of(name, [irrep for irrep, _ in _waves(name, frequency, subgroup)])


def peak_of_functions(name: str, frequency: int, subgroup: str) -> Float[np.ndarray, " coefficients"]:
    """Fourier coefficients of the function that is concentrated at the identity."""
    return np.concatenate([math.sqrt(len(vector)) * vector for _, vector in _waves(name, frequency, subgroup)])


def _waves(name: str, frequency: int, subgroup: str) -> list[tuple[Irrep, Float[np.ndarray, " size"]]]:
    """Irreps of band-limited functions, each with its invariant vector."""
    irreps = irreps_up_to(name, frequency)
    return [(irrep, vector) for irrep in irreps for vector in invariant_vectors(name, irrep, subgroup)]


def _representatives(name: str, subgroup: str) -> list[Element]:
    """The first element of each coset."""
    found: list[Element] = []
    seen: list[Matrix] = []
    within = [h.matrix for h in elements(subgroup)]
    for g in elements(name):
        if not any(np.allclose(g.matrix, other, atol=1e-6) for other in seen):
            found.append(g)
            seen += [g.matrix @ h for h in within]
    return found
