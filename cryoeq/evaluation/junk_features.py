"""Features of particles that tell junk: what a map leaves of an image, and how much of its projection is there.

No particle: the amplitude is small. Edges and second particles: the residual r is strong. A second particle is looked
for as the spherical average of the map, Q, which needs no pose::

    t(d) = sum_k p Re(r conj(Q exp(-2 pi i k.d / n))) / (sum_k p C^2 Q^2)^(1/2)

A broken particle has its density on one side: the projections of the map times its coordinates x, y and z, fitted to
the residual, tell that (three numbers, whose gain in log-likelihood is a feature).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.evaluation.junk_comparison import (
    FIRST_SHELL,
    Comparison,
    MatchedImages,
    PosedRows,
    fit_amplitudes,
    matched_batches,
)
from cryoeq.runtime.distributed import gather_shards, shard

_NEAR, _FAR = 0.08, 0.3  # places of a second particle, in boxes
_LEAST_AMPLITUDE = 0.1


@dataclass(frozen=True)
class ParticleFit(ParticleRows):
    """How images fit.

    Args:
        amplitude: s, on all shells.
        power: a.
        difference: s on the upper shells less that on the lower ones, over its standard deviation.
        residuals: powers of the residual in shell 1 and in three bands, as standard normal variables where there is
            nothing but noise.
        level: natural log of the power of the residual, over that of the noise, in all bands together.
        level_error: its standard deviation where images have the same noise.
        one_sided: log-likelihood that density on one side gains, as a standard normal variable likewise.
        second: largest t(d) at the places of an overlapping particle, largest -t(d) there, and largest size beyond.
        second_amplitude: natural log of the largest amplitude of a second particle, over s.
    """

    amplitude: Float[Tensor, " particles"]
    power: Float[Tensor, " particles"]
    difference: Float[Tensor, " particles"]
    residuals: Float[Tensor, "particles 4"]
    level: Float[Tensor, " particles"]
    level_error: Float[Tensor, " particles"]
    one_sided: Float[Tensor, " particles"]
    second: Float[Tensor, "particles 3"]
    second_amplitude: Float[Tensor, " particles"]


def fit_images(comparison: Comparison, images: MatchedImages, posed: PosedRows) -> ParticleFit:
    """How images fit the map of the other half set at their poses.

    Args:
        comparison: the comparison.
        images: the images.
        posed: their poses, in the box of the comparison.
    """
    plane, squared = comparison.plane, images.ctf_squared
    projections, averages = comparison.project(posed)
    residual, amplitude, centred = fit_amplitudes(comparison, images, posed, projections[0])
    weights = plane.weights * comparison.precision
    is_low = (plane.shells <= _bands(comparison.last_shell)[0][1]).to(weights)
    bands = []
    for part in (weights * is_low, weights * (1 - is_low)):
        power = (squared * projections[0].abs().square() @ part).clamp(min=1e-12)
        bands.append(((centred * projections[0].conj()).real @ part / power, power))
    (low, low_power), (high, high_power) = bands
    residuals, level, level_error = _residual_powers(comparison, residual, squared)
    second, second_amplitude = _second(comparison, residual, squared, averages)
    return ParticleFit(
        amplitude=amplitude,
        power=low_power + high_power,
        difference=(high - low) / (low_power.reciprocal() + high_power.reciprocal()).sqrt(),
        residuals=residuals,
        level=level,
        level_error=level_error,
        one_sided=_one_sided(weights, residual, squared, projections),
        second=second,
        second_amplitude=(second_amplitude / amplitude.abs().clamp(min=_LEAST_AMPLITUDE)).clamp(min=1e-2).log(),
    )


def _bands(last: int) -> tuple[tuple[int, int], ...]:
    first, second = max(4, last // 3), max(6, 2 * last // 3)
    return (FIRST_SHELL, first), (first + 1, second), (second + 1, last)


def _residual_powers(
    comparison: Comparison, residual: Complex[Tensor, "rows points"], squared: Float[Tensor, "rows points"]
) -> tuple[Float[Tensor, "rows bands"], Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Powers in the bands as normal variables; that in all of them as a logarithm, and its error."""
    sums, last = comparison.plane.shell_sums, comparison.last_shell
    power = sums(residual.abs().square()) / comparison.noise
    expected, variance = sums(squared), sums(2 * squared.square())
    found = []
    for first, end in ((1, 1), *_bands(last), (FIRST_SHELL, last)):
        shells = slice(first, end + 1)
        mean = expected[:, shells].sum(1).clamp(min=1e-12)
        shape = mean.square() / variance[:, shells].sum(1).clamp(min=1e-30)
        found.append((power[:, shells].sum(1) / mean, shape))
    *bands, (ratio, shape) = found
    normal = torch.stack([_as_normal(*band) for band in bands], 1)
    return normal, ratio.clamp(min=1e-6).log(), shape.rsqrt()


