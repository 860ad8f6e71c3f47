"""Round particles: what half maps share beside their spherical average, which any poses whatever reproduce.

The spherical average of a map does not change when particles are turned. The half maps of a hollow sphere such as
apoferritin agree by it far beyond the resolution of their poses.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.volume import HalfMaps
from cryoeq.geometry.shells import fourier_shell_correlation
from cryoeq.geometry.soft_mask import soft_sphere

_MASK_RADIUS, _EDGE = 0.45, 0.05  # of the box
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
    maps = [half.values.double() for half in (halves.first, halves.second)]
    rests = [values - spherical_average(values) for values in maps]
    n = halves.first.box_size_px
    mask = soft_sphere(n, (_MASK_RADIUS - _EDGE) * n, _EDGE * n, maps[0].device).double()
    weights = mask / mask.sum()
    centred = [values - (values * weights).sum() for values in maps]
    # Noise of the half maps does not correlate: their covariance is the variance of what they share.
    total, rest = (float((first * second * weights).sum()) for first, second in (centred, rests))
    share = min(1.0, max(0.0, rest / total)) if total > 0 else 1.0
    return Roundness(fourier_shell_correlation(*rests), share)


def spherical_average(volume: Float[Tensor, "n n n"]) -> Float[Tensor, "n n n"]:
    """The function of the distance from voxel n // 2 that is nearest to a map: linear between radii half a voxel apart.

    Args:
        volume: densities.
    """
    n = volume.shape[-1]
    squared = (torch.arange(n, device=volume.device) - n // 2).square()
    place = (squared[:, None, None] + squared[:, None] + squared).to(volume.dtype).sqrt() * _KNOTS_PER_VOXEL
    knots = torch.stack([place.long(), place.long() + 1]).flatten(1)
    weights = torch.stack([1 - place.frac(), place.frac()]).flatten(1)
    size = int(knots.max()) + 1
    average = torch.zeros_like(volume).flatten()
    total = volume.new_zeros(size).index_add(0, knots.flatten(), weights.flatten()).clamp(min=1e-9)
    for _ in range(_STEPS):  # towards the least-squares profile
        rest = weights * (volume.flatten() - average)
        profile = volume.new_zeros(size).index_add(0, knots.flatten(), rest.flatten()) / total
        average = average + (weights * profile[knots]).sum(0)
    return average.view_as(volume)
