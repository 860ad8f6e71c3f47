"""HEALPix: equal-area pixels of the sphere, their centres, and the pixel of a direction.

HEALPix in its ring order, 12 * 4^order pixels. Gorski et al. 2005, Astrophys. J. 622, 759-771. Written out because
healpy, which the tests compare with, takes two seconds to import.
"""

import math
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.geometry.so3_grid import view_directions


@cache
def pixel_centres(healpix_order: int) -> Float[Tensor, "pixels 3"]:
    """Unit vectors (x, y, z) to the centres of all pixels, in float64."""
    azimuth, polar = view_directions(healpix_order).unbind(1)
    return torch.stack([polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos()], dim=1)


@cache
def opposite_pixels(healpix_order: int) -> Int[Tensor, " pixels"]:
    """The pixel on the other side of the sphere, of each pixel."""
    return pixel_of_directions(-pixel_centres(healpix_order), healpix_order)


def pixel_of_directions(vectors: Float[Tensor, "*batch 3"], healpix_order: int) -> Int[Tensor, "*batch"]:
    """Pixel of each direction.

    Args:
        vectors: (x, y, z), of any length; the zero vector counts as +z.
        healpix_order: 12 * 4^order pixels.
    """
    x, y, z = vectors.unbind(-1)
    length = vectors.norm(dim=-1)
    height = torch.where(length > 0, z / length, 1.0).clamp(-1, 1)
    quarter_turns = (torch.atan2(y, x) / (math.pi / 2)) % 4
    is_cap = height.abs() > 2 / 3
    return torch.where(
        is_cap, _in_cap(height, quarter_turns, healpix_order), _in_belt(height, quarter_turns, healpix_order)
    )


def _in_belt(
    height: Float[Tensor, "*batch"], quarter_turns: Float[Tensor, "*batch"], healpix_order: int
) -> Int[Tensor, "*batch"]:
    """Between the caps: pixels are bounded by ascending and descending lines of the (azimuth, height) plane."""
    n_side = 2**healpix_order
    along, across = n_side * (0.5 + quarter_turns), n_side * 0.75 * height
    descending, ascending = (along - across).floor().long(), (along + across).floor().long()
    ring = n_side + 1 + descending - ascending
    index_in_ring = (ascending + descending - n_side + 2 - ring % 2) // 2 % (4 * n_side)
    return 2 * n_side * (n_side - 1) + (ring - 1) * 4 * n_side + index_in_ring


def _in_cap(
    height: Float[Tensor, "*batch"], quarter_turns: Float[Tensor, "*batch"], healpix_order: int
) -> Int[Tensor, "*batch"]:
    """Around a pole: ring i has 4 i pixels."""
    n_side = 2**healpix_order
    within = quarter_turns % 1
    from_pole = n_side * (3 * (1 - height.abs())).sqrt()
    up, down = (within * from_pole).floor().long(), ((1 - within) * from_pole).floor().long()
    ring = up + down + 1
    index_in_ring = (quarter_turns * ring).floor().long() % (4 * ring)
    north = 2 * ring * (ring - 1) + index_in_ring
    south = 12 * n_side**2 - 2 * ring * (ring + 1) + index_in_ring
    return torch.where(height > 0, north, south)