def _as_normal(ratio: Float[Tensor, " rows"], shape: Float[Tensor, " rows"] | float) -> Float[Tensor, " rows"]:
    """Gamma variables of mean 1 as standard normal ones (Wilson and Hilferty 1931)."""
    width = (9 * torch.as_tensor(shape)).rsqrt()
    return (ratio.clamp(min=0).pow(1 / 3) - (1 - width.square())) / width


def _one_sided(
    weights: Float[Tensor, " points"],
    residual: Complex[Tensor, "rows points"],
    squared: Float[Tensor, "rows points"],
    projections: Complex[Tensor, "4 rows points"],
) -> Float[Tensor, " rows"]:
    slope = torch.stack([(residual * sided.conj()).real @ weights for sided in projections[1:]], -1)
    scaled = torch.view_as_real(projections * (squared * weights).sqrt()).flatten(2).transpose(0, 1)
    products = scaled @ scaled.transpose(1, 2)
    whole = products[:, :1, :1].clamp(min=1e-12)
    sided = products[:, 1:, 1:] - products[:, 1:, :1] * products[:, :1, 1:] / whole
    ridge = 1e-6 * torch.diagonal(sided, dim1=1, dim2=2).mean(1) + 1e-12
    solved = torch.linalg.solve(sided + ridge[:, None, None] * torch.eye(3), slope)
    return _as_normal((slope * solved).sum(1) / 3, 1.5)  # chi^2 of three degrees of freedom


def _second(
    comparison: Comparison,
    residual: Complex[Tensor, "rows points"],
    squared: Float[Tensor, "rows points"],
    averages: Float[Tensor, "rows points"],
) -> tuple[Float[Tensor, "rows 3"], Float[Tensor, " rows"]]:
    """Correlation of the residual with the spherical average at all places."""
    plane, n = comparison.plane, comparison.plane.box_size_px
    power = (squared * averages.square()) @ (plane.weights * comparison.precision)
    power = power.clamp(min=1e-12)
    found = plane.images(residual * comparison.precision * averages) * n
    axis = torch.arange(n) - n // 2
    distance = (axis[:, None].square() + axis.square()).float().sqrt() / n
    near = found[:, (distance > _NEAR) & (distance < _FAR)]
    far = found[:, distance >= _FAR]
    highest, size = near.amax(1), power.sqrt()
    return torch.stack([highest / size, -near.amin(1) / size, far.abs().amax(1) / size], 1), highest / power


def fit_particles(comparison: Comparison, dataset: ParticleDataset, posed: PosedRows) -> ParticleFit:
    """How all particles fit; the processes of a job share them.

    Args:
        comparison: the comparison.
        dataset: the particles.
        posed: their poses, in any box.
    """
    local, count = shard(torch.arange(len(dataset))), len(dataset)
    fits = [fit_images(comparison, *batch) for batch in matched_batches(comparison, dataset, posed, local)]
    return gather_shards(ParticleFit.cat(fits), count)
