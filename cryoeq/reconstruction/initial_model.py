"""Initial model from noise: stochastic expectation-maximisation (EM) at low resolution.

A random map, a coarse grid of poses in a new random frame in every iteration, small random batches, an annealed
posterior over all poses of each particle, an exponential moving average of the sums, and a radius that grows. In the
few shells in use the likelihood has few other maxima, and annealing passes most of those.

Where symmetry is imposed from the start, the map with the opposite sign of all that is not round is such a maximum:
second moments of the images do not depend on that sign. So the end of the iterations is repeated from there.

Stochastic ab initio: Punjani et al. 2017, Nature Methods 14, 290-296. Annealed likelihood: Ueda and Nakano 1998, Neural
Networks 11, 271-282.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.events import Event, Note, Progress, result_of
from cryoeq.geometry.disk_harmonics import disk_harmonics, support_radius
from cryoeq.geometry.map_filter import low_pass
from cryoeq.geometry.shells import remove_round_part, shell_power
from cryoeq.geometry.so3 import random_rotations
from cryoeq.geometry.soft_mask import soft_sphere
from cryoeq.maps.alignment import rotate_map
from cryoeq.physics.backprojection import WienerBackprojection
from cryoeq.reconstruction.centring import centre_images
from cryoeq.reconstruction.expectation import EStep, EStepResult, expectation_step, offset_step_px, polygon
from cryoeq.reconstruction.noise_model import shell_precision
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.pose_likelihood import PoseGrid, PoseLikelihood
from cryoeq.reconstruction.reference import Reference
from cryoeq.runtime.batching import logging_interval
from cryoeq.runtime.distributed import broadcast, gather_shards, shard, world_size
from cryoeq.runtime.random_streams import Stream, stream_generator, to_device_async
from cryoeq.runtime.replay import Replay

STAGE = "initial model"
_FIRST_TEMPERATURE = 2.0  # of the annealed posterior; falls to 1 over the first half of the iterations
_HEALPIX_ORDER = 1  # views 29 degrees apart: in a new frame each time, they need not be closer
_MIN_VIEWS = 6  # of an asymmetric unit, on average; views are closer where there would be fewer
_N_INPLANE, _INPLANE_PER_SHELL = 24, 2  # in-plane angles, and half their number over the last shell with symmetry
_MARCHED = 2 / 3  # fraction of the iterations after which the last shell is reached
_STOCHASTIC = 0.8  # fraction of the iterations with random batches and a moving average
_EMA_DECAY = 0.7  # weight of the previous sums in the moving average
_PRIOR = 0.1  # of the mean weight: with less data than this a coefficient is damped
# Of images without a particle, beside several classes: without such a prior empty images take a map of their own.
NULL_SHARE = 0.2
_INITIAL_SIGNAL = 0.02  # power of the random map, over the variance of the images
_CENTRING_SHELL, _ROUND_CENTRING_SHELL = 3, 7  # with symmetry the offsets of a round particle are seen further out
_FLIPPED = 2 / 3  # fraction of the iterations from which they are repeated with the opposite sign
_RECENTRING = 0.3  # fraction of the iterations after which offsets follow their posterior mean
_MAX_STEP = 1.5  # distance of neighbouring offsets, at most, over the standard deviation that centring leaves
_OFFSETS_PER_WAVELENGTH = 2.7


@dataclass(frozen=True)
class InitialModelSettings:
    """Settings of stochastic EM.

    Args:
        iterations: EM iterations.
        batch_size: particles per iteration; the last fifth of the iterations takes up to four times as many.
        first_shell: radius of the first iterations, in cycles per box.
        last_shell: radius of the last iterations.
        n_offsets: offsets sampled for each particle in each iteration.
        shift_sigma_px: standard deviation of the offsets per axis, in pixels of the particles' box; 0 where centred.
        mask_radius: radius of the spherical mask, as a fraction of the box.
        symmetry: rotations of a point group that is imposed from the start, on its standard axes; None for C1.
        n_classes: number of maps.
    """

    iterations: int
    batch_size: int
    first_shell: int
    last_shell: int
    n_offsets: int
    shift_sigma_px: float
    mask_radius: float
    symmetry: Float[Tensor, "order 3 3"] | None = None
    n_classes: int = 1

    @property
    def first_flipped(self) -> int:
        """Number of the iteration from which all are repeated with the opposite sign of what is not round."""
        return round(_FLIPPED * self.iterations) if self.symmetry is not None else self.iterations


@dataclass(frozen=True)
class InitialModel:
    """A map of each class at low resolution.

    Args:
        volumes: the maps, in a small box that just holds the last shell.
        shifts_px: offsets of the particles so far, in pixels of their box.
        log_evidence: mean log marginal likelihood in the last iteration; compares starts on the same particles.
    """

    volumes: Float[Tensor, "classes m m m"]
    shifts_px: Float[Tensor, "particles 2"]
    log_evidence: float

    @property
    def volume(self) -> Float[Tensor, "m m m"]:
        """The map of the first class."""
        return self.volumes[0]


def estimate_initial_model(
    particles: ParticleTransforms,
    settings: InitialModelSettings,
    *,
    seed: int,
    start: int,
    e_step: EStep = expectation_step,
) -> Generator[Event, None, InitialModel]:
    """One random start; progress after each iteration.

    Args:
        particles: CTF-multiplied transforms of all particles.
        settings: settings of stochastic EM, with one iteration at least.
        seed: random seed of the run.
        start: number of this random start; others with the same seed see the same particles at the end.
        e_step: the E-step of its iterations.
    """
    full, n = particles.plane.box_size_px, 2 * (settings.last_shell + 1)
    small = particles.within(settings.last_shell, n)
    mask = soft_sphere(n, settings.mask_radius * n, 2.0, small.device)
    generator = stream_generator(seed, Stream.INITIAL_MODEL, start)
    maps = [_random_map(small.total_variance, settings, mask, generator) for _ in range(settings.n_classes)]
    is_symmetric = settings.symmetry is not None
    centring_shell = min(_ROUND_CENTRING_SHELL if is_symmetric else _CENTRING_SHELL, settings.last_shell)
    sigma_px = settings.shift_sigma_px * n / full
    centring = centre_images(small.within(centring_shell, n), sigma_px)
    search = _StochasticSearch(small, settings, mask, seed, start, sigma_px, _MAX_STEP * centring.sigma_px, e_step)
    model = yield from search.run(InitialModel(torch.stack(maps), centring.shifts_px, 0.0), generator)
    if is_symmetric:
        volumes = torch.stack([volume - 2 * remove_round_part(volume) for volume in model.volumes])
        flipped = replace(model, volumes=volumes)
        other = yield from search.run(flipped, generator, first=settings.first_flipped)
        model = max(model, other, key=lambda found: found.log_evidence)
    return replace(model, shifts_px=model.shifts_px * (full / n))


@dataclass(frozen=True)
class _StochasticSearch:
    """Stochastic EM of one random start.

    Args:
        particles: all particles, in the small box.
        settings: settings of stochastic EM.
        mask: spherical mask.
        seed: random seed of the run.
        start: number of this random start.
        sigma_px: standard deviation of the offsets per axis, in pixels of the small box.
        max_step_px: distance of neighbouring offsets, at most, likewise.
        e_step: the E-step.
    """

    particles: ParticleTransforms
    settings: InitialModelSettings
    mask: Float[Tensor, "n n n"]
    seed: int
    start: int
    sigma_px: float
    max_step_px: float
    e_step: EStep

    @cached_property
    def precision(self) -> Float[Tensor, " shells"]:
        """Inverse noise variance of each shell: that of the images."""
        return shell_precision(self.particles.total_variance)

    def run(
        self, model: InitialModel, generator: torch.Generator, *, first: int = 0
    ) -> Generator[Event, None, InitialModel]:
        """Iterations from a map; progress after each.

        Args:
            model: map and offsets to start from, in the small box.
            generator: random number generator of grids and offsets.
            first: number of the first iteration.
        """
        settings, n, device = self.settings, self.particles.plane.box_size_px, model.volumes.device
        sums = torch.stack([WienerBackprojection.empty(n, device=device).sums for _ in model.volumes])
        volumes, shifts, evidence = model.volumes, model.shifts_px, model.log_evidence
        # Sizes depend on the grid where there is symmetry, and processes cannot exchange sums within a graph.
        has_graphs = device.type == "cuda" and settings.symmetry is None and world_size() == 1
        has_graphs = has_graphs and self.e_step is expectation_step
        step = Replay(self._step) if has_graphs else self._step
        for iteration in range(first, settings.iterations):
            kind = _Kind.of(settings, iteration)
            drawn = _draw(
                len(self.particles), settings, self.seed, iteration if kind.is_stochastic else None, self.start
            )
            poses = self._draw_poses(kind.radius, generator)
            given = to_device_async(drawn, device), *(to_device_async(values, device) for values in poses)
            number = _temperature(settings, iteration)
            temperature: Any = to_device_async(torch.tensor(number), device) if has_graphs else number
            volumes, shifts, sums, found = step((kind, len(drawn)), volumes, shifts, sums, *given, temperature)
            before = settings.iterations - first if first else 0  # iterations of the map that was not flipped
            done = (before + iteration + 1, 2 * settings.iterations - settings.first_flipped)
            metrics = {}
            if iteration == settings.iterations - 1 or iteration % logging_interval(device) == 0:
                metrics["log_likelihood"] = evidence = float(found)
            yield Progress(STAGE, *done, metrics, done)
        if isinstance(step, Replay) and step.failure is not None:
            yield Note(
                f"Iterations were launched kernel by kernel, which takes longer: no CUDA graph ({step.failure})."
            )
        return InitialModel(volumes, shifts, evidence)

    def _draw_poses(
        self, radius: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "views 3 3"], Float[Tensor, " angles"], Float[Tensor, "offsets 2"]]:
        """A grid of poses in a random frame, views and in-plane angles, and steps from the offsets; on the CPU."""
        settings, n = self.settings, self.particles.plane.box_size_px
        frame = random_rotations(1, generator)[0]
        offset = 2 * math.pi * float(torch.rand(1, generator=generator))
        order, n_inplane, symmetry = _HEALPIX_ORDER, _N_INPLANE, settings.symmetry
        if symmetry is not None:
            symmetry = symmetry.cpu()
            n_inplane = max(n_inplane, 2 * _INPLANE_PER_SHELL * settings.last_shell)
            while 6 * 4**order < _MIN_VIEWS * len(symmetry):
                order += 1
        grid = PoseGrid.build(order, n_inplane, frame, offset, symmetry)
        step_px = min(offset_step_px(n, radius, _OFFSETS_PER_WAVELENGTH), self.max_step_px)
        return grid.views, grid.inplane_rad, polygon(step_px, settings.n_offsets, generator)

    def _step(
        self,
        key: tuple["_Kind", int],
        volumes: Float[Tensor, "classes n n n"],
        shifts_px: Float[Tensor, "particles 2"],
        sums: Float[Tensor, "classes 3 side side half"],
        *drawn: Any,
    ) -> tuple[Tensor, ...]:
        """One iteration: maps, offsets, moving average of the sums, and mean log-evidence of the batch.

        Args:
            key: kind of the iteration, and size of its batch.
            volumes: the maps.
            shifts_px: offsets of all particles.
            sums: moving average of the sums.
            drawn: particles of the batch, views and in-plane angles of the grid, steps from the offsets, temperature.
        """
        (kind, _), (rows, views, inplane_rad, steps_px, temperature) = key, drawn
        likelihood = self._likelihood(volumes, kind.radius, PoseGrid(views, inplane_rad))
        local = shard(rows)
        result = self._expectation(likelihood, local, shifts_px[local][:, None] + steps_px, temperature, kind)
        posterior = gather_shards(result.posterior, len(rows))
        new = [
            likelihood.insert(likelihood.of_map(result.sums, number), symmetry=self.settings.symmetry).all_reduced()
            for number in range(likelihood.n_maps)
        ]
        if kind.is_stochastic:
            new = [replace(one, sums=_EMA_DECAY * old + one.sums) for old, one in zip(sums, new, strict=True)]
        if kind.recentres:
            shifts_px = shifts_px.index_copy(0, rows, posterior.mean_shifts_px)
        maps = [broadcast(low_pass(_maximize(one, kind.radius) * self.mask, kind.radius)) for one in new]
        return torch.stack(maps), shifts_px, torch.stack([one.sums for one in new]), posterior.log_evidence.mean()

    def _expectation(
        self,
        likelihood: PoseLikelihood,
        rows: Int[Tensor, " rows"],
        offsets_px: Float[Tensor, "rows offsets 2"],
        temperature: float | Float[Tensor, ""],
        kind: "_Kind",
    ) -> EStepResult:
        """Sums over this process's particles of the batch, and their posterior."""
        null_share = NULL_SHARE if likelihood.n_maps > 1 else 0.0
        share = (1 - null_share) / likelihood.n_maps
        return result_of(
            self.e_step(
                self.particles.within(kind.radius, self.particles.plane.box_size_px),
                likelihood,
                offsets_px,
                rows=rows,
                shift_sigma_px=self.sigma_px,
                temperature=temperature if kind.is_annealed else 1.0,
                class_shares=self.mask.new_full((likelihood.n_maps,), share) if null_share > 0 else None,
                null_share=null_share,
            )
        )

    def _likelihood(self, volumes: Float[Tensor, "classes n n n"], radius: int, grid: PoseGrid) -> PoseLikelihood:
        n = self.particles.plane.box_size_px
        harmonics = disk_harmonics(n, radius, support_radius(self.settings.mask_radius, n), volumes.device)
        references = [Reference.build(volume, self.precision[harmonics.plane.shells]) for volume in volumes]
        return PoseLikelihood.of_classes(references, grid, harmonics)


