"""Steerable kernels: the filters between two kinds of fields that commute with a group.

They are the solutions of::

    K(gx) = rho_out(g) K(x) rho_in(g)^-1

escnn solves it (Gaussian rings times circular harmonics); here its solutions are converted to axes with y
downwards.

Weiler and Cesa 2019, General E(2)-equivariant steerable CNNs (arXiv 1911.08251), section 2.4.
"""

import contextlib
import io
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from escnn.nn import FieldType, R2Conv
from jaxtyping import Float
from torch import Tensor, nn

from cryoeq.equivariance.fields import FieldKind, is_vector, representation
from cryoeq.equivariance.groups import PlaneGroup, permute_pixels, plane_group
from cryoeq.equivariance.spaces import gspace, matrix_of


@runtime_checkable
class KernelBasis(Protocol):
    """Kernels whose linear combinations are the filters of a layer: fixed, or with parameters."""

    count: int
    """Number of kernels."""

    def __call__(self) -> Float[Tensor, "basis out in size size"]:
        """The kernels."""
        ...


_LARGE_GROUPS = ("d16",)


class AnalyticBasis(nn.Module):
    """The fixed kernels of ``steerable_kernels``.

    Args:
        group: symmetry group of the layer.
        in_kind: kind of the input's fields.
        out_kind: kind of the output's fields.
        size: odd side of the kernels in pixels.
    """

    kernels: Tensor

    def __init__(self, group: PlaneGroup, in_kind: FieldKind, out_kind: FieldKind, size: int) -> None:
        super().__init__()
        self.register_buffer("kernels", steerable_kernels(group, in_kind, out_kind, size), persistent=False)
        self.count = len(self.kernels)

    def forward(self) -> Float[Tensor, "basis out in size size"]:
        """The kernels."""
        return self.kernels


def steerable_kernels(
    group: PlaneGroup, in_kind: FieldKind, out_kind: FieldKind, size: int
) -> Float[Tensor, "basis out in size size"]:
    """Steerable kernels between two kinds of fields, of squared norm ``out``: white noise keeps its variance."""
    return _kernels(group.name, in_kind, out_kind, size).to(torch.get_default_dtype(), copy=True)


@lru_cache(maxsize=256)
def _kernels(name: str, in_kind: FieldKind, out_kind: FieldKind, size: int) -> Tensor:
    """The kernels in double precision; a pure function, cached because d8 and o2 take seconds."""
    if name in _LARGE_GROUPS and not {in_kind, out_kind}.isdisjoint(("hidden", "regular")):
        basis = _induced(name, in_kind, out_kind, size)
    else:
        basis = _solved(name, in_kind, out_kind, size)
    norms = basis.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1, 1)
    return basis / norms * math.sqrt(basis.shape[1])


def _solved(name: str, in_kind: FieldKind, out_kind: FieldKind, size: int) -> Tensor:
    """Kernels of escnn, in axes with y downwards."""
    space = gspace(name)
    representations = [representation(name, kind) for kind in (in_kind, out_kind)]
    in_size, out_size = (kind.size for kind in representations)
    # escnn prints the Clebsch-Gordan coefficients that it solves for, and mixes precisions if the default is double.
    with contextlib.redirect_stdout(io.StringIO()), _single_precision():
        types = [FieldType(space, [kind]) for kind in representations]
        try:
            layer = R2Conv(*types, size, bias=False, initialize=False, **_rings(plane_group(name), size))
        except ValueError as error:
            if "basis for the steerable filter is empty" not in str(error):
                raise
            return torch.zeros(0, out_size, in_size, size, size, dtype=torch.float64)
    # One field of input and output makes one block; expanding unit coefficients gives the same, in 30 s for d8.
    kernels = next(
        block.sampled_basis for block in layer.basisexpansion.modules() if hasattr(block, "sampled_basis")
    ).double()
    basis = _symmetrise(kernels.reshape(-1, out_size, in_size, size, size), name, *representations)
    return _in_our_axes(basis, in_kind, out_kind)


