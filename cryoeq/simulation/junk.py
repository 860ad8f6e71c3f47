"""Synthetic outliers: images that are no particles, made of a stack's own, as training examples for screening."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.geometry.fourier import fft_image, ifft_image

KINDS = ("noise", "overlap", "wrong pose")
_MIN_DISTANCE, _MAX_DISTANCE = 0.25, 0.45  # between the two particles of an overlapping pair, in boxes


def choose_outliers(count: int, fraction: float, generator: torch.Generator) -> Int[Tensor, " particles"]:
    """The kind of outlier that each particle is replaced by: an index into ``KINDS``, -1 for unchanged particles.

    Args:
        count: number of particles.
        fraction: fraction to replace, evenly over the kinds.
        generator: random number generator.
    """
    kinds = torch.full((count,), -1)
    corrupted = torch.randperm(count, generator=generator)[: round(fraction * count)]
    return kinds.index_put((corrupted,), torch.arange(len(corrupted)) % len(KINDS))


def scramble_phases(images: Float[Tensor, "batch n n"], generator: torch.Generator) -> Float[Tensor, "batch n n"]:
    """Noise with the Fourier amplitudes of each image."""
    phases = fft_image(torch.randn(images.shape, generator=generator).to(images))
    return ifft_image(fft_image(images).abs() * phases / phases.abs().clamp(min=1e-12))


def overlap_pairs(
    images: Float[Tensor, "batch n n"], others: Float[Tensor, "batch n n"], generator: torch.Generator
) -> Float[Tensor, "batch n n"]:
    """Two particles in one box: each image plus a displaced one, at the noise variance of a single image.

    Args:
        images: particles in the middle of the box.
        others: particles that are displaced, one for each image.
        generator: random number generator of the displacements.
    """
    n = images.shape[-1]
    angle, distance = torch.rand(2, len(images), generator=generator)
    radius = n * (_MIN_DISTANCE + (_MAX_DISTANCE - _MIN_DISTANCE) * distance)
    angle = 2 * math.pi * angle
    dy, dx = (radius * torch.sin(angle)).round(), (radius * torch.cos(angle)).round()
    displaced = torch.stack([
        torch.roll(other, (int(y), int(x)), (-2, -1))
        for other, y, x in zip(others, dy.tolist(), dx.tolist(), strict=True)
    ]) if len(images) else others  # fmt: skip
    return (images + displaced) / math.sqrt(2)