@dataclass(frozen=True)
class _Kind:
    """What iterations of one kind have in common.

    Args:
        radius: their radius, in cycles per box.
        is_stochastic: whether they have random batches and a moving average.
        recentres: whether the offsets follow their posterior mean.
        is_annealed: whether the temperature is above 1.
    """

    radius: int
    is_stochastic: bool
    recentres: bool
    is_annealed: bool

    @classmethod
    def of(cls, settings: InitialModelSettings, iteration: int) -> "_Kind":
        """The kind of an iteration.

        Args:
            settings: settings of stochastic EM.
            iteration: its number.
        """
        fraction = _fraction(settings, iteration)
        is_annealed = _temperature(settings, iteration) > 1
        return cls(_radius(settings, fraction), fraction < _STOCHASTIC, fraction >= _RECENTRING, is_annealed)


def _maximize(sums: WienerBackprojection, radius: int) -> Float[Tensor, "n n n"]:
    weights = sums.shell_weights
    prior = _PRIOR * weights[: radius + 1].mean()
    return sums.most_probable(prior.expand(len(weights)))


def _fraction(settings: InitialModelSettings, iteration: int) -> float:
    return iteration / max(1, settings.iterations - 1)


def _temperature(settings: InitialModelSettings, iteration: int) -> float:
    return max(1.0, _FIRST_TEMPERATURE * (1 - 2 * _fraction(settings, iteration)))


