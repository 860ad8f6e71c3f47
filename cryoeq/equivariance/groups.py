"""Groups of rotations and mirrors of the image plane, and their action on features."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from cryoeq.equivariance.fields import FieldKind, representation
from cryoeq.equivariance.irreps import (
    Irrep,
    element_of,
    elements,
    endomorphisms,
    has_mirrors,
    irrep_name,
    irrep_size,
    rotation_order,
)
from cryoeq.equivariance.representations import Representation

GroupName = Literal["c1", "c2", "c4", "c8", "c16", "d1", "d2", "d4", "d8", "d16", "so2", "o2"]
GROUP_NAMES: tuple[str, ...] = get_args(GroupName)


@dataclass(frozen=True)
class PlaneGroup:
    """A subgroup of O(2) that acts on images about their centre.

    Args:
        name: c1 (nothing), cN (rotations by 360 / N degrees), dN (those and mirrors), so2 (all rotations), o2 (those
            and mirrors).
    """

    name: str

    @property
    def is_trivial(self) -> bool:
        """Whether the group is c1, for which every layer is an ordinary one."""
        return self.name == "c1"

    @property
    def is_continuous(self) -> bool:
        """Whether hidden features are Fourier coefficients of functions on the group, not values on its elements."""
        return self.name in ("so2", "o2")

    @property
    def has_mirrors(self) -> bool:
        """Whether the group holds reflections."""
        return has_mirrors(self.name)

    @property
    def is_grid_exact(self) -> bool:
        """Whether every element maps a square pixel grid to itself."""
        return self.rotation_order in (1, 2, 4)

    @property
    def rotation_order(self) -> int:
        """Number of rotations; 0 for all of them."""
        return rotation_order(self.name)

    def dim(self, kind: FieldKind) -> int:
        """Channels of one field."""
        return int(representation(self.name, kind).size)

    def action(self, kind: FieldKind, g: Float[Tensor, "2 2"]) -> Float[Tensor, "dim dim"]:
        """Representation matrix of an element, given as a matrix on (x, y), on one field; in float64.

        Raises:
            ValueError: the matrix is no element of the group.
        """
        return torch.from_numpy(representation(self.name, kind)(element_of(self.name, g.double().numpy())))

    def elements(self, *, grid_exact: bool = True, rotations: int = 16) -> Float[Tensor, "elements 2 2"]:
        """Elements as matrices on (x, y), y downwards, in float64.

        Args:
            grid_exact: whether to keep only those that map a square pixel grid to itself.
            rotations: number of rotations that sample so2 or o2.
        """
        order = self.rotation_order or rotations
        steps = [k for k in range(order) if not grid_exact or (4 * k) % order == 0]
        angles = torch.tensor([2 * math.pi * k / order for k in steps], dtype=torch.float64)
        cos, sin = angles.cos(), angles.sin()
        rotated = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        rotated = rotated.round() if grid_exact else rotated
        if not self.has_mirrors:
            return rotated
        return torch.cat([rotated, rotated @ torch.diag(torch.tensor([-1.0, 1.0], dtype=torch.float64))])

    def invariants(self, kind: FieldKind) -> Float[Tensor, "basis dim"]:
        """Orthonormal basis of the invariant components of a field: those that a bias may have."""
        if self.is_trivial:
            return torch.eye(self.dim(kind))
        parts = representation(self.name, kind).parts
        kept = [columns for irrep, columns in parts if irrep == Irrep(0)]
        rows = np.concatenate([np.zeros((self.dim(kind), 0)), *kept], 1).T.copy()
        return torch.from_numpy(rows).to(torch.get_default_dtype())

    def regular_representation(self) -> "RegularRepresentation":
        """Action of the group on functions on its elements: the hidden fields of a finite group.

        Raises:
            ValueError: the group is continuous.
        """
        if self.is_continuous:
            raise ValueError(f"{self.name} has no regular representation of finite size")
        if self.is_trivial:
            one = torch.ones(1, 1, dtype=torch.float64)
            return RegularRepresentation(torch.eye(2, dtype=torch.float64)[None], one, ((0,),), (False,))
        return _regular_representation(self.name)

    def irrep_spans(self, kind: FieldKind) -> "tuple[IrrepSpan, ...]":
        """Decomposition of one field into irreps, each with its multiplicity, in the order of their names."""
        if self.is_trivial:
            return (IrrepSpan("0", 1, 1, torch.eye(self.dim(kind), dtype=torch.float64)),)
        return _irrep_spans(self.name, kind)


@dataclass(frozen=True)
class RegularRepresentation:
    """Functions on a finite group, and their decomposition into irreps.

    Args:
        elements: elements in the order of a field's components, as matrices on (x, y), y downwards.
        change: orthogonal matrix whose columns span the irreps.
        columns: columns of all copies of each irrep, one copy after the other.
        is_complex: whether each irrep is of complex type, its matrices those of complex numbers.
    """

    elements: Float[Tensor, "order 2 2"]
    change: Float[Tensor, "order order"]
    columns: tuple[tuple[int, ...], ...]
    is_complex: tuple[bool, ...]


@dataclass(frozen=True)
class IrrepSpan:
    """Isotypic subspace: all copies of one irrep in a field.

    Args:
        irrep: name of the irrep.
        dim: dimension of the irrep.
        constituents: dimension of the algebra of maps that commute with the irrep: 1 for real type, 2 for complex
            type.
        basis: orthonormal columns, those of one copy after those of the other.
    """

    irrep: str
    dim: int
    constituents: int
    basis: Float[Tensor, "field copies_dim"]


def permute_pixels(images: Shaped[Tensor, "*batch n n"], g: Float[Tensor, "2 2"]) -> Shaped[Tensor, "*batch n n"]:
    """The images g.I, (g.I)(x) = I(g^-1 x) about the centre of the array, for g that maps the pixel grid to itself."""
    swaps = bool(g[0, 0] == 0)
    transposed = images.transpose(-2, -1) if swaps else images
    signs = g.sum(1)
    return transposed.flip([axis for axis, sign in ((-1, signs[0]), (-2, signs[1])) if sign < 0])


@lru_cache
def plane_group(name: str) -> PlaneGroup:
    """The group of that name.

    Raises:
        ValueError: there is no such group.
    """
    if name not in GROUP_NAMES:
        raise ValueError(f"unknown group {name!r}; the groups are {', '.join(GROUP_NAMES)}")
    return PlaneGroup(name)


@lru_cache
def _regular_representation(name: str) -> RegularRepresentation:
    regular = representation(name, "regular")
    columns = _columns_by_irrep(regular)
    return RegularRepresentation(
        torch.from_numpy(np.stack([g.matrix for g in elements(name)])),
        torch.from_numpy(regular.change),
        tuple(tuple(indices) for indices in columns.values()),
        tuple(len(endomorphisms(name, irrep)) == 2 for irrep in columns),
    )


@lru_cache
def _irrep_spans(name: str, kind: FieldKind) -> tuple[IrrepSpan, ...]:
    acts = representation(name, kind)
    spans = [
        IrrepSpan(
            irrep_name(name, irrep),
            irrep_size(name, irrep),
            len(endomorphisms(name, irrep)),
            torch.from_numpy(acts.change[:, indices]),
        )
        for irrep, indices in _columns_by_irrep(acts).items()
    ]
    return tuple(sorted(spans, key=lambda span: span.irrep))


def _columns_by_irrep(acts: Representation) -> dict[Irrep, list[int]]:
    """Columns of all copies of each irrep, in the order in which the irreps first occur."""
    columns: dict[Irrep, list[int]] = {}
    for irrep, block in zip(acts.irreps, acts.blocks, strict=True):
        columns.setdefault(irrep, []).extend(range(block.start, block.stop))
    return columns
