"""Particle images in Fourier space for the E-step: CTF-multiplied coefficients, and the squared CTF.

Both carry the relative noise precision of the particle's group (``noise_groups``), and its scale as a factor of its
CTF (``particle_scale``), so that nothing else has to know of either.
"""

from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.prefetch import read_batches
from cryoeq.domain.events import Event, Note, Progress
from cryoeq.domain.optics import CtfParameters
from cryoeq.domain.particles import ParticleBatch
from cryoeq.geometry.disk_harmonics import DiskHarmonics
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.physics.ctf import ctf_features, matched_filter
from cryoeq.physics.noise import background_spectrum, shell_means
from cryoeq.physics.shift import shift_phases
from cryoeq.reconstruction.noise_groups import MIN_PARTICLES, BackgroundSums, NoiseGroups, at_radii
from cryoeq.runtime.distributed import all_reduce, broadcast, exchange_rows, shard, world_size

POWER_ORDERS = 3  # angular orders 0, 2 and 4 of the squared CTF
_HAT_SPACING = 0.5  # cycles per box
READING_BATCH = 256  # of images up to 64 px: more do not stay in a processor's cache
_LARGER_ON_GPU = 32  # batches, whose kernels cost as much to launch for few images as for many
_ANGLES = 8  # over half a turn, to compute the angular harmonics of the squared CTF
_BACKGROUND_SHARE = 0.5  # of the variance of the background, below which no noise is believed
_MIN_NOISE, _QUIETEST = 0.05, 0.8  # least noise: fraction of the shell's own variance, of the quietest shell's


@dataclass(frozen=True)
class LikelihoodTerms:
    """The terms of the log-likelihood that depend on the image alone; rows may be one particle at several offsets.

    Args:
        cross_term: disk harmonics of the CTF-multiplied images.
        quadratic_term: harmonics of the squared CTF at the hat functions' radii, real and imaginary part, angular
            orders 0, 2 and 4.
    """

    cross_term: Float[Tensor, "orders rows radial 2"]
    quadratic_term: Float[Tensor, "power_orders rows hats 2"]

    def scaled(self, factor: Float[Tensor, " rows"]) -> "LikelihoodTerms":
        """The terms times a factor for each row, for weighted sums."""
        factors = factor[:, None, None]
        return LikelihoodTerms(self.cross_term * factors, self.quadratic_term * factors)

    def __add__(self, other: "LikelihoodTerms") -> "LikelihoodTerms":
        return LikelihoodTerms(self.cross_term + other.cross_term, self.quadratic_term + other.quadratic_term)


