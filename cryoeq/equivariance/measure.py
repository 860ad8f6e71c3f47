"""How far a function of images is from being equivariant; used by tests and by reports."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cryoeq.equivariance.groups import permute_pixels


def lift_to_rotation(g: Float[Tensor, "2 2"]) -> Float[Tensor, "3 3"]:
    """rho(g) = diag(g, det g): what turning an image by g does to its pose, from the left."""
    lifted = torch.zeros(3, 3, dtype=g.dtype, device=g.device)
    lifted[:2, :2] = g
    lifted[2, 2] = torch.linalg.det(g)
    return lifted


def transform_images(images: Float[Tensor, "batch n n"], g: Float[Tensor, "2 2"]) -> Float[Tensor, "batch n n"]:
    """The images g.I, with (g.I)(x) = I(g^-1 x) about pixel n // 2 and x = (column, row).

    Exact when g maps the pixel grid to itself, bicubic otherwise. The mates of row 0 and column 0 of an even box lie
    outside of it: these are left as they are for an exact g, and are zero otherwise.
    """
    odd = 1 - images.shape[-1] % 2
    square = images[:, odd:, odd:]
    is_exact = bool(torch.allclose(g, g.round(), atol=1e-9))
    turned = permute_pixels(square, g.round()) if is_exact else _interpolate(square, g)
    result = images.clone() if is_exact else torch.zeros_like(images)
    result[:, odd:, odd:] = turned
    return result


def _interpolate(images: Tensor, g: Tensor) -> Tensor:
    """g.I by bicubic interpolation, zero outside."""
    matrix = torch.zeros(1, 2, 3, dtype=images.dtype, device=images.device)
    matrix[0, :, :2] = torch.linalg.inv(g).to(images)
    grid = F.affine_grid(matrix.expand(len(images), 2, 3), [len(images), 1, *images.shape[1:]], align_corners=True)
    sampled = F.grid_sample(images[:, None], grid, mode="bicubic", padding_mode="zeros", align_corners=True)
    return sampled[:, 0]


def equivariance_error(
    function: Callable[[Tensor], Tensor],
    act: Callable[[Tensor, Tensor], Tensor],
    images: Float[Tensor, "batch n n"],
    elements: Float[Tensor, "elements 2 2"],
) -> float:
    """Largest absolute difference, over the elements, between f(g.I) and rho(g) f(I).

    Args:
        function: f, from images to any tensor.
        act: (g, f(I)) -> rho(g) f(I), for example ``act_on_rotations``.
        images: to test on.
        elements: g, as matrices on (x, y).
    """
    reference = function(images)
    errors = [(function(transform_images(images, g)) - act(g.to(reference), reference)).abs().max() for g in elements]
    return float(torch.stack(errors).max())


def act_on_rotations(g: Float[Tensor, "2 2"], rotations: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Poses of the turned images: rho(g) A."""
    return lift_to_rotation(g) @ rotations


def act_on_shifts(g: Float[Tensor, "2 2"], shifts: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2"]:
    """Shifts of the turned images: g t."""
    return shifts @ g.mT


def act_trivially(_g: Float[Tensor, "2 2"], values: Tensor) -> Tensor:
    """Invariant values: themselves."""
    return values
