"""Broken particles: what is left of a molecule on one side of a plane."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample

from cryoeq.geometry.soft_mask import falling_cosine

KEPT_SHARE = 0.3, 0.6  # of the mass
_BINS_PER_PX, _EDGE_PX = 8, 1.0


def project_part(
    values: Float[Tensor, "n n n"], rotation: Float[Tensor, "3 3"], normal: Float[Tensor, " 3"], share: float
) -> Float[Tensor, "n n"]:
    """Projection of the part of a map on one side of a plane, with its centre of mass in the middle of the image.

    The map is sampled trilinearly in the frame of the image: such images need not be as exact as those of particles.

    Args:
        values: densities (z, y, x), centre at voxel n // 2.
        rotation: RELION's matrix A.
        normal: unit normal (x, y, z) of the plane in the frame of the map; the part lies against it.
        share: share of the (positive) density that is left.
    """
    n = len(values)
    axis = torch.arange(n, device=values.device, dtype=values.dtype) - n // 2
    heights = normal[2] * axis[:, None, None] + normal[1] * axis[:, None] + normal[0] * axis
    mass = values.clamp(min=0)
    part = values * falling_cosine((heights - _height_below(heights, mass, share)) / _EDGE_PX + 0.5)
    weights = part.clamp(min=0)
    centre = torch.stack([(weights.sum(others) * axis).sum() for others in ((0, 1), (0, 2), (1, 2))]) / weights.sum()
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    places = torch.stack([x, y, z], -1) @ rotation + centre  # of each point of the image's frame, in that of the map
    grid = 2 * (places + n // 2) / (n - 1) - 1
    sampled = grid_sample(part[None, None], grid[None], align_corners=True)
    return sampled[0, 0].sum(0)


def _height_below(heights: Float[Tensor, "n n n"], mass: Float[Tensor, "n n n"], share: float) -> float:
    """Height of a plane below which a share of the mass lies."""
    lowest = float(heights.min())
    bins = ((heights - lowest) * _BINS_PER_PX).long().flatten()
    below = torch.bincount(bins, weights=mass.flatten().double()).cumsum(0)
    return lowest + float(torch.searchsorted(below, share * below[-1])) / _BINS_PER_PX
