"""Soft mask around the atoms of a model."""

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import distance_transform_edt
from torch import Tensor


def soft_mask_around(
    positions_px: Float[Tensor, "atoms 3"], box_size_px: int, *, radius_px: float, edge_px: float
) -> Float[Tensor, "n n n"]:
    """Mask that is 1 within a distance of an atom, then a raised cosine down to 0.

    Args:
        positions_px: positions (x, y, z) of the atoms, in voxels from the first one; atoms outside the box are ignored.
        box_size_px: side of the mask.
        radius_px: distance up to which the mask is 1, from the voxel nearest to an atom.
        edge_px: width of the soft edge.
    """
    n, reach = box_size_px, math.ceil(radius_px + edge_px)
    mask = torch.zeros(n, n, n)
    voxels = positions_px.round().long().flip(1)
    voxels = voxels[((voxels >= 0) & (voxels < n)).all(1)]
    if not len(voxels):
        return mask
    # Distances are needed near the atoms only, a small fraction of a large map.
    low, high = (voxels.amin(0) - reach).clamp(min=0), (voxels.amax(0) + reach + 1).clamp(max=n)
    is_free = np.ones((high - low).tolist(), dtype=bool)
    is_free[tuple((voxels - low).T.numpy())] = False
    distance = torch.from_numpy(distance_transform_edt(is_free)).float()
    edge = 0.5 + 0.5 * torch.cos(math.pi * (distance - radius_px) / edge_px)
    values = edge.masked_fill(distance < radius_px, 1.0).masked_fill(distance > radius_px + edge_px, 0.0)
    box = tuple(slice(start, stop) for start, stop in zip(low.tolist(), high.tolist(), strict=True))
    mask[box] = values
    return mask
