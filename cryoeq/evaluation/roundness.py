"""Round particles: what half maps share beside their spherical average, which any poses whatever reproduce.

The spherical average of a map does not change when particles are turned. The half maps of a hollow sphere such as
apoferritin agree by it far beyond the resolution of their poses.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.volume import HalfMaps
from cryoeq.geometry.shells import fourier_shell_correlation
from cryoeq.geometry.soft_mask import falling_cosine

_MASK_RADIUS, _EDGE = 0.4, 0.05  # of the box
_KNOTS_PER_VOXEL, _STEPS = 2, 8


@dataclass(frozen=True)
class Roundness:
    """Half maps without their spherical averages.

    Args:
        fsc: correlation of the half maps per shell, after their spherical averages were subtracted, unmasked.
        nonspherical_share: share of the density's variance within the box's sphere that is not spherical, noise apart.
    """

    fsc: Float[Tensor, " shells"]
    nonspherical_share: float


def measure_roundness(halves: HalfMaps) -> Roundness:
    """Correlation and power of two half maps without their spherical averages about the centre of the box.

    Args:
        halves: unfiltered half maps of independent half sets.
    """
    first, second = halves.first.values, halves.second.values
    rests = [values - spherical_average(values) for values in (first, second)]
    # Noise of the half maps does not correlate: their covariance is the variance of what they share.
    total, rest = _covariance(first, second), _covariance(*rests)
    share = min(1.0, max(0.0, rest / total)) if total > 0 else 1.0
    return Roundness(fourier_shell_correlation(*rests), share)


def spherical_average(volume: Float[Tensor, "n n n"]) -> Float[Tensor, "n n n"]:
    """The function of the distance from voxel n // 2 that is nearest to a map: linear between radii half a voxel apart.

    Args:
        volume: densities.
    """
    n = volume.shape[-1]
    sums = torch.zeros(3 * (n // 2) ** 2 + 1, dtype=torch.float64, device=volume.device)
    counts = torch.zeros_like(sums)
    for plane, squared in zip(volume, _squared_radii(volume), strict=True):
        sums.index_add_(0, squared, plane.flatten().double())
        counts.index_add_(0, squared, torch.ones_like(squared, dtype=torch.float64))
    # All voxels of one squared radius have the same weights, so the profile is fitted to their means.
    place = torch.arange(len(sums), dtype=torch.float64, device=volume.device).sqrt() * _KNOTS_PER_VOXEL
    knots = torch.stack([place.long(), place.long() + 1])
    weights = torch.stack([1 - place.frac(), place.frac()])
    size = int(knots.max()) + 1

    def gathered(values: Float[Tensor, " radii"]) -> Float[Tensor, " knots"]:
        return values.new_zeros(size).index_add(0, knots.flatten(), (weights * values).flatten())

    total, fitted = gathered(counts).clamp(min=1e-9), torch.zeros_like(sums)
    for _ in range(_STEPS):  # towards the least-squares profile
        fitted = fitted + (weights * (gathered(sums - counts * fitted) / total)[knots]).sum(0)
    return torch.stack([fitted[squared].view(n, n) for squared in _squared_radii(volume)]).to(volume.dtype)


def _squared_radii(volume: Float[Tensor, "n n n"]) -> Iterator[Int[Tensor, " voxels"]]:
    """Squared distance of each voxel from voxel n // 2, plane by plane."""
    n = volume.shape[-1]
    squared = (torch.arange(n, device=volume.device) - n // 2).square()
    for height in squared:
        yield (squared[:, None] + squared + height).flatten()


def _covariance(first: Float[Tensor, "n n n"], second: Float[Tensor, "n n n"]) -> float:
    """Covariance of two maps within the box's sphere, in float64."""
    n, moments = first.shape[-1], torch.zeros(4, dtype=torch.float64, device=first.device)
    for one, other, squared in zip(first, second, _squared_radii(first), strict=True):
        weight = falling_cosine((squared.double().sqrt() - _MASK_RADIUS * n) / (_EDGE * n))
        a, b = one.flatten().double(), other.flatten().double()
        moments += torch.stack([weight.sum(), weight @ a, weight @ b, weight @ (a * b)])
    count, mean_first, mean_second, product = moments.tolist()
    return float(product / count - mean_first * mean_second / count**2)