@contextlib.contextmanager
def _single_precision() -> Iterator[None]:
    """Make float32 the default precision inside the block."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


def _in_our_axes(basis: Tensor, in_kind: FieldKind, out_kind: FieldKind) -> Tensor:
    """Flip vectors: escnn's y axis points up, that of array rows down."""
    signs = torch.tensor([1.0, -1.0], dtype=basis.dtype)
    if is_vector(out_kind):
        basis = basis * signs.repeat(basis.shape[1] // 2)[:, None, None, None]
    return basis * signs[:, None, None] if is_vector(in_kind) else basis


def _rings(group: PlaneGroup, size: int) -> dict[str, Any]:
    """Radii and widths of the kernels' Gaussian rings, in pixels; escnn's defaults for grid-exact groups.

    Between quarter turns, error comes from what the pixel grid cannot represent. Rings a pixel wide, ending a pixel
    inside the filter, have little power beyond the Nyquist frequency of the next, coarser level.
    """
    if group.is_grid_exact or size < 7:
        return {}
    return {"rings": [float(radius) for radius in range(size // 2)], "sigma": 1.0, "frequencies_cutoff": 1.0}


def _symmetrise(kernels: Tensor, name: str, in_representation: Any, out_representation: Any) -> Tensor:
    """Average of rho_out(g) K(g^-1 x) rho_in(g)^-1 over the grid-exact elements: removes escnn's single precision."""
    images = []
    for element in gspace(name).fibergroup.testing_elements():
        action = matrix_of(name, element)
        if not np.allclose(action, action.round(), atol=1e-6):
            continue
        moved = permute_pixels(kernels, torch.from_numpy(action.round()))
        out_matrix = torch.from_numpy(out_representation(element))
        in_matrix = torch.from_numpy(in_representation(element))
        images.append(torch.einsum("ac,kcdhw,bd->kabhw", out_matrix, moved, in_matrix))
    return torch.stack(images).mean(0)


def _induced(name: str, in_kind: FieldKind, out_kind: FieldKind, size: int) -> Tensor:
    """Kernels from or to a regular field of a finite group, without Clebsch-Gordan coefficients.

    The column of the group's identity may be any filter phi times a vector v; the constraint gives the others::

        K(x) e_1 = phi(x) v,        K(x) e_g = phi(g^-1 x) rho_out(g) v

    and likewise for rows. escnn would take a quarter of an hour for d16.
    """
    is_from_regular = in_kind in ("hidden", "regular")
    other_kind = out_kind if is_from_regular else in_kind
    other = representation(name, other_kind)
    elements = list(gspace(name).fibergroup.testing_elements())
    columns = []
    for element in elements:
        filters = polar_filters(size, torch.from_numpy(np.linalg.inv(matrix_of(name, element))))
        acted = torch.from_numpy(np.array(other(element), dtype=np.float64))
        columns.append(torch.einsum("khw,dv->kvdhw", filters, acted).flatten(0, 1))
    regular = representation(name, "regular")
    indices = [int(np.argmax(regular(element)[:, 0])) for element in elements]
    stacked = torch.zeros(len(columns[0]), len(elements), *columns[0].shape[1:], dtype=torch.float64)
    stacked[:, indices] = torch.stack(columns, 1)
    basis = stacked.transpose(1, 2) if is_from_regular else stacked
    return _in_our_axes(basis, in_kind, out_kind)


def polar_filters(size: int, g: Float[Tensor, "2 2"]) -> Float[Tensor, "filters size size"]:
    """A basis of scalar filters: Gaussian rings times circular harmonics phi(g x), up to what the pixels resolve.

    Args:
        size: odd side of the filters in pixels.
        g: matrix on (x, y); the identity for the filters themselves.
    """
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    x, y = torch.einsum("ij,jhw->ihw", g.double(), torch.stack([x, y]))
    radius, angle = (x.square() + y.square()).sqrt(), torch.atan2(y, x)
    is_small = size < 7
    filters = []
    for ring in range(size // 2 + is_small):
        width = 1.0 if not is_small else 0.005 if ring == 0 else 0.6 if ring < size // 2 else 0.4
        profile = torch.exp(-0.5 * ((radius - ring) / width).square())
        highest = ring if not is_small else min(2 * ring, 2 if ring == size // 2 else 3)
        for frequency in range(highest + 1):
            filters.append(profile * (frequency * angle).cos())
            if frequency:
                filters.append(profile * (frequency * angle).sin())
    return torch.stack(filters)
