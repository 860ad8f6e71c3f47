"""Comparison of particles with the half maps of their classes, and the noise of their images.

Images are compared with the map of the half set that they are not in, at the pose that they got against their own, up
to the shell where the half maps agree by 0.5. With z the image times its CTF C, P the projection and p the inverse
noise variance, the amplitude that fits best is::

    s = b / a,    b = sum_k p Re(z conj P),    a = sum_k p C^2 |P|^2

and z - s C^2 P is the residual.

Noise. Structure in the ice has passed the CTF, counting of electrons has not, so the noise of an image depends on its
CTF. In a shell its variance, in units of the squared CTF, is N + S m, with m the mean of C^4 over that of C^2. N and S
of each optics group follow from the residuals of the images that fit best; images come weighted by their noise, as in
``cryoeq.reconstruction.noise_groups``, so that all have one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Float64, Int
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.optics import CtfParameters
from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.domain.particles import ParticleBatch
from cryoeq.domain.pose import PoseSet
from cryoeq.domain.volume import HalfMaps
from cryoeq.geometry.fourier import HalfPlane, crop_centred, fft_map, ifft_map
from cryoeq.geometry.shells import fourier_shell_correlation, signal_to_noise
from cryoeq.geometry.so3_grid import so3_grid
from cryoeq.physics.backprojection import wiener_filter
from cryoeq.physics.ctf import matched_filter
from cryoeq.physics.image_formation import undo_optics
from cryoeq.physics.projection import extract_slices, prepare_slices, sample_slices

FIRST_SHELL = 2
"""First shell of the comparison: shell 1 holds what is left of uneven ice."""
_RELIABLE = 0.5  # FSC of the half maps down to which images are compared
_MIN_SHELLS, _SPARE_SHELLS = 6, 4
_NOISE_QUANTILE, _Z_NOISE = 0.3, -0.5244  # of residuals: at most 7 in 10 images may be junk
_LEAST_NOISE = 0.05  # of the noise of all groups
_MIN_DISTANCE = 0.05  # of m, from which on the noise of either kind can be told apart
_MIN_GROUP = 100  # particles of an optics group with a noise spectrum of its own
_BATCH_PX = 2**20


@dataclass(frozen=True)
class MatchedImages(ParticleRows):
    """Images up to the resolution of the comparison, in the units in which all have one noise spectrum.

    Args:
        ctf_multiplied: coefficients times CTF and relative noise precision, not centred.
        ctf_squared: squared CTF times relative noise precision.
    """

    ctf_multiplied: Complex[Tensor, "particles points"]
    ctf_squared: Float[Tensor, "particles points"]

    def __len__(self) -> int:
        return len(self.ctf_multiplied)


@dataclass(frozen=True)
class PosedRows(ParticleRows):
    """Poses of particles, and the maps that these belong to.

    Args:
        poses: against the map of the particle's own half set.
        half_set: 1 or 2.
        class_index: class, from 0.
    """

    poses: PoseSet
    half_set: Int[Tensor, " particles"]
    class_index: Int[Tensor, " particles"]


@dataclass(frozen=True)
class ClassReference:
    """The filtered half maps of one class.

    Args:
        volumes: both maps, in the box of the comparison.
        channels: real parts, then imaginary parts, of the transforms of each map, and of the map times x, y and z.
        averages: transform of the spherical average of each map, at the coefficients of the comparison.
    """

    volumes: tuple[Float[Tensor, "m m m"], Float[Tensor, "m m m"]]
    channels: tuple[Float[Tensor, "8 p p p"], Float[Tensor, "8 p p p"]]
    averages: tuple[Float[Tensor, " points"], Float[Tensor, " points"]]

    @property
    def mean(self) -> Float[Tensor, "m m m"]:
        """The mean of both maps."""
        return (self.volumes[0] + self.volumes[1]) / 2


@dataclass(frozen=True)
class Comparison:
    """What images are compared with.

    Args:
        plane: coefficients of the comparison; offsets are in pixels of its box.
        pixel_size_angstrom: pixel size of that box.
        references: half maps of each class.
        noise: noise variance of each shell, that of a common image.
        group: noise group of each particle.
        shot: N of each group, the variance of noise that has not passed the CTF.
        structure: S of each group, that of noise that has.
    """

    plane: HalfPlane
    pixel_size_angstrom: float
    references: tuple[ClassReference, ...]
    noise: Float[Tensor, " shells"]
    group: Int[Tensor, " particles"]
    shot: Float[Tensor, "groups shells"]
    structure: Float[Tensor, "groups shells"]

    @property
    def last_shell(self) -> int:
        """The last shell of the comparison."""
        return int(self.plane.shells[-1])

    @property
    def precision(self) -> Float[Tensor, " points"]:
        """Inverse noise variance of each coefficient, 0 before the first shell of the comparison."""
        shells = self.plane.shells
        return torch.where(shells >= FIRST_SHELL, self.noise.reciprocal()[shells], 0.0)

    def match(self, batch: ParticleBatch) -> MatchedImages:
        """Transform images and multiply them by their CTF and the noise precision of their group."""
        n = batch.images.shape[-1]
        coefficients = HalfPlane.up_to(n, self.last_shell + 0.5).transform(batch.images)
        factor, squared = self.optics(batch.ctf, len(batch))
        weights = self.relative_precision(batch.indices, squared)
        return MatchedImages(coefficients * factor * weights, squared * weights)

    def optics(
        self, ctf: CtfParameters | None, count: int
    ) -> tuple[Float[Tensor, "count points"], Float[Tensor, "count points"]]:
        """Factor that matches stored images, and squared CTF; 1 without a CTF."""
        if ctf is None:
            ones = torch.ones(count, len(self.plane))
            return ones, ones
        return matched_filter(ctf, self.plane.frequencies_per_angstrom(self.pixel_size_angstrom))

    def relative_precision(
        self, rows: Int[Tensor, " rows"], squared: Float[Tensor, "rows points"]
    ) -> Float[Tensor, "rows points"]:
        """Inverse noise variance of each particle's shells over the common one.

        Args:
            rows: rows of the particle table.
            squared: their squared CTF.
        """
        group = self.group[rows]
        variance = self.shot[group] + self.structure[group] * self.concentration(squared)
        return (self.noise / variance)[:, self.plane.shells]

    def concentration(self, squared: Float[Tensor, "rows points"]) -> Float[Tensor, "rows shells"]:
        """m, the mean of C^4 over that of C^2, in each shell."""
        sums = self.plane.shell_sums
        return sums(squared.square()) / sums(squared).clamp(min=1e-12)

    def project(self, posed: PosedRows) -> tuple[Complex[Tensor, "4 rows points"], Float[Tensor, "rows points"]]:
        """Projections of the other half set's map, of it times x, y and z, and its spherical average, for each row."""
        projections = torch.empty(4, len(posed.half_set), len(self.plane), dtype=torch.complex64)
        averages = torch.empty(len(posed.half_set), len(self.plane))
        for number, reference in enumerate(self.references):
            for half, other in ((1, 2), (2, 1)):
                rows = ((posed.class_index == number) & (posed.half_set == half)).nonzero().squeeze(1)
                if len(rows):  # grid_sample refuses an empty batch
                    sampled = sample_slices(
                        reference.channels[other - 1], posed.poses.rotations[rows].float(), self.plane
                    )
                    projections[:, rows] = torch.complex(sampled[:4], sampled[4:])
                    averages[rows] = reference.averages[other - 1]
        return projections, averages


