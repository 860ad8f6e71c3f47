"""Data augmentation: images and their poses under random elements of D4, for an encoder without that symmetry.

In Fourier space an element g permutes coefficients::

    (g.I)^(k) = I^(g^-1 k)

This is exact about the origin, pixel n // 2, also of even boxes, where rotating the array would move the origin. CTFs
are rotated with their images.
"""

from dataclasses import replace
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoeq.equivariance import plane_group
from cryoeq.equivariance.actions import lift_to_rotation
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.training.autoencoder.step import FourierBatch


def augment(
    batch: FourierBatch, plane: HalfPlane, generator: torch.Generator
) -> tuple[FourierBatch, Float[Tensor, "batch 3 3"]]:
    """The images g.I under random g, and rho(g) = diag(g, det g), which takes the pose of I to that of g.I.

    Args:
        batch: transforms of the images I.
        plane: coefficients of the batch.
        generator: random number generator on the plane's device.
    """
    elements, lifted = _elements(plane.coords.device, batch.coefficients.real.dtype)
    count, device = batch.shard.count, plane.coords.device
    drawn = torch.randint(len(elements), (count,), generator=generator, device=device)[batch.shard.positions]
    return rotate_and_mirror(batch, plane, elements[drawn]), lifted[drawn]


@lru_cache
def _elements(device: torch.device, dtype: torch.dtype) -> tuple[Float[Tensor, "8 2 2"], Float[Tensor, "8 3 3"]]:
    """The elements of D4 as they act on images and on poses."""
    group = plane_group("d4").elements()
    return group.to(device, dtype), torch.stack([lift_to_rotation(g) for g in group]).to(device, dtype)


def rotate_and_mirror(batch: FourierBatch, plane: HalfPlane, elements: Float[Tensor, "batch 2 2"]) -> FourierBatch:
    """The images g.I.

    Args:
        batch: transforms of the images I.
        plane: coefficients of the batch.
        elements: g of each image, mapping the pixel grid to itself.
    """
    index, is_mate = _sources(plane, elements)
    values = batch.coefficients.gather(1, index)
    transfer = None if batch.transfer is None else batch.transfer.gather(1, index)
    return replace(batch, coefficients=torch.where(is_mate, values.conj(), values), transfer=transfer)


def _sources(
    plane: HalfPlane, elements: Float[Tensor, "batch 2 2"]
) -> tuple[Int[Tensor, "batch points"], Bool[Tensor, "batch points"]]:
    """Index of the coefficient of I that each coefficient of g.I equals, and whether it is stored as its conjugate."""
    n, centre = plane.box_size_px, plane.box_size_px // 2
    kx, ky = (plane.coords.to(elements) @ elements).round().long().unbind(-1)  # rows: (g^-1 k)^T = k^T g
    is_mate = (ky < 0) | ((ky == 0) & (kx < 0))
    sign = torch.where(is_mate, -1, 1)
    rows = torch.zeros(n * n, dtype=torch.long, device=kx.device)
    rows[plane.flat_index] = torch.arange(len(plane), device=kx.device)
    return rows[(ky * sign + centre) * n + kx * sign + centre], is_mate