def _radius(settings: InitialModelSettings, fraction: float) -> int:
    marched = min(1.0, fraction / _MARCHED)
    return int(settings.first_shell + (settings.last_shell - settings.first_shell) * marched)


def _random_map(
    total_variance: Float[Tensor, " shells"],
    settings: InitialModelSettings,
    mask: Float[Tensor, "n n n"],
    generator: torch.Generator,
) -> Float[Tensor, "n n n"]:
    n, first_shell = mask.shape[-1], settings.first_shell
    noise = torch.randn(n, n, n, generator=generator).to(mask.device)
    volume = low_pass(noise * mask, first_shell) * mask
    if settings.symmetry is not None:
        copies = [rotate_map(volume, element, volume.new_zeros(3)) for element in settings.symmetry]
        volume = torch.stack(copies).mean(0)
    power = shell_power(volume)[1 : first_shell + 1].mean()
    return volume * (_INITIAL_SIGNAL * total_variance.mean() / power).sqrt()


def _draw(
    count: int, settings: InitialModelSettings, seed: int, iteration: int | None, start: int
) -> Int[Tensor, " rows"]:
    """A random batch; without an iteration, the larger one of the last iterations, which all starts share."""
    if iteration is None:
        order = torch.randperm(count, generator=stream_generator(seed, Stream.INITIAL_MODEL_IMAGES))
        return order[: 4 * settings.batch_size]
    # Half of the 63 bits number the iterations, half the starts.
    generator = stream_generator(seed, Stream.EPOCH, (start << 31) + iteration)
    return torch.randperm(count, generator=generator)[: settings.batch_size]