@dataclass(frozen=True)
class ParticleTransforms:
    """Particles up to a radius in Fourier space, sorted by radius so that a lower one is a prefix.

    Args:
        plane: the coefficients; offsets are in pixels of its box.
        ctf_multiplied: images times their CTF (unchanged where premultiplied), not centred.
        ctf_squared: CTF squared.
        ctf_squared_harmonics: the CTF squared at the hat functions' radii, real and imaginary part of angular orders
            0, 2 and 4.
        ctf_features: conditioning vector of each CTF for an encoder; None without a CTF.
        scale: amplitude of each particle, which ``rows`` multiplies its CTF by; None for 1, as after ``rows``.
        group: group of each particle, of ``noise_groups``; None where all are one.
        background_variance: variance per shell of the background around the particles, as ``total_variance``; None
            where it was not measured.
        least_noise: least noise variance per shell; None where nothing but the images bounds it.
    """

    plane: HalfPlane
    ctf_multiplied: Complex[Tensor, "particles points"]
    ctf_squared: Float[Tensor, "particles points"]
    ctf_squared_harmonics: Float[Tensor, "power_orders particles hats 2"]
    ctf_features: Float[Tensor, "particles 3"] | None = None
    scale: Float[Tensor, " particles"] | None = None
    group: Int[Tensor, " particles"] | None = None
    background_variance: Float[Tensor, " shells"] | None = None
    least_noise: Float[Tensor, " shells"] | None = None

    def __len__(self) -> int:
        return len(self.ctf_multiplied)

    @property
    def device(self) -> torch.device:
        """Device of the coefficients."""
        return self.ctf_multiplied.device

    @cached_property
    def total_variance(self) -> Float[Tensor, " shells"]:
        """Variance per coefficient of signal and noise together, per shell, at a CTF of 1 and a scale of 1.

        The spread of the scales is left in the noise: neither half set is to see the scales of the other.
        """
        return self.plane.shell_sums(self.ctf_multiplied.abs().square().sum(0)) / self._ctf_squared_sums

    def residual_noise_variance(self, map_power: Float[Tensor, " points"]) -> Float[Tensor, " shells"]:
        """Noise variance per shell: the variance of the images without that of a map's projections.

        Noise is flat, or falls with frequency, so no shell has much less of it than the quietest has of signal and
        noise together. Without that floor a map too strong in its first shells, which a CTF near 0 barely determines,
        would make them count for more than all others.

        Args:
            map_power: mean |P|^2 of the map's projections at each coefficient.
        """
        signal, total = self.signal_variance(map_power), self.total_variance
        floor = (_MIN_NOISE * total).maximum(_QUIETEST * total[1:].min())
        if self.least_noise is not None:
            floor = floor.maximum(total.minimum(self.least_noise))
        return torch.maximum(total - signal, floor)

    def signal_variance(self, map_power: Float[Tensor, " points"]) -> Float[Tensor, " shells"]:
        """Variance of the projections of a map per shell, as ``total_variance``.

        Args:
            map_power: mean |P|^2 of the map's projections at each coefficient.
        """
        return self.plane.shell_sums(self._ctf_fourth_power * map_power) / self._ctf_squared_sums

    @cached_property
    def _ctf_squared_sums(self) -> Float[Tensor, " shells"]:
        return self.plane.shell_sums(self.ctf_squared.sum(0)).clamp(min=torch.finfo(torch.float32).tiny)

    @cached_property
    def _ctf_fourth_power(self) -> Float[Tensor, " points"]:
        return self.ctf_squared.square().sum(0)

    def within(self, radius: float, box_size_px: int) -> "ParticleTransforms":
        """Fewer coefficients, of a smaller box.

        Args:
            radius: radius of the coefficients to keep, in cycles per box.
            box_size_px: side of the new plane's box, in whose pixels offsets are counted.
        """
        plane = self.plane.within(radius, box_size_px)
        count, n_shells = len(plane), plane.last_shell + 1
        hats = len(power_radii(plane.last_radius))
        return ParticleTransforms(
            plane,
            self.ctf_multiplied[:, :count],
            self.ctf_squared[:, :count],
            self.ctf_squared_harmonics[:, :, :hats],
            self.ctf_features,
            self.scale,
            self.group,
            None if self.background_variance is None else self.background_variance[:n_shells],
            None if self.least_noise is None else self.least_noise[:n_shells],
        )

    def with_scale(self, scale: Float[Tensor, " particles"]) -> "ParticleTransforms":
        """The same particles, with other scales."""
        return replace(self, scale=scale)

    def with_background_as_least_noise(self) -> "ParticleTransforms":
        """The same particles, whose noise is not estimated below half the variance of the background around them.

        For starts with symmetry: what is round in a particle of T, O or I makes nearly all of the first shells, whose
        noise falls to its least value within two iterations and rises again with the power of the map, in each start at
        its own time. On apoferritin (seeds 100 to 105, four starts each, six of them wrong) the likelihood at one noise
        then told nothing of maps after another number of iterations, and two maps followed the truth less (FSC 0.52 and
        0.50 in shells 8 to 16 after 13 iterations; 0.57 and 0.56 with this bound). With it every wrong start is 0.2
        nats or more below every right one of its seed after three iterations, 0.4 after six (two seeds). Tails of
        particles and neighbours are in the background too.
        """
        background = self.background_variance
        return replace(self, least_noise=None if background is None else _BACKGROUND_SHARE * background)

    def rows(self, rows: Int[Tensor, " rows"]) -> "ParticleTransforms":
        """Some of the particles, their CTFs times their scale."""
        some = ParticleTransforms(
            self.plane,
            self.ctf_multiplied[rows],
            self.ctf_squared[rows],
            self.ctf_squared_harmonics[:, rows],
            None if self.ctf_features is None else self.ctf_features[rows],
            group=None if self.group is None else self.group[rows],
            background_variance=self.background_variance,
            least_noise=self.least_noise,
        )
        return some if self.scale is None else some._scaled(self.scale[rows, None])

    def _scaled(self, scale: Float[Tensor, "particles 1"]) -> "ParticleTransforms":
        squared = scale.square()
        return replace(
            self,
            ctf_multiplied=self.ctf_multiplied * scale,
            ctf_squared=self.ctf_squared * squared,
            ctf_squared_harmonics=self.ctf_squared_harmonics * squared[..., None],
        )

    def centred(self, shifts_px: Float[Tensor, "particles 2"]) -> Complex[Tensor, "particles points"]:
        """CTF-multiplied images, shifted by their offsets."""
        return self.ctf_multiplied * shift_phases(-shifts_px, self.plane.coords, self.plane.box_size_px)

    def at_offsets(self, offsets_px: Float[Tensor, "particles offsets 2"], harmonics: DiskHarmonics) -> LikelihoodTerms:
        """Each particle at each of its offsets, one row per pair."""
        count = offsets_px.shape[1]
        phases = shift_phases(-offsets_px.flatten(0, 1), self.plane.coords, self.plane.box_size_px)
        shifted = self.ctf_multiplied[:, None] * phases.view(len(self), count, -1)
        squared = self.ctf_squared_harmonics.repeat_interleave(count, 1) if count > 1 else self.ctf_squared_harmonics
        return LikelihoodTerms(harmonics.analyse(shifted.flatten(0, 1)), squared)