def is_comparable(halves: HalfMaps, box_size_px: int) -> bool:
    """Whether half maps agree at enough shells for particles to be compared with them.

    Args:
        halves: unfiltered half maps of a class.
        box_size_px: side of the particles' box, no larger than theirs.
    """
    fsc = fourier_shell_correlation(halves.first.values, halves.second.values)
    return _last_reliable(fsc, box_size_px) - FIRST_SHELL + 1 >= _MIN_SHELLS


def compare_with(
    dataset: ParticleDataset, classes: Sequence[HalfMaps], posed: PosedRows, sample: Int[Tensor, " rows"]
) -> Comparison | None:
    """The comparison of particles with maps; None where the half maps agree at too few shells.

    Args:
        dataset: the particles.
        classes: unfiltered half maps of each class, at the box of the dataset or a larger one.
        posed: poses of all particles, in any box.
        sample: rows from which the noise is estimated.
    """
    n = dataset.box_size_px
    curves = [fourier_shell_correlation(halves.first.values, halves.second.values) for halves in classes]
    last = min(_last_reliable(fsc, n) for fsc in curves)
    if last - FIRST_SHELL + 1 < _MIN_SHELLS:
        return None
    box = min(n, 2 * (last + _SPARE_SHELLS))
    plane = HalfPlane.up_to(box, last + 0.5)
    references = tuple(_reference(halves, fsc, plane) for halves, fsc in zip(classes, curves, strict=True))
    group = _groups(dataset.table.optics_index)
    ones = torch.ones(int(group.max()) + 1, last + 1)
    pixel_size = dataset.pixel_size_angstrom * n / box
    flat = Comparison(plane, pixel_size, references, ones[0], group, ones, torch.zeros_like(ones))
    return _with_noise(flat, dataset, posed, sample)


