"""Grids of rotations: HEALPix view directions times in-plane angles.

Gorski et al. 2005, Astrophys. J. 622, 759-771 (the equal-area pixels of the sphere).
"""

import math

import healpy
import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.geometry.so3 import rotation_from_vector


def view_directions(healpix_order: int) -> Float[Tensor, "views 2"]:
    """(azimuth, polar angle) in radians of the sphere's 12 * 4^order equal-area pixels: rot and tilt."""
    n_side = 2**healpix_order
    polar, azimuth = healpy.pix2ang(n_side, range(healpy.nside2npix(n_side)))
    return torch.stack([torch.from_numpy(azimuth), torch.from_numpy(polar)], dim=1)


def so3_grid(
    healpix_order: int,
    n_inplane: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Float[Tensor, "rotations 3 3"]:
    """RELION's matrices A on an even grid of SO(3), the in-plane angle running fastest.

    Args:
        healpix_order: 12 * 4^order view directions, about 58.6 / 2^order degrees apart.
        n_inplane: in-plane angles per view; None for 6 * 2^order, as RELION has it.
        dtype: of the matrices.
        device: of the matrices.
    """
    count = 6 * 2**healpix_order if n_inplane is None else n_inplane
    azimuth, polar = view_directions(healpix_order).unbind(1)
    inplane = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    views = _turn(-polar, axis=1) @ _turn(-azimuth, axis=2)
    return (_turn(-inplane, axis=2) @ views[:, None]).flatten(0, 1).to(device=device, dtype=dtype)


def _turn(angles: Float[Tensor, " angles"], axis: int) -> Float[Tensor, "angles 3 3"]:
    return rotation_from_vector(torch.nn.functional.one_hot(torch.tensor(axis), 3) * angles[:, None])