def load_transforms(
    dataset: ParticleDataset,
    device: torch.device,
    rows: Int[Tensor, " rows"] | None = None,
    *,
    radius: float | None = None,
) -> Generator[Event, None, ParticleTransforms]:
    """Transforms of the whole stack: the only copy of the particles that a search keeps.

    The processes of a job share the reading: each reads a part of the rows, and gives its transforms to the others.

    Args:
        dataset: particles, at the box where poses are inferred.
        device: device that keeps the transforms.
        rows: rows of the particle table, for some of the particles only; None for all.
        radius: radius of the coefficients to keep, in cycles per box; None for all below Nyquist.
    """
    n, rows = dataset.box_size_px, torch.arange(len(dataset)) if rows is None else rows
    last = n / 2 - 1 if radius is None else min(radius, n / 2 - 1)
    plane, count = HalfPlane.up_to(n, last, device), len(rows)
    groups = NoiseGroups.of_table(dataset.table, rows)
    backgrounds = BackgroundSums.empty(len(groups), plane.last_shell + 1, device)
    stack: ParticleTransforms | None = None
    is_shared = count >= world_size()
    positions = shard(torch.arange(count)) if is_shared else torch.arange(count)
    first = done = int(positions[0]) if len(positions) else 0
    for batch in read_batches(dataset, reading_batch(n, device), device, rows[positions]):
        there = slice(done, done + len(batch))
        transforms = _transform(batch, plane, dataset.pixel_size_angstrom)
        stack = _allocate(transforms, count) if stack is None else stack
        _write(stack, there, transforms)
        group = groups.of_particle[there].to(device)
        radius_px = dataset.preprocessing.background_radius * n / 2
        backgrounds = backgrounds.adding(*_background(batch, transforms, radius_px), group)
        done += len(batch)
        yield Progress("reading", done - first, len(positions))
    if stack is None:
        raise ValueError("there are no particles")
    if is_shared:
        backgrounds = _exchange(stack, backgrounds)
    dataset.share_census()
    stack = replace(stack, background_variance=broadcast(backgrounds.variance).to(stack.ctf_squared))
    if len(groups) > 1:
        stack = replace(stack, group=groups.of_particle.to(device))
        relative_precision = broadcast(backgrounds.relative_precision(groups))
        _weight(stack, relative_precision)
        differences = float(relative_precision[stack.group, 1:].log().std(0).mean())
        yield Note(
            f"Noise: a spectrum for each of {len(groups)} groups of particles (optics groups, and micrographs of "
            f"{MIN_PARTICLES} particles or more); they differ by {differences:.0%}."
        )
    return stack