def _last_reliable(fsc: Float[Tensor, " shells"], box_size_px: int) -> int:
    below = (fsc[FIRST_SHELL:] < _RELIABLE).nonzero()
    return min(FIRST_SHELL + int(below[0]) - 1 if len(below) else len(fsc) - 1, box_size_px // 2 - 1)


def _groups(optics_index: Int[Tensor, " particles"]) -> Int[Tensor, " particles"]:
    """Optics group of each particle, from 0; groups of few particles count as one."""
    numbers, counts = optics_index.unique(return_counts=True)
    few = torch.isin(optics_index, numbers[counts < _MIN_GROUP])
    joined: Int[Tensor, " particles"] = torch.where(few, -1, optics_index).unique(return_inverse=True)[1]
    return joined


def _reference(halves: HalfMaps, fsc: Float[Tensor, " shells"], plane: HalfPlane) -> ClassReference:
    box = plane.box_size_px
    filtered = [
        ifft_map(crop_centred(fft_map(wiener_filter(half.values.float(), signal_to_noise(fsc))), box, 3))
        for half in (halves.first, halves.second)
    ]
    first, second = filtered
    channels, averages = zip(*(_channels(volume, plane) for volume in filtered), strict=True)
    return ClassReference((first, second), (channels[0], channels[1]), (averages[0], averages[1]))


def _channels(
    volume: Float[Tensor, "m m m"], plane: HalfPlane
) -> tuple[Float[Tensor, "8 p p p"], Float[Tensor, " points"]]:
    """Transforms of a map and of it times x, y and z from its centre of mass, in radii of gyration; its average."""
    axis = torch.arange(len(volume), dtype=volume.dtype) - len(volume) // 2
    mass = volume.clamp(min=0)
    x, y, z = (
        ((axis - (mass.sum(others) * axis).sum() / mass.sum()).view(shape)).expand_as(volume)
        for others, shape in (((0, 1), (1, 1, -1)), ((0, 2), (1, -1, 1)), ((1, 2), (-1, 1, 1)))
    )
    radius = ((mass * (x.square() + y.square() + z.square())).sum() / mass.sum()).sqrt()
    transforms = torch.stack([prepare_slices(volume * weight) for weight in (1.0, x / radius, y / radius, z / radius)])
    slices = extract_slices(transforms[0], so3_grid(1, 1), plane).real.mean(0)
    average = (plane.shell_sums(slices) / plane.shell_sums(torch.ones_like(slices)))[plane.shells]
    return torch.cat([transforms.real, transforms.imag]), average


def _with_noise(
    flat: Comparison, dataset: ParticleDataset, posed: PosedRows, sample: Int[Tensor, " rows"]
) -> Comparison:
    """The comparison with the noise of each group: that of the images that fit best."""
    sums = flat.plane.shell_sums
    measured = []
    for images, there in matched_batches(flat, dataset, posed, sample):
        residual, _, _ = fit_amplitudes(flat, images, there, flat.project(there)[0][0])
        squared = images.ctf_squared
        measured.append((sums(residual.abs().square()), sums(squared), sums(squared.square())))
    power, second, fourth = (torch.cat(parts).double() for parts in zip(*measured, strict=True))
    second, fourth = second.clamp(min=1e-12), fourth.clamp(min=1e-24)
    # The quantile of gamma variables, by that of a normal one (Wilson and Hilferty 1931).
    width = (4.5 * second.square() / fourth).rsqrt()
    alone = power / second / (1 - width.square() + _Z_NOISE * width).clamp(min=0.1).pow(3)
    whole = alone.quantile(_NOISE_QUANTILE, 0)
    whole = whole.clamp(min=max(1e-3 * float(whole.mean()), 1e-12))
    shot, structure = whole.repeat(len(flat.shot), 1), torch.zeros_like(flat.structure).double()
    group = flat.group[sample]
    for number in range(len(shot)):
        members = group == number
        if int(members.sum()) >= _MIN_GROUP // 2:
            shot[number], structure[number] = _line(alone[members], (fourth / second)[members], whole)
    return replace(flat, noise=whole.float(), shot=shot.float(), structure=structure.float())


def _line(
    noise: Float64[Tensor, "rows shells"],
    concentration: Float64[Tensor, "rows shells"],
    whole: Float64[Tensor, " shells"],
) -> tuple[Float64[Tensor, " shells"], Float64[Tensor, " shells"]]:
    """N and S of a group, per shell: the line through the quantiles of the two halves of the images, by their m.

    Args:
        noise: of each image as it would follow from this image alone.
        concentration: m of each image.
        whole: noise of all groups, of which N is a twentieth at least.
    """
    order = concentration.argsort(0)
    noise, concentration = noise.gather(0, order), concentration.gather(0, order)
    half = len(noise) // 2
    (low, high), (first, last) = (
        (part[:half].quantile(fraction, 0), part[half:].quantile(fraction, 0))
        for part, fraction in ((noise, _NOISE_QUANTILE), (concentration, 0.5))
    )
    distance = last - first
    slope = torch.where(distance > _MIN_DISTANCE, (high - low) / distance.clamp(min=_MIN_DISTANCE), 0.0)
    least = _LEAST_NOISE * whole
    slope = slope.clamp(min=0.0).minimum(((high - least) / last.clamp(min=1e-12)).clamp(min=0.0))
    middle = (low + high) / 2 - slope * (first + last) / 2
    return middle.maximum(least), slope


def matched_batches(
    comparison: Comparison, dataset: ParticleDataset, posed: PosedRows, rows: Int[Tensor, " rows"]
) -> Iterator[tuple[MatchedImages, PosedRows]]:
    """Images and their poses, batch by batch.

    Args:
        comparison: the comparison.
        dataset: all particles.
        posed: poses of all particles.
        rows: the particles.
    """
    box = comparison.plane.box_size_px
    for batch in dataset.batches(max(1, _BATCH_PX // dataset.box_size_px**2), rows):
        there = posed.rows(batch.indices)
        yield comparison.match(batch), replace(there, poses=there.poses.in_box(box))


def fit_amplitudes(
    comparison: Comparison, images: MatchedImages, posed: PosedRows, projections: Complex[Tensor, "rows points"]
) -> tuple[Complex[Tensor, "rows points"], Float[Tensor, " rows"], Complex[Tensor, "rows points"]]:
    """Residual of each image, the amplitude that fits best, and the centred image.

    Args:
        comparison: the comparison.
        images: the images.
        posed: their poses, in the box of the comparison.
        projections: of the map at these poses.
    """
    centred = undo_optics(images.ctf_multiplied, posed.poses.shifts_px.float(), None, comparison.plane)
    weights = comparison.plane.weights * comparison.precision
    predicted = images.ctf_squared * projections
    power = ((predicted * projections.conj()).real @ weights).clamp(min=1e-12)
    amplitude = ((centred * projections.conj()).real @ weights) / power
    return centred - amplitude[:, None] * predicted, amplitude, centred
