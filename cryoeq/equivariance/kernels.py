"""Steerable kernels: the filters between two kinds of fields that commute with a group.

They are the solutions of::

    K(gx) = rho_out(g) K(x) rho_in(g)^-1

written out: Gaussian rings times circular harmonics, whose coefficients are Clebsch-Gordan coefficients of the group.

Weiler and Cesa 2019, General E(2)-equivariant steerable CNNs (arXiv 1911.08251), section 2.4; Lang and Weiler 2021, A
Wigner-Eckart theorem for group equivariant convolution kernels (arXiv 2010.10952).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoeq.equivariance.fields import FieldKind, representation
from cryoeq.equivariance.groups import PlaneGroup, plane_group
from cryoeq.equivariance.irreps import Irrep, clebsch_gordan, endomorphisms, irrep_size, irreps_up_to, is_paired
from cryoeq.equivariance.representations import restricted, sum_of

SIGNED = 2
"""Version of a basis in saved states; in the first the signs of some kernels were those that linear algebra gave."""
OTHER_SIGNS = ("d4", "d8", "d16", "o2")
"""Groups of which that concerns kernels."""
_NEGLIGIBLE = 1e-6


@runtime_checkable
class KernelBasis(Protocol):
    """Kernels whose linear combinations are the filters of a layer: fixed, or with parameters."""

    count: int
    """Number of kernels."""

    def __call__(self) -> Float[Tensor, "basis out in size size"]:
        """The kernels."""
        ...


class AnalyticBasis(nn.Module):
    """The fixed kernels of ``steerable_kernels``.

    Args:
        group: symmetry group of the layer.
        in_kind: kind of the input's fields.
        out_kind: kind of the output's fields.
        size: odd side of the kernels in pixels.
    """

    _version = SIGNED
    kernels: Tensor

    def __init__(self, group: PlaneGroup, in_kind: FieldKind, out_kind: FieldKind, size: int) -> None:
        super().__init__()
        if had_other_signs(group.name, in_kind, out_kind, size):
            refuse_other_signs(self)
        self.register_buffer("kernels", steerable_kernels(group, in_kind, out_kind, size), persistent=False)
        self.count = len(self.kernels)

    def forward(self) -> Float[Tensor, "basis out in size size"]:
        """The kernels."""
        return self.kernels


def had_other_signs(name: str, in_kind: FieldKind, out_kind: FieldKind, size: int) -> bool:
    """Whether version 0.1 had some of these kernels with other signs.

    Of d4 the kernels of a single pixel are the same, and those from or to fields that have no irrep of two dimensions.
    """
    irreps = [representation(name, kind).irreps for kind in (in_kind, out_kind)]
    are_plain = [all(is_paired(name, irrep.frequency) for irrep in some) for some in irreps]
    return name in OTHER_SIGNS and (name != "d4" or (size > 1 and not any(are_plain)))


def refuse_other_signs(basis: nn.Module) -> None:
    """Make ``load_state_dict`` refuse a basis of version 0.1."""

    def check(_module: nn.Module, _state: Any, prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
        if metadata.get("version") != SIGNED:
            rest[-1].append(f"{prefix.rstrip('.')}: coefficients of version 0.1, whose kernels had other signs")

    basis.register_load_state_dict_pre_hook(check)


def steerable_kernels(
    group: PlaneGroup, in_kind: FieldKind, out_kind: FieldKind, size: int
) -> Float[Tensor, "basis out in size size"]:
    """Steerable kernels between two kinds of fields, of squared norm ``out``: white noise keeps its variance."""
    return _kernels(group.name, in_kind, out_kind, size).to(torch.get_default_dtype(), copy=True)


@lru_cache(maxsize=256)
def _kernels(name: str, in_kind: FieldKind, out_kind: FieldKind, size: int) -> Tensor:
    """The kernels in double precision; a pure function, cached because large groups take seconds.

    Ordered by frequency, then irrep of the input, irrep of the output, solution, ring.
    """
    into, out = representation(name, in_kind), representation(name, out_kind)
    rings = _rings(plane_group(name), size)
    parts = [torch.zeros(0, out.size, into.size, size, size, dtype=torch.float64)]
    for frequency in range(max(ring.frequency for ring in rings) + 1):
        waves = _waves(frequency, rings, size)
        for (first, columns), (second, rows) in itertools.product(into.parts, out.parts):
            solutions = _solutions(name, first, second, frequency)
            if len(solutions):
                changed = np.einsum("on,snmy,im->soiy", rows, solutions, columns)
                parts.append(torch.einsum("soiy,ryhw->sroihw", torch.from_numpy(changed), waves).flatten(0, 1))
    basis = torch.cat(parts)
    norms = basis.flatten(1).norm(dim=1)
    is_seen = norms > _NEGLIGIBLE
    return basis[is_seen] / norms[is_seen].reshape(-1, 1, 1, 1, 1) * math.sqrt(out.size)


@lru_cache(maxsize=4096)
def _solutions(
    name: str, in_irrep: Irrep, out_irrep: Irrep, frequency: int
) -> Float[np.ndarray, "solutions out in components"]:
    """Kernels between two irreps, as coefficients of the circular harmonics of one frequency.

    The harmonics transform as an irrep of O(2). For each copy of an irrep j of the group in it, and each copy of j in
    the product of output and input, and each map that commutes with j, there is one (Wigner and Eckart).
    """
    harmonics = restricted(sum_of("o2", [Irrep(frequency)]), name)
    found = []
    for irrep in irreps_up_to(name, in_irrep.frequency + out_irrep.frequency):
        seen = [change for part, change in harmonics.parts if part == irrep]
        for commuting in endomorphisms(name, irrep) if seen else []:
            for coefficients in clebsch_gordan(name, out_irrep, in_irrep, irrep):
                found += [coefficients @ commuting.T @ change.T for change in seen]
    sizes = irrep_size(name, out_irrep), irrep_size(name, in_irrep), harmonics.size
    return np.array(found).reshape(-1, *sizes)


@dataclass(frozen=True)
class _Ring:
    """One Gaussian ring of the kernels.

    Args:
        radius_px: radius of the ring.
        width_px: standard deviation of the Gaussian.
        frequency: highest frequency of the harmonics on it.
    """

    radius_px: int
    width_px: float
    frequency: int


def _rings(group: PlaneGroup, size: int) -> list[_Ring]:
    """The rings of the kernels, up to what the pixels resolve.

    Where all elements map pixels to pixels, and in small filters, rings are narrow and reach the edge. Elsewhere, error
    comes from what the pixel grid cannot represent: rings a pixel wide, ending a pixel inside the filter, have little
    power beyond the Nyquist frequency of the next, coarser level.
    """
    last = size // 2
    if not group.is_grid_exact and size >= 7:
        return [_Ring(radius, 1.0, radius) for radius in range(last)]
    rings = [_Ring(0, 0.005, 0)]
    for radius in range(1, last + 1):
        highest = 2 if radius == last else 2 * radius - (radius + 1) % 2
        rings.append(_Ring(radius, 0.4 if radius == last else 0.6, highest))
    return rings


def _waves(frequency: int, rings: Sequence[_Ring], size: int) -> Float[Tensor, "rings components size size"]:
    """Circular harmonics of a frequency on the rings that resolve it, their angle from the y axis, which points up."""
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = torch.meshgrid(-offsets, offsets, indexing="ij")
    radius, angle = (x.square() + y.square()).sqrt(), torch.atan2(y, x) - math.pi / 2
    harmonics = torch.stack([(frequency * angle).cos(), (frequency * angle).sin()][: 2 if frequency else 1])
    harmonics[:, radius == 0] = 0.0 if frequency else 1.0
    profiles = [
        torch.exp(-0.5 * ((radius - ring.radius_px) / ring.width_px).square())
        for ring in rings
        if frequency <= ring.frequency
    ]
    return torch.stack(profiles)[:, None] * harmonics
