"""Share of the particles that a map does not explain: junk, another molecule, or poses in a wrong optimum.

The residual of a particle is what its image keeps when the projection of the map at its pose is subtracted. Of a
particle that the map explains it is noise, whose power follows a known distribution: a sum of exponentially
distributed coefficients, weighted by the squared CTF, close to a gamma distribution of the same mean and variance. A
second molecule in the stack leaves its own signal in the residuals of its particles, however well the half maps agree:
both halves hold the same mixture. Each particle is compared with the map of the half set it does not belong to, so that
no map contains the particle's own noise.

The noise is that of the particles that fit best, since background beside the particles has another spectrum: the scale
of the distribution is set by its lower fifth. So a share beyond four fifths cannot be seen.

A particle of a smaller molecule, or none, may leave a residual of the right power: it lacks as much of the projection
as it adds of its own. Its amplitude tells it, that is the factor on the projection that fits it best, which is 1 for
particles that the map explains. Its spread, by noise and by uneven ice, is read off the particles above the median,
among which no such particle is.

Particles that fit all equally badly, such as halves of a mixture that one map blends, are told by the signal of all
images together: their power beyond that of the background, in shells where the half maps agree almost fully, is to be
that of the projections. Neighbours count as signal, and so does junk unless its probability is given, by which
particles count less; a background that was masked is none: there the test says nothing.

Normal approximation of the gamma distribution: Wilson and Hilferty 1931, PNAS 17, 684-688.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.particles import ParticleBatch
from cryoeq.domain.pose import Poses, PoseSet
from cryoeq.domain.volume import HalfMaps
from cryoeq.geometry.fourier import HalfPlane, crop_centred, fft_map, ifft_map
from cryoeq.geometry.shells import fourier_shell_correlation, signal_to_noise
from cryoeq.physics.backprojection import wiener_filter
from cryoeq.physics.ctf import image_transfer, matched_filter
from cryoeq.physics.image_formation import undo_optics
from cryoeq.physics.noise import background_spectrum
from cryoeq.physics.projection import extract_slices, prepare_slices

_RELIABLE = 0.5  # FSC of the half maps down to which residuals are compared
_FIRST_SHELL = 2  # shell 1 holds what is left of uneven ice
_MIN_SHELLS, _SPARE_SHELLS = 3, 4
_BEST = 0.2  # fraction of the particles, those of the smallest residuals, that sets the noise
_Z_BEST = -0.8416  # standard normal quantile of that fraction
_Z_LIMIT, _BEYOND = 1.6449, 0.05  # one particle in twenty that the map explains lies beyond, for each of two tests
_UPPER, _Z_UPPER = (0.6, 0.9), (0.2533, 1.2816)  # fractions of the particles, and standard normal quantiles of these
_SAMPLE_PX = 2**26
_MIN_SAMPLE = 100
_BATCH_PX = 2**18
_CERTAIN = 0.95  # FSC of the half maps, from which on the map's own error is small
_MAX_BEYOND_BACKGROUND = 1.5  # power of residuals over that of the background, at the last shell
_MAX_EXPLAINED = 1.1
_BACKGROUND_RADIUS = 0.9  # of half the box
_TOLERANCE = 0.1  # of the projection's amplitude: without noise, the errors of a good map are seen too
_MIN_EXCESS = 0.25  # of its power: junk in j of the particles dampens the map, which leaves j² of the others' power
_MIN_POWER = 1.0  # below, a missing particle is lost in the noise


JUNK_CUT = 0.2
"""Probability from which on a particle counts as junk.