def reading_batch(box_size_px: int, device: torch.device | None = None) -> int:
    """Images that are read at a time, as many pixels for any box.

    Args:
        box_size_px: side of the images.
        device: where they are transformed; None for the CPU.
    """
    most = READING_BATCH * (_LARGER_ON_GPU if device is not None and device.type == "cuda" else 1)
    return max(1, min(most, most * 64**2 // box_size_px**2))


def _background(
    batch: ParticleBatch, transforms: ParticleTransforms, radius_px: float
) -> tuple[Float[Tensor, "batch shells"], Float[Tensor, "batch shells"]]:
    """Power of the background of each image per shell, and the factor by which premultiplication changed it.

    Args:
        batch: images.
        transforms: of these images.
        radius_px: radius of the circle outside of which an image is background.
    """
    n_shells = transforms.plane.last_shell + 1
    power = background_spectrum(batch.images, radius_px)[:, :n_shells]
    if batch.ctf is None:
        return power, torch.ones_like(power)
    mean = shell_means(transforms.ctf_squared, transforms.plane)[:, :n_shells]
    return power, torch.where(batch.ctf.is_premultiplied[:, None] > 0, mean, torch.ones_like(mean))


def _weight(stack: ParticleTransforms, relative_precision: Float[Tensor, "groups shells"]) -> None:
    """Multiply images and squared CTF, which are written to, by the relative noise precision of their group."""
    plane, group = stack.plane, stack.group
    if group is None:
        return
    hats = power_radii(plane.last_radius, stack.device)
    for first in range(0, len(stack), READING_BATCH):
        there = slice(first, first + READING_BATCH)
        precision = relative_precision[group[there]].to(stack.ctf_squared)
        weights = at_radii(precision, plane.radii)
        stack.ctf_multiplied[there] *= weights
        stack.ctf_squared[there] *= weights
        stack.ctf_squared_harmonics[:, there] *= at_radii(precision, hats)[..., None]


def _allocate(batch: ParticleTransforms, count: int) -> ParticleTransforms:
    """Space for a number of particles, not yet filled: joining the batches at the end would take it twice."""
    orders, _, *hats = batch.ctf_squared_harmonics.shape
    return ParticleTransforms(
        batch.plane,
        batch.ctf_multiplied.new_empty(count, len(batch.plane)),
        batch.ctf_squared.new_empty(count, len(batch.plane)),
        batch.ctf_squared_harmonics.new_empty(orders, count, *hats),
        None if batch.ctf_features is None else batch.ctf_features.new_empty(count, batch.ctf_features.shape[1]),
    )


def _write(stack: ParticleTransforms, rows: slice, batch: ParticleTransforms) -> None:
    """Fill rows of the stack, which is written to."""
    stack.ctf_multiplied[rows] = batch.ctf_multiplied
    stack.ctf_squared[rows] = batch.ctf_squared
    stack.ctf_squared_harmonics[:, rows] = batch.ctf_squared_harmonics
    if stack.ctf_features is not None and batch.ctf_features is not None:
        stack.ctf_features[rows] = batch.ctf_features


def _exchange(stack: ParticleTransforms, backgrounds: BackgroundSums) -> BackgroundSums:
    """Fill the rows of the stack, which is written to, that other processes have read; the sums over all images."""
    columns = [stack.ctf_multiplied, stack.ctf_squared, *stack.ctf_squared_harmonics]
    for column in columns if stack.ctf_features is None else [*columns, stack.ctf_features]:
        exchange_rows(column)
    return BackgroundSums(all_reduce(backgrounds.sums))


def _transform(batch: ParticleBatch, plane: HalfPlane, pixel_size_angstrom: float) -> ParticleTransforms:
    coefficients = plane.transform(batch.images)
    if batch.ctf is None:
        ones = torch.ones(coefficients.shape, device=coefficients.device)
        return transforms_of_matched(coefficients, ones, None, plane, pixel_size_angstrom)
    factor, squared = matched_filter(batch.ctf, plane.frequencies_per_angstrom(pixel_size_angstrom))
    return transforms_of_matched(coefficients * factor, squared, batch.ctf, plane, pixel_size_angstrom)


def transforms_of_matched(
    ctf_multiplied: Complex[Tensor, "particles points"],
    ctf_squared: Float[Tensor, "particles points"],
    ctf: CtfParameters | None,
    plane: HalfPlane,
    pixel_size_angstrom: float,
) -> ParticleTransforms:
    """Particles of which the CTF-multiplied coefficients are known.

    Args:
        ctf_multiplied: images times their CTF, not centred.
        ctf_squared: CTF squared; 1 without a CTF.
        ctf: parameters of the CTF; None without one.
        plane: the coefficients.
        pixel_size_angstrom: pixel size of the plane's box.
    """
    if ctf is None:
        hats = len(power_radii(plane.last_radius))
        harmonics = torch.zeros(POWER_ORDERS, len(ctf_multiplied), hats, 2, device=ctf_multiplied.device)
        harmonics[0, ..., 0] = 1.0
        return ParticleTransforms(plane, ctf_multiplied, ctf_squared, harmonics)
    harmonics = _ctf_squared_harmonics(ctf, plane, pixel_size_angstrom)
    return ParticleTransforms(plane, ctf_multiplied, ctf_squared, harmonics, ctf_features(ctf))


def power_radii(radius: float, device: torch.device | None = None) -> Float[Tensor, " hats"]:
    """Radii of the hat functions that expand the squared CTF up to a radius, in cycles per box."""
    return torch.arange(int((radius + 1) / _HAT_SPACING) + 1, device=device) * _HAT_SPACING


@lru_cache(maxsize=16)
def power_hats(plane: HalfPlane) -> Complex[Tensor, "points hats power_orders"]:
    """Hat functions times exp(2 i l theta), l = 0, 1, 2, at each coefficient; kept, so not to be changed."""
    radii = power_radii(plane.last_radius, plane.coords.device)
    hats = (1 - (plane.radii[:, None] - radii).abs() / _HAT_SPACING).clamp(min=0)
    real = torch.get_default_dtype()
    theta = torch.atan2(plane.coords[:, 1].to(real), plane.coords[:, 0].to(real))
    angles = 2 * theta[:, None] * torch.arange(POWER_ORDERS, device=theta.device)
    return hats[:, :, None] * torch.polar(torch.ones_like(angles), angles)[:, None]


def _ctf_squared_harmonics(
    ctf: CtfParameters, plane: HalfPlane, pixel_size_angstrom: float
) -> Float[Tensor, "power_orders particles hats 2"]:
    radii = power_radii(plane.last_radius, plane.coords.device)
    theta = torch.arange(_ANGLES, device=radii.device) * (torch.pi / _ANGLES)
    coords = torch.stack([radii[:, None] * theta.cos(), radii[:, None] * theta.sin()], -1).flatten(0, 1)
    _, squared = matched_filter(ctf, coords / (plane.box_size_px * pixel_size_angstrom))
    series = torch.fft.fft(squared.view(len(squared), len(radii), _ANGLES), norm="forward")[..., :POWER_ORDERS]
    return torch.view_as_real(series.permute(2, 0, 1).contiguous())
