"""Images that are no particles, made from a stack's own, to teach scores what junk looks like."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.geometry.fourier import fft_image, ifft_image

KINDS = ("noise", "overlap", "wrong pose")
_NEAREST, _FURTHEST = 0.25, 0.45  # distance of the second of two overlapping particles, in boxes


def draw_kinds(count: int, share: float, generator: torch.Generator) -> Int[Tensor, " particles"]:
    """Which particles to spoil, and how: an index into ``KINDS``, -1 for those that stay.

    Args:
        count: particles.
        share: of them that are spoilt.
        generator: source of chance.
    """
    kinds = torch.full((count,), -1)
    spoilt = torch.randperm(count, generator=generator)[: round(share * count)]
    return kinds.index_put((spoilt,), torch.arange(len(spoilt)) % len(KINDS))


def scramble_phases(images: Float[Tensor, "batch n n"], generator: torch.Generator) -> Float[Tensor, "batch n n"]:
    """Noise with the amplitudes of each image."""
    phases = fft_image(torch.randn(images.shape, generator=generator).to(images))
    return ifft_image(fft_image(images).abs() * phases / phases.abs().clamp(min=1e-12))


def overlap_pairs(
    images: Float[Tensor, "batch n n"], others: Float[Tensor, "batch n n"], generator: torch.Generator
) -> Float[Tensor, "batch n n"]:
    """Each image with another one added beside it, at the variance of one: two particles in one box.

    Args:
        images: of the particles in the middle.
        others: of those beside them.
        generator: draws the places.
    """
    n = images.shape[-1]
    angle, distance = torch.rand(2, len(images), generator=generator)
    radius = n * (_NEAREST + (_FURTHEST - _NEAREST) * distance)
    dy, dx = (radius * torch.sin(6.283185 * angle)).round(), (radius * torch.cos(6.283185 * angle)).round()
    moved = torch.stack([
        torch.roll(other, (int(y), int(x)), (-2, -1))
        for other, y, x in zip(others, dy.tolist(), dx.tolist(), strict=True)
    ]) if len(images) else others  # fmt: skip
    return (images + moved) / 2**0.5
