"""Equivariance error of a function of images, and the actions that it needs beside those of the package."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.equivariance.actions import transform_images


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
        images: images I of the test.
        elements: elements g, as matrices on (x, y).
    """
    reference = function(images)
    errors = [(function(transform_images(images, g)) - act(g.to(reference), reference)).abs().max() for g in elements]
    return float(torch.stack(errors).max())


def act_on_shifts(g: Float[Tensor, "2 2"], shifts: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2"]:
    """Shifts g t of the images g.I."""
    return shifts @ g.mT


def act_trivially(_g: Float[Tensor, "2 2"], values: Tensor) -> Tensor:
    """Invariant values: themselves."""
    return values