One that is kept wrongly costs more than one left out, and broken particles are told too low a probability: of those
kept, 2 % are to be junk and 4 to 6 % are (two molecules with 30 % of junk, 64 px, SNR 0.1).
"""


@dataclass(frozen=True)
class JunkProbabilities:
    """Probabilities that particles are junk.

    Args:
        any_kind: of any kind.
        broken: broken, which is a part of that; particles of another structure look like it.
    """

    any_kind: Float[Tensor, " particles"]
    broken: Float[Tensor, " particles"]


@dataclass(frozen=True)
class Residuals:
    """Residuals of particles against a map.

    Args:
        rows: rows of the particle table, a sample of it where that is large.
        z: power of each residual as a standard normal variable, where the map explains the particle.
        amplitude_z: amplitude of each particle in its projection likewise.
        is_unexplained: whether the residual is larger, or the amplitude smaller, than chance allows one in twenty, by
            more than a quarter of the projection's power, or a tenth of its amplitude.
        resolution_angstrom: resolution of the comparison.
        detectability: median power of the map's projections over the standard deviation of the residuals' power:
            below about 1, particles of another molecule are lost in the noise.
        explained_signal: power of the projections over that of the images' signal, in shells where the half maps agree
            almost fully, corrected for their FSC; 1 where the map explains all. None where it cannot be told.
        weights: weight of each particle in the share: its probability of being no junk, or broken junk, which cannot be
            told from another structure; 1 where that is not known.
    """

    rows: Int[Tensor, " rows"]
    z: Float[Tensor, " rows"]
    amplitude_z: Float[Tensor, " rows"]
    is_unexplained: Bool[Tensor, " rows"]
    resolution_angstrom: float
    detectability: float
    explained_signal: float | None
    weights: Float[Tensor, " rows"]

    @property
    def unexplained_share(self) -> float | None:
        """Share of the particles, but for junk, that the map does not explain; None where noise would hide it.

        It is the excess of particles whose residual is larger, or whose amplitude smaller, than chance allows one in
        twenty each.
        """
        if self.detectability < _MIN_POWER:
            return None
        by_chance = 1 - (1 - _BEYOND) ** 2
        weights = self.weights.double()
        share = float((self.is_unexplained * weights).sum() / weights.sum().clamp(min=1e-12))
        return max(0.0, (share - by_chance) / (1 - by_chance))


def measure_residuals(
    dataset: ParticleDataset,
    poses: Poses,
    half_set: Int[Tensor, " particles"],
    halves: HalfMaps,
    junk: JunkProbabilities | None = None,
    members: Int[Tensor, " members"] | None = None,
) -> Residuals | None:
    """Residuals of the particles, each against the map of the other half set.

    Args:
        dataset: images of the particles, at the box of the comparison.
        poses: pose of each particle against the map of its own half set.
        half_set: 1 or 2 for each particle.
        halves: unfiltered half maps, at the box of the dataset or a larger one.
        junk: probabilities of each particle; None where they are not known.
        members: rows of the particles that the maps are made of; None for all.

    Returns:
        The residuals; None where the half maps agree at too few shells, or there are too few particles.
    """
    n = dataset.box_size_px
    fsc = fourier_shell_correlation(halves.first.values, halves.second.values)
    below = (fsc[_FIRST_SHELL:] < _RELIABLE).nonzero()
    last = min(_FIRST_SHELL + int(below[0]) - 1 if len(below) else len(fsc) - 1, n // 2 - 1)
    rows = _sample(len(dataset) if members is None else len(members), n)
    rows = rows if members is None else members[rows]
    if last - _FIRST_SHELL + 1 < _MIN_SHELLS or len(rows) < _MIN_SAMPLE:
        return None
    plane = HalfPlane.up_to(n, last + 0.5)
    box = min(n, 2 * (last + _SPARE_SHELLS))  # the maps hold nothing beyond the last shell
    slices = [prepare_slices(_filtered(half.values, fsc, box)) for half in (halves.first, halves.second)]
    powers = [
        _shell_powers(batch, poses, half_set, slices, plane, dataset)
        for batch in dataset.batches(max(1, _BATCH_PX // n**2), rows)
    ]
    residual, expected, variance, signal, cross, power, *sums = (
        torch.cat(parts).double() for parts in zip(*powers, strict=True)
    )
    noise = _noise(residual, expected, dataset.table.optics_index[rows])
    shells = torch.arange(residual.shape[1]) >= _FIRST_SHELL
    residual, signal, cross, power = ((values / noise)[:, shells].sum(1) for values in (residual, signal, cross, power))
    mean, variance = expected[:, shells].sum(1), variance[:, shells].sum(1)
    detectability = float((signal / variance.sqrt()).median())
    factor, z = _standardised(residual / mean, mean.square() / variance)
    centre, amplitude_z = _from_upper_half(cross / power)
    is_unexplained = (z > _Z_LIMIT) & (residual - factor * mean > _MIN_EXCESS * signal)
    is_unexplained |= (amplitude_z < -_Z_LIMIT) & (cross / power < (1 - _TOLERANCE) * centre)
    no_junk, weights = torch.ones_like(z), torch.ones_like(z)
    if junk is not None:
        no_junk = 1 - junk.any_kind[rows].double()
        weights = no_junk + junk.broken[rows].double()
    explained = _explained_signal(fsc, *(no_junk @ values for values in sums))
    resolution = n * dataset.pixel_size_angstrom / last
    return Residuals(rows, z, amplitude_z, is_unexplained, resolution, detectability, explained, weights)


def _sample(count: int, box_size_px: int) -> Int[Tensor, " rows"]:
    """Rows spread evenly over the stack."""
    size = min(count, max(_MIN_SAMPLE, _SAMPLE_PX // box_size_px**2))
    return torch.linspace(0, count - 1, size, dtype=torch.float64).round().long()


def _filtered(
    volume: Float[Tensor, "m m m"], fsc: Float[Tensor, " shells"], box_size_px: int
) -> Float[Tensor, "n n n"]:
    """A half map filtered by its own signal-to-noise ratio, in a smaller box."""
    filtered = wiener_filter(volume.float(), signal_to_noise(fsc))
    return filtered if volume.shape[-1] == box_size_px else ifft_map(crop_centred(fft_map(filtered), box_size_px, 3))


def _shell_powers(
    batch: ParticleBatch,
    poses: Poses,
    half_set: Int[Tensor, " particles"],
    slices: list[Tensor],
    plane: HalfPlane,
    dataset: ParticleDataset,
) -> tuple[Float[Tensor, "batch shells"], ...]:
    """Per shell: power of the residual, its mean and variance at a noise variance of 1; three powers of projections.

    These are the power after the squared CTF, the cross power with the image, and its mean where the image shows them.
    Then of the images as they are: their power, that of their background, their cross power with the prediction, and
    its power.

    The CTF-multiplied image is compared with the projection times the squared CTF, so that images which were multiplied
    by their CTF count like the others.
    """
    local = PoseSet.from_angstrom(poses[batch.indices], dataset.pixel_size_angstrom, plane.box_size_px)
    coefficients = plane.transform(batch.images)
    factor, transfer, squared = None, None, torch.ones(coefficients.shape)
    if batch.ctf is not None:
        frequencies = plane.frequencies_per_angstrom(dataset.pixel_size_angstrom)
        factor, squared = matched_filter(batch.ctf, frequencies)
        transfer = image_transfer(batch.ctf, frequencies)
    centred = undo_optics(coefficients, local.shifts_px.float(), None, plane)
    observed = centred if factor is None else centred * factor
    sharp, map_plane = torch.empty_like(observed), replace(plane, box_size_px=len(slices[0]) // 2)
    for half, other in ((1, 2), (2, 1)):
        of_half = half_set[batch.indices] == half
        sharp[of_half] = extract_slices(slices[other - 1], local.rotations[of_half].float(), map_plane)
    predicted = sharp * squared
    seen = sharp if transfer is None else sharp * transfer
    background = background_spectrum(batch.images, _BACKGROUND_RADIUS * plane.box_size_px / 2)
    powers = (
        (observed - predicted).abs().square(),
        squared,
        2 * squared.square(),
        predicted.abs().square(),
        (observed * sharp.conj()).real,
        (predicted * sharp.conj()).real,
        centred.abs().square(),
        background[:, plane.shells],
        (centred * seen.conj()).real,
        seen.abs().square(),
    )
    return tuple(plane.shell_sums(power) for power in powers)


def _explained_signal(
    fsc: Float[Tensor, " all_shells"],
    images: Float[Tensor, " shells"],
    background: Float[Tensor, " shells"],
    cross: Float[Tensor, " shells"],
    projections: Float[Tensor, " shells"],
) -> float | None:
    """Power of the projections over that of the images beyond their background."""
    residual = images - 2 * cross + projections
    uncertain = (fsc[_FIRST_SHELL : len(images)] < _CERTAIN).nonzero()
    last = _FIRST_SHELL + int(uncertain[0]) if len(uncertain) else len(images)
    is_background = residual[-1] < _MAX_BEYOND_BACKGROUND * background[-1]
    if last - _FIRST_SHELL < _MIN_SHELLS or not bool(is_background):
        return None
    shells = slice(_FIRST_SHELL, last)
    signal = ((images - background) * fsc[: len(images)])[shells].sum()
    explained = (cross.square() / projections.clamp(min=1e-30))[shells].sum()
    ratio = float(explained / signal) if float(signal) > 0 else math.inf
    return ratio if ratio < _MAX_EXPLAINED else None  # else neighbours or ice are part of the background


def _noise(
    residual: Float[Tensor, "rows shells"], expected: Float[Tensor, "rows shells"], groups: Int[Tensor, " rows"]
) -> Float[Tensor, "rows shells"]:
    """Noise variance of each particle's optics group, per shell."""
    noise = torch.empty_like(residual)
    for members in _with_few_joined(groups):
        noise[members] = residual[members].sum(0) / expected[members].sum(0).clamp(min=1e-30)
    return noise.clamp(min=torch.finfo(noise.dtype).tiny)


