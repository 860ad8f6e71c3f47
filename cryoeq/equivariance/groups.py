"""The groups of rotations and mirrors of the image plane, and the kinds of features that they act on."""

import contextlib
import io
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from escnn import gspaces
from escnn.nn import FieldType, FourierPointwise, R2Conv
from jaxtyping import Float
from torch import Tensor

GroupName = Literal["c1", "c2", "c4", "c8", "d1", "d2", "d4", "d8", "so2", "o2"]
GROUP_NAMES: tuple[str, ...] = get_args(GroupName)

FieldKind = Literal["scalar", "hidden", "vector", "determinant"]
"""How a feature turns: not at all; as a function on the group; as a vector (x, y); by the sign of a mirror."""

_FOURIER_FREQUENCY = 2
_FOURIER_SAMPLES = 12
_MAXIMUM_FREQUENCY = 12


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
        return self.name[0] in "do"

    @property
    def is_grid_exact(self) -> bool:
        """Whether every element maps a square pixel grid to itself."""
        return self.rotation_order in (1, 2, 4)

    @property
    def rotation_order(self) -> int:
        """Number of rotations; 0 for all of them."""
        return 0 if self.is_continuous else int(self.name[1:])

    def dim(self, kind: FieldKind) -> int:
        """Channels of one field."""
        if self.is_trivial:
            return 2 if kind == "vector" else 1
        return int(_representation(self.name, kind).size)

    def elements(self, *, grid_exact: bool = True, rotations: int = 16) -> Float[Tensor, "elements 2 2"]:
        """Elements as matrices on (x, y), y downwards, in float64.

        Args:
            grid_exact: only those that map a square pixel grid to itself.
            rotations: how many rotations stand for all of so2 or o2.
        """
        order = self.rotation_order or rotations
        steps = [k for k in range(order) if not grid_exact or (4 * k) % order == 0]
        angles = torch.tensor([2 * math.pi * k / order for k in steps], dtype=torch.float64)
        cos, sin = angles.cos(), angles.sin()
        turns = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        turns = turns.round() if grid_exact else turns
        if not self.has_mirrors:
            return turns
        return torch.cat([turns, turns @ torch.diag(torch.tensor([-1.0, 1.0], dtype=torch.float64))])

    def kernel_basis(
        self, in_kind: FieldKind, out_kind: FieldKind, size: int
    ) -> Float[Tensor, "basis out in size size"]:
        """Steerable kernels between two kinds of fields, of squared norm ``out``: white noise keeps its variance."""
        return _kernel_basis(self.name, in_kind, out_kind, size).to(torch.get_default_dtype(), copy=True)

    def invariants(self, kind: FieldKind) -> Float[Tensor, "basis dim"]:
        """Orthonormal directions of a field that no element moves: those that a bias may have."""
        if self.is_trivial:
            return torch.eye(self.dim(kind))
        representation = _representation(self.name, kind)
        average = np.mean([representation(g) for g in _gspace(self.name).fibergroup.testing_elements()], axis=0)
        values, directions = np.linalg.eigh((average + average.T) / 2)
        kept = torch.from_numpy(directions[:, values > 0.999].T.copy()).to(torch.get_default_dtype())
        return kept * torch.tensor([1.0, -1.0]) if kind == "vector" else kept

    def regular_representation(self) -> "RegularRepresentation":
        """How the group permutes functions on its elements: the hidden fields of a finite group.

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
        """The irreps that one field falls apart into, each with all its copies, in the order of their names.

        Args:
            kind: of the field.
        """
        if self.is_trivial:
            return (IrrepSpan("0", 1, 1, torch.eye(self.dim(kind), dtype=torch.float64)),)
        return _irrep_spans(self.name, kind)

    def sampling_matrix(self) -> Float[Tensor, "samples coefficients"]:
        """Values, on a uniform grid of the group, of the function whose coefficients a hidden Fourier field holds."""
        layer = FourierPointwise(_gspace(self.name), 1, _band(self.name), N=_FOURIER_SAMPLES, type="regular")
        values: Tensor = layer.A
        return values.to(torch.get_default_dtype()) * math.sqrt(values.shape[1])


@dataclass(frozen=True)
class RegularRepresentation:
    """Functions on a finite group, and the irreps that they fall apart into.

    Args:
        elements: of the group, in the order of a field's components, as matrices on (x, y), y downwards.
        change: orthogonal; its columns span the irreps.
        columns: for each different irrep, the columns of its copies, one copy after the other.
        is_complex: for each different irrep of two dimensions, whether its matrices are those of complex numbers.
    """

    elements: Float[Tensor, "order 2 2"]
    change: Float[Tensor, "order order"]
    columns: tuple[tuple[int, ...], ...]
    is_complex: tuple[bool, ...]


@dataclass(frozen=True)
class IrrepSpan:
    """All copies of one irrep in a field.

    Args:
        irrep: its name.
        dim: its dimension.
        constituents: dimension of the algebra of maps that commute with it: 1 for an irrep of real type, 2 for one of
            complex type.
        basis: orthonormal; the columns of one copy after those of the other.
    """

    irrep: str
    dim: int
    constituents: int
    basis: Float[Tensor, "field copies_dim"]


def permute_pixels(images: Float[Tensor, "*batch n n"], g: Float[Tensor, "2 2"]) -> Float[Tensor, "*batch n n"]:
    """The images g.I, (g.I)(x) = I(g^-1 x) about the centre of the array, for g that maps the pixel grid to itself."""
    swaps = bool(g[0, 0] == 0)
    turned = images.transpose(-2, -1) if swaps else images
    signs = g.sum(1)
    return turned.flip([axis for axis, sign in ((-1, signs[0]), (-2, signs[1])) if sign < 0])


@lru_cache
def plane_group(name: str) -> PlaneGroup:
    """The group of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in GROUP_NAMES:
        raise ValueError(f"unknown group {name!r}; the groups are {', '.join(GROUP_NAMES)}")
    return PlaneGroup(name)


