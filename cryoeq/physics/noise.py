"""Noise spectrum of images, per shell, from their background outside the particle."""

from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.geometry.fourier import HalfPlane, shell_index
from cryoeq.geometry.soft_mask import rising_cosine

_EDGE_PX = 3.0
_CORNER = 0.5**0.5  # radius of the last coefficient of a transform, over the box
# The least variance of a shell, as a fraction of the mean: noise-free stacks must not get infinite weights.
_MIN_VARIANCE = 1e-3


def background_spectrum(images: Float[Tensor, "batch n n"], particle_radius_px: float) -> Float[Tensor, "batch shells"]:
    """Variance per coefficient (orthonormal transform) of the noise in each image, per shell, up to Nyquist.

    Args:
        images: images in real space.
        particle_radius_px: radius beyond which an image holds noise only; a cosine edge of 3 pixels follows it.
    """
    n = images.shape[-1]
    x = torch.arange(n, dtype=images.dtype, device=images.device) - n // 2
    radius = (x[:, None].square() + x.square()).sqrt()
    window = rising_cosine((radius - particle_radius_px) / _EDGE_PX)
    half = torch.fft.rfft2(images * window, norm="ortho").flatten(1)
    shells, weights = _half_shells(n, images.device)
    power = (half.real.square() + half.imag.square()) * weights
    sums = power.new_zeros(len(images), int(_CORNER * n) + 2).index_add(1, shells, power)
    counts = torch.zeros_like(sums[0]).index_add(0, shells, weights.to(power))
    return (sums / (counts * window.square().mean()))[:, : n // 2 + 1]


@lru_cache(maxsize=8)
def _half_shells(n: int, device: torch.device) -> tuple[Int[Tensor, " points"], Float[Tensor, " points"]]:
    """Shell of each coefficient that rfft2 gives, and how many of the whole transform it stands for."""
    half = n // 2 + 1
    shells = torch.fft.ifftshift(shell_index(n, 2, device))[:, :half]
    weights = torch.full((half,), 2.0, device=device)
    weights[0] = 1
    if n % 2 == 0:
        weights[-1] = 1
    return shells.flatten(), weights.expand(n, half).flatten()


def background_noise_variance(
    images: Float[Tensor, "batch n n"],
    particle_radius_px: float,
    transfer_power: Float[Tensor, "batch shells"] | None = None,
) -> Float[Tensor, " shells"]:
    """Noise variance per shell of images that share one spectrum, before any premultiplication by the CTF.

    Args:
        images: images in real space.
        particle_radius_px: radius beyond which an image holds noise only.
        transfer_power: factor on the noise power of each image and shell: the CTF squared of premultiplied images; None
            for 1.
    """
    measured = background_spectrum(images, particle_radius_px).mean(0)
    variance = measured if transfer_power is None else measured / transfer_power.mean(0).clamp(min=_MIN_VARIANCE)
    floor = variance.mean() * _MIN_VARIANCE
    return torch.where(floor > 0, variance.clamp(min=floor), torch.ones_like(variance))


def shell_means(values: Float[Tensor, "batch points"], plane: HalfPlane) -> Float[Tensor, "batch shells"]:
    """Mean over each shell up to Nyquist; 0 where the plane holds none of it."""
    n_shells = plane.box_size_px // 2 + 1
    shells = plane.shells.clamp(max=n_shells - 1)
    counts = torch.bincount(shells, minlength=n_shells).clamp(min=1)
    return values.new_zeros(len(values), n_shells).index_add(1, shells, values) / counts
