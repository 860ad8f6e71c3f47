"""Grids of rotations: HEALPix view directions times in-plane angles.

Gorski et al. 2005, Astrophys. J. 622, 759-771 (the equal-area pixels of the sphere).
"""

import math
from functools import cache, lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.geometry.so3 import rotation_from_vector


@cache
def view_directions(healpix_order: int) -> Float[Tensor, "views 2"]:
    """(azimuth, polar angle) in radians of the sphere's 12 * 4^order equal-area pixels: rot and tilt.

    Written out here because healpy, which the tests compare with, takes two seconds to import.
    """
    n_side = 2**healpix_order
    ring = torch.arange(1, 4 * n_side)
    from_pole = torch.minimum(ring, 4 * n_side - ring).clamp(max=n_side)
    counts = 4 * from_pole
    ring, from_pole = ring.repeat_interleave(counts).double(), from_pole.repeat_interleave(counts).double()
    index_in_ring = torch.cat([torch.arange(int(count)) for count in counts]).double()
    # Equations 4, 5, 8 and 9: rings in the polar caps, whose pixels lie half a step off the meridian, and between
    # them, where every other ring does.
    is_cap = from_pole < n_side
    cap = (1 - from_pole.square() / (3 * n_side**2)) * torch.sign(2 * n_side - ring)
    height = torch.where(is_cap, cap, 4 / 3 - 2 * ring / (3 * n_side))
    offset = torch.where(is_cap | ((ring - n_side) % 2 == 0), 0.5, 0.0)
    azimuth = (index_in_ring + offset) * (math.pi / 2) / from_pole
    return torch.stack([azimuth, torch.arccos(height)], dim=1)


def so3_grid(
    healpix_order: int,
    n_inplane: int | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Float[Tensor, "rotations 3 3"]:
    """RELION's matrices A on an even grid of SO(3), the in-plane angle running fastest; kept, so not to be changed.

    Args:
        healpix_order: 12 * 4^order view directions, about 58.6 / 2^order degrees apart.
        n_inplane: in-plane angles per view; None for 6 * 2^order, RELION's number.
        dtype: type of the matrices; None for torch's default.
        device: device of the matrices.
    """
    count = 6 * 2**healpix_order if n_inplane is None else n_inplane
    return _grid(healpix_order, count, dtype or torch.get_default_dtype(), device)


@lru_cache(maxsize=16)
def _grid(
    healpix_order: int, count: int, dtype: torch.dtype, device: torch.device | None
) -> Float[Tensor, "rotations 3 3"]:
    inplane = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    rotations = (_turn(-inplane, axis=2) @ _views(healpix_order)[:, None]).flatten(0, 1)
    return rotations.to(device=device, dtype=dtype)


@cache
def _views(healpix_order: int) -> Float[Tensor, "views 3 3"]:
    azimuth, polar = view_directions(healpix_order).unbind(1)
    return _turn(-polar, axis=1) @ _turn(-azimuth, axis=2)


def _turn(angles: Float[Tensor, " angles"], axis: int) -> Float[Tensor, "angles 3 3"]:
    return rotation_from_vector(torch.nn.functional.one_hot(torch.tensor(axis), 3) * angles[:, None])