@lru_cache
def _gspace(name: str) -> Any:
    """The plane of escnn with this group acting on it."""
    if name == "d1":
        return gspaces.flip2dOnR2()
    if name in ("so2", "o2"):
        build = gspaces.rot2dOnR2 if name == "so2" else gspaces.flipRot2dOnR2
        return build(-1, maximum_frequency=_MAXIMUM_FREQUENCY)
    build = gspaces.rot2dOnR2 if name[0] == "c" else gspaces.flipRot2dOnR2
    return build(int(name[1:]))


def _band(name: str) -> list[tuple[int, ...]]:
    """Irreps of a hidden Fourier field."""
    return list(_gspace(name).fibergroup.bl_irreps(_FOURIER_FREQUENCY))


@lru_cache
def _representation(name: str, kind: FieldKind) -> Any:
    """The representation, in escnn's words, of one kind of field."""
    space = _gspace(name)
    group = space.fibergroup
    if kind == "scalar":
        return group.trivial_representation
    if kind == "vector":
        return space.basespace_action
    if kind == "determinant":
        return next(irrep for irrep in group.irreps() if irrep.size == 1 and _is_determinant(space, irrep))
    if name in ("so2", "o2"):
        return group.spectral_regular_representation(*_band(name))
    return group.regular_representation


@lru_cache
def _regular_representation(name: str) -> RegularRepresentation:
    space = _gspace(name)
    group = space.fibergroup
    regular = group.regular_representation
    flip = np.diag([1.0, -1.0])
    elements = np.stack([flip @ space.basespace_action(g) @ flip for g in group.elements])
    columns: dict[Any, list[int]] = {}
    first = 0
    for irrep in regular.irreps:
        size = group.irrep(*irrep).size
        columns.setdefault(irrep, []).extend(range(first, first + size))
        first += size
    is_complex = tuple(group.irrep(*irrep).type == "C" for irrep in columns)
    change = torch.from_numpy(np.asarray(regular.change_of_basis, dtype=np.float64))
    return RegularRepresentation(torch.from_numpy(elements), change, tuple(map(tuple, columns.values())), is_complex)


