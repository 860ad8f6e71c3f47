"""Action of the plane's rotations and mirrors on images and on poses."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cryoeq.equivariance.groups import permute_pixels


def lift_to_rotation(g: Float[Tensor, "2 2"]) -> Float[Tensor, "3 3"]:
    """rho(g) = diag(g, det g), by which the pose of an image I is multiplied from the left to give that of g.I."""
    lifted = torch.zeros(3, 3, dtype=g.dtype, device=g.device)
    lifted[:2, :2] = g
    lifted[2, 2] = torch.linalg.det(g)
    return lifted


def transform_images(images: Float[Tensor, "batch n n"], g: Float[Tensor, "2 2"]) -> Float[Tensor, "batch n n"]:
    """The images g.I, with (g.I)(x) = I(g^-1 x) about pixel n // 2 and x = (column, row).

    Exact when g maps the pixel grid to itself, bicubic otherwise. The mates of row 0 and column 0 of an even box lie
    outside of it: these are unchanged for an exact g, and are zero otherwise.
    """
    odd = 1 - images.shape[-1] % 2
    square = images[:, odd:, odd:]
    is_exact = bool(torch.allclose(g, g.round(), atol=1e-9))
    rotated = permute_pixels(square, g.round()) if is_exact else _interpolate(square, g)
    result = images.clone() if is_exact else torch.zeros_like(images)
    result[:, odd:, odd:] = rotated
    return result


def _interpolate(images: Tensor, g: Tensor) -> Tensor:
    """g.I by bicubic interpolation, zero outside."""
    matrix = torch.zeros(1, 2, 3, dtype=images.dtype, device=images.device)
    matrix[0, :, :2] = torch.linalg.inv(g).to(images)
    grid = F.affine_grid(matrix.expand(len(images), 2, 3), [len(images), 1, *images.shape[1:]], align_corners=True)
    sampled = F.grid_sample(images[:, None], grid, mode="bicubic", padding_mode="zeros", align_corners=True)
    return sampled[:, 0]


def act_on_rotations(g: Float[Tensor, "2 2"], rotations: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Poses rho(g) A of the images g.I."""
    return lift_to_rotation(g) @ rotations
