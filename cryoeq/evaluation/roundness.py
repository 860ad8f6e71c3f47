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
    """Mean over all rotations about voxel n // 2, from a radial profile that is linear between whole radii."""
    n = volume.shape[-1]
    squared = (torch.arange(n, device=volume.device) - n // 2).square()
    radius = (squared[:, None, None] + squared[:, None] + squared).to(volume.dtype).sqrt()
    inner = radius.long()
    outer_weight = radius - inner
    size = int(inner.max()) + 2
    sums, counts = volume.new_zeros(size), volume.new_zeros(size)
    for index, weight in ((inner, 1 - outer_weight), (inner + 1, outer_weight)):
        sums.index_add_(0, index.flatten(), (weight * volume).flatten())
        counts.index_add_(0, index.flatten(), weight.flatten())
    profile = sums / counts.clamp(min=torch.finfo(volume.dtype).tiny)
    return (1 - outer_weight) * profile[inner] + outer_weight * profile[inner + 1]
