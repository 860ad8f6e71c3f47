"""Noise variance per shell, given a map."""

from collections.abc import Sequence

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoeq.geometry.shells import shell_power
from cryoeq.geometry.so3_grid import so3_grid
from cryoeq.physics.projection import extract_slices
from cryoeq.reconstruction.particle_transforms import ParticleTransforms


def shell_precision(noise_variance: Float[Tensor, " shells"]) -> Float[Tensor, " shells"]:
    """Inverse noise variance per shell; 0 for shell 0, the mean of the image, which normalisation has changed."""
    return torch.cat([torch.zeros_like(noise_variance[:1]), noise_variance[1:].reciprocal()])


def noise_precision(
    padded: Sequence[Complex[Tensor, "m m m"]],
    particles: ParticleTransforms,
    shares: Float[Tensor, " maps"] | None = None,
) -> Float[Tensor, " points"]:
    """Inverse noise variance of each coefficient of the particles, given maps of them.

    Args:
        padded: oversampled transform of each map.
        particles: CTF-multiplied transforms of all particles.
        shares: share of the particles that show each map; None where all are alike.
    """
    powers = [mean_slice_power(each, particles) for each in padded]
    shares = powers[0].new_full((len(powers),), 1 / len(powers)) if shares is None else shares
    noise = particles.residual_noise_variance((torch.stack(powers) * shares[:, None]).sum(0))
    return shell_precision(noise)[particles.plane.shells]


def mean_slice_power(padded: Complex[Tensor, "m m m"], particles: ParticleTransforms) -> Float[Tensor, " points"]:
    """Mean |P|^2 of a map's projections at each coefficient of the particles.

    Args:
        padded: oversampled transform of the map.
        particles: CTF-multiplied transforms of all particles.
    """
    # The steps between shells are too coarse for the first ones: power falls steeply within them.
    views = so3_grid(1, 1, device=particles.device)
    return extract_slices(padded, views, particles.plane).abs().square().mean(0)


def noise_and_signal(
    particles: ParticleTransforms, volume: Float[Tensor, "n n n"], subset: ParticleTransforms
) -> tuple[Float[Tensor, " points"], Float[Tensor, " points"]]:
    """Inverse noise variance and power of the map, for each coefficient of ``subset``.

    Args:
        particles: CTF-multiplied transforms of all particles.
        volume: map of them.
        subset: the particles up to a smaller radius.
    """
    power = shell_power(volume)
    shells = subset.plane.shells
    return particles.residual_noise_variance(power[particles.plane.shells]).reciprocal()[shells], power[shells]
