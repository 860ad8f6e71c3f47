"""Amplitudes and noise of the particles that a map explains, where a part of all particles is junk.

Broken and missing particles have low amplitudes, so that the centre is the mode of their logarithm and the spread is
that of the amplitudes above it. Images with a strong residual, of edges and second particles, are left out. The noise
differs from image to image as far as the lower residuals, which hold no junk, scatter more than by chance.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from cryoeq.evaluation.junk_features import ParticleFit

_MAX_RESIDUAL, _MAX_FAR = 3.0, 4.5  # standard deviations, in images that show nothing beside a particle
_MIN_CLEAN = 50
_RANGE = 0.02, 0.98  # quantiles between which the mode is looked for
_POINTS, _KERNEL = 400, 0.5  # width of the kernel, in errors of an amplitude
_ONE_SIGMA = 0.6827
_LOWER, _Z_LOWER = (0.05, 0.3), (-1.6449, -0.5244)  # fractions of the images, and standard normal quantiles of these
_CHUNK = 4096


@dataclass(frozen=True)
class Amplitudes:
    """Amplitudes of particles that the map of their class explains.

    Args:
        centre: their most frequent value, for each class.
        spread: standard deviation of their natural log without the noise, for each class.
        noise_spread: standard deviation of the natural log of the images' noise variance.
    """

    centre: Float[Tensor, " classes"]
    spread: Float[Tensor, " classes"]
    noise_spread: float = 0.0


def measure_amplitudes(fit: ParticleFit, class_index: Int[Tensor, " particles"], n_classes: int) -> Amplitudes:
    """Centre and spread of the amplitudes in each class.

    Args:
        fit: how all particles fit.
        class_index: class of each.
        n_classes: number of classes; a class without particles gets those of all.
    """
    is_clean = (fit.residuals.abs() < _MAX_RESIDUAL).all(1) & (fit.second[:, 2] < _MAX_FAR)
    found = []
    for number in range(n_classes):
        members = class_index == number
        members = members if bool(members.any()) else torch.ones_like(members)
        chosen = members & is_clean
        chosen = chosen if int(chosen.sum()) >= _MIN_CLEAN else members
        found.append(_mode_and_spread(fit.amplitude[chosen].double(), fit.power[chosen].double().reciprocal()))
    centre, spread = torch.tensor(found).unbind(1)
    return Amplitudes(centre, spread, _noise_spread(fit))


def _noise_spread(fit: ParticleFit) -> float:
    low, high = (float(fit.level.double().quantile(fraction)) for fraction in _LOWER)
    total = (high - low) / (_Z_LOWER[1] - _Z_LOWER[0])
    return math.sqrt(max(total**2 - float(fit.level_error.double().square().median()), 0.0))


def _mode_and_spread(amplitude: Float64[Tensor, " some"], variance: Float64[Tensor, " some"]) -> tuple[float, float]:
    low, high = (float(amplitude.quantile(fraction)) for fraction in _RANGE)
    grid = torch.linspace(low, high, _POINTS, dtype=torch.float64)
    width = (_KERNEL * variance.median().sqrt()).clamp(min=1e-9)
    density = torch.zeros_like(grid)
    for part in amplitude.split(_CHUNK):
        density += torch.exp(-0.5 * ((grid[:, None] - part) / width).square()).sum(1)
    centre = max(float(grid[(density * grid).argmax()]), 1e-6)  # of the logarithm: its density is that times the value
    above = amplitude > centre
    if not bool(above.any()):
        return centre, 0.0
    total = float((amplitude[above] - centre).quantile(_ONE_SIGMA))
    beyond_noise = math.sqrt(max(total**2 - float(variance[above].median()), 0.0))
    return centre, math.log1p(beyond_noise / centre)