@lru_cache
def _irrep_spans(name: str, kind: FieldKind) -> tuple[IrrepSpan, ...]:
    representation = _representation(name, kind)
    basis = torch.from_numpy(np.asarray(representation.change_of_basis, dtype=np.float64))
    if kind == "vector":  # escnn's y axis points up, ours (array rows) down
        basis = basis * torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    columns: dict[Any, list[int]] = {}
    first = 0
    for identity in representation.irreps:
        irrep = representation.group.irrep(*identity)
        columns.setdefault(irrep, []).extend(range(first, first + irrep.size))
        first += irrep.size
    spans = [
        IrrepSpan(irrep.name.removeprefix("irrep_"), irrep.size, irrep.sum_of_squares_constituents, basis[:, places])
        for irrep, places in columns.items()
    ]
    return tuple(sorted(spans, key=lambda span: span.irrep))


def _is_determinant(space: Any, irrep: Any) -> bool:
    """Whether a one-dimensional representation is the determinant of the action on the plane."""
    elements = list(space.fibergroup.testing_elements())
    return all(np.isclose(irrep(g)[0, 0], np.linalg.det(space.basespace_action(g))) for g in elements)


@lru_cache(maxsize=256)
def _kernel_basis(name: str, in_kind: FieldKind, out_kind: FieldKind, size: int) -> Tensor:
    """Kernels of escnn in our axes and double precision; a pure function, remembered because d8 and o2 take seconds."""
    space = _gspace(name)
    representations = [_representation(name, kind) for kind in (in_kind, out_kind)]
    # escnn prints the Clebsch-Gordan coefficients that it solves for.
    with contextlib.redirect_stdout(io.StringIO()):
        types = [FieldType(space, [representation]) for representation in representations]
        layer = R2Conv(*types, size, bias=False, initialize=False, **_rings(plane_group(name), size))
    # One field on either side makes one block; expanding unit coefficients gives the same, but for d8 in half a minute.
    kernels = next(
        block.sampled_basis for block in layer.basisexpansion.modules() if hasattr(block, "sampled_basis")
    ).double()
    in_size, out_size = (representation.size for representation in representations)
    basis = _symmetrise(kernels.reshape(-1, out_size, in_size, size, size), space, *representations)
    # escnn's y axis points up, ours (array rows) down.
    if out_kind == "vector":
        basis[:, 1] *= -1
    if in_kind == "vector":
        basis[:, :, 1] *= -1
    norms = basis.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1, 1)
    return basis / norms * math.sqrt(out_size)


def _rings(group: PlaneGroup, size: int) -> dict[str, Any]:
    """Radii and widths of the kernels' Gaussian rings, in pixels; escnn's own for groups that the grid serves exactly.

    Between quarter turns, error comes from what the pixel grid cannot represent. Rings a pixel wide, ending a pixel
    inside the filter, have little power beyond the Nyquist frequency of the next, coarser level.
    """
    if group.is_grid_exact or size < 7:
        return {}
    return {"rings": [float(radius) for radius in range(size // 2)], "sigma": 1.0, "frequencies_cutoff": 1.0}


def _symmetrise(kernels: Tensor, space: Any, in_representation: Any, out_representation: Any) -> Tensor:
    """Average of rho_out(g) K(g^-1 x) rho_in(g)^-1 over the grid-exact elements: removes escnn's single precision."""
    flip = np.diag([1.0, -1.0])
    turned = []
    for element in space.fibergroup.testing_elements():
        action = flip @ space.basespace_action(element) @ flip
        if not np.allclose(action, action.round(), atol=1e-6):
            continue
        moved = permute_pixels(kernels, torch.from_numpy(action.round()))
        out_matrix = torch.from_numpy(out_representation(element))
        in_matrix = torch.from_numpy(in_representation(element))
        turned.append(torch.einsum("ac,kcdhw,bd->kabhw", out_matrix, moved, in_matrix))
    return torch.stack(turned).mean(0)