def _with_few_joined(groups: Int[Tensor, " rows"]) -> Iterator[Int[Tensor, " members"]]:
    """Members of each optics group; groups of few particles count as one."""
    numbers, counts = groups.unique(return_counts=True)
    few = numbers[counts < _MIN_SAMPLE]
    joined = torch.where(torch.isin(groups, few), -1, groups)
    for number in joined.unique().tolist():
        yield (joined == number).nonzero().squeeze(1)


def _standardised(ratio: Float[Tensor, " rows"], shape: Float[Tensor, " rows"]) -> tuple[float, Float[Tensor, " rows"]]:
    """Gamma variables of mean 1 up to a common factor, set by their lower fifth: the factor, and normal variables."""
    width = (9 * shape).rsqrt()
    factor = float((ratio / (1 - width.square() + _Z_BEST * width).clamp(min=1e-3).pow(3)).quantile(_BEST))
    return factor, ((ratio / max(factor, 1e-30)).pow(1 / 3) - (1 - width.square())) / width


def _from_upper_half(values: Float[Tensor, " rows"]) -> tuple[float, Float[Tensor, " rows"]]:
    """Normal variables as standard ones, by centre and width of those above the median; the centre first."""
    low, high = (float(values.quantile(fraction)) for fraction in _UPPER)
    width = max((high - low) / (_Z_UPPER[1] - _Z_UPPER[0]), torch.finfo(values.dtype).tiny)
    centre = low - _Z_UPPER[0] * width
    return centre, (values - centre) / width
