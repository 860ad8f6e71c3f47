"""Refinement of several classes at once: one posterior over class and pose of each particle.

As ``half_set_refinement``, with a map for each class in place of one. A particle counts for each map with the
probability of its class, whose prior is the share of the particles::

    gamma_i(c, R, t) = pi_c p(y_i | V_c, R, t) p(t) / sum_{c', R', t'} pi_c' p(y_i | V_c', R', t') p(t')

The noise is what the maps, each with its share, leave of the images. Once the half sets are split, the classes of a
particle are told by the maps of its own half set alone.

Scheres et al. 2007, Nature Methods 4, 27-29 (ML3D).
"""

from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.events import Event
from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.disk_harmonics import disk_harmonics, support_radius
from cryoeq.physics.backprojection import WienerBackprojection
from cryoeq.physics.projection import prepare_slices
from cryoeq.reconstruction.expectation import (
    BestPoses,
    Posterior,
    expectation_step,
    hexagonal_offsets,
    offset_step_px,
    pose_posterior,
)
from cryoeq.reconstruction.half_set_refinement import Iteration, begin_refinement
from cryoeq.reconstruction.initial_model import NULL_SHARE, InitialModel
from cryoeq.reconstruction.local_refinement import refine_poses
from cryoeq.reconstruction.maximization import maximization_step
from cryoeq.reconstruction.noise_model import noise_precision, shell_precision
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.pose_likelihood import COARSE_SHELL, PoseLikelihood, pose_grid
from cryoeq.reconstruction.reference import Reference
from cryoeq.reconstruction.state import ParticlePoses, RefinementSettings, RefinementState
from cryoeq.runtime.distributed import all_gather, shard, shard_half_set
from cryoeq.runtime.random_streams import Stream, stream_generator

STAGE = "class refinement"
_LEAST_NULL_SHARE, _MOST_NULL_SHARE = 0.01, 0.5
_COMPARISON = 2**31  # number of an iteration that no refinement reaches: all starts are compared on one grid
_LEAST_SHARE = 1e-6  # of a class, before its logarithm
_OFFSETS_PER_WAVELENGTH = 3.5
_OFFSET_REFINEMENT_STEPS = 2


@dataclass(frozen=True)
class ClassesState:
    """State of a refinement of several classes.

    Args:
        maps: state of the refinement of each class; their half sets are the same, and their poses are not used.
        particles: most probable pose of each particle, under the map of its most probable class.
        probability: of each class.
        best: most probable pose of each particle under the map of each class.
    """

    maps: tuple[RefinementState, ...]
    particles: ParticlePoses
    probability: Float[Tensor, "particles classes"]
    best: BestPoses

    @property
    def shares(self) -> Float[Tensor, " classes"]:
        """Share of the particles that took part that is of each class."""
        total = self.probability.sum(0)
        return total / total.sum().clamp(min=1e-12) if float(total.sum()) > 0 else torch.ones_like(total) / len(total)

    @property
    def null_share(self) -> float:
        """Share of the particles that took part that show noise alone."""
        took_part = self.particles.log_evidence != 0
        return float(1 - self.probability[took_part].sum(1).mean()) if bool(took_part.any()) else NULL_SHARE

    @property
    def prior_null_share(self) -> float:
        """Prior probability of noise alone: that share, neither almost none nor most."""
        return min(max(self.null_share, _LEAST_NULL_SHARE), _MOST_NULL_SHARE)

    @property
    def log_evidence(self) -> Float[Tensor, " particles"]:
        """Log-likelihood of the best pose under each map, summed over the maps with their shares."""
        return (self.best.log_likelihood + self.shares.clamp(min=_LEAST_SHARE).log()).logsumexp(1)

    @property
    def class_of(self) -> Int[Tensor, " particles"]:
        """Most probable class of each particle, from 0."""
        return self.probability.argmax(1)

    def best_poses(self, box_size_px: int) -> PoseSet:
        """Pose of each particle under the map of its most probable class.

        Args:
            box_size_px: side of the box in whose pixels the offsets are.
        """
        return self.best.poses_of(self.class_of, box_size_px)

    def by_size(self) -> "ClassesState":
        """The same classes, the largest first."""
        return self.of_classes(self.class_of.bincount(minlength=len(self.maps)).argsort(descending=True, stable=True))

    def of_classes(self, numbers: Int[Tensor, " some"]) -> "ClassesState":
        """Some of the classes, in an order.

        Args:
            numbers: of the classes, from 0.
        """
        best = self.best
        best = BestPoses(best.rotations[:, numbers], best.shifts_px[:, numbers], best.log_likelihood[:, numbers])
        maps = tuple(self.maps[number] for number in numbers.tolist())
        return replace(self, maps=maps, probability=self.probability[:, numbers], best=best)

    def with_class_of(self, number: int, other: "ClassesState", other_number: int) -> "ClassesState":
        """The same classes, one of them with the map of another state's and the poses under it.

        Args:
            number: of the class, from 0.
            other: state of the same particles in the same half sets.
            other_number: of its class.
        """

        def replaced(own: Tensor, others: Tensor) -> Tensor:
            return own.index_copy(1, torch.tensor([number], device=own.device), others[:, other_number, None])

        best = BestPoses(
            replaced(self.best.rotations, other.best.rotations),
            replaced(self.best.shifts_px, other.best.shifts_px),
            replaced(self.best.log_likelihood, other.best.log_likelihood),
        )
        maps = (*self.maps[:number], other.maps[other_number], *self.maps[number + 1 :])
        return replace(self, maps=maps, best=best)

    def at_radius(self, radius: int) -> "ClassesState":
        """The state with another radius of the next iteration, in cycles per box."""
        return replace(self, maps=tuple(replace(each, radius=radius) for each in self.maps))


def begin_classes(
    model: InitialModel,
    particles: ParticleTransforms,
    half_set: Int[Tensor, " particles"],
    settings: RefinementSettings,
    first_shell: int,
) -> ClassesState:
    """All classes at the maps of an initial model.

    Args:
        model: the initial model.
        particles: CTF-multiplied transforms of all particles.
        half_set: half set of each particle, 1 or 2.
        settings: settings of the refinement.
        first_shell: radius of the first iteration, in cycles per box.
    """
    maps = tuple(
        begin_refinement(replace(model, volumes=volume[None]), particles, half_set, settings, first_shell)
        for volume in model.volumes
    )
    count, device = len(particles), particles.device
    best = BestPoses.unknown(count, len(maps), device)
    best = replace(best, shifts_px=model.shifts_px[:, None].expand(-1, len(maps), -1).contiguous())
    return ClassesState(maps, maps[0].particles, torch.zeros(count, len(maps), device=device), best)


def refine_classes(
    state: ClassesState, particles: ParticleTransforms, settings: RefinementSettings, *, seed: int
) -> Generator[Event, None, ClassesState]:
    """Iterations of all particles against the maps of all classes, at low resolution.

    Args:
        state: state with one reference for both half sets.
        particles: CTF-multiplied transforms of all particles, of which ``max_particles`` for each class take part.
        settings: settings of the refinement.
        seed: random seed of the run.
    """
    rows, shells = _rows(particles, settings, len(state.maps), seed=seed), settings.consensus_shells
    for number, radius in enumerate(shells, 1):
        iteration = Iteration(STAGE, number, len(shells))
        state = state.at_radius(radius)
        state = yield from class_iteration(state, particles, settings, iteration, seed=seed, rows=rows)
    return state


def log_likelihood_at_one_noise(
    state: ClassesState, particles: ParticleTransforms, settings: RefinementSettings, *, seed: int
) -> float:
    """Mean log-likelihood per particle of the maps of all classes, at a noise that is the same for all random starts.

    As ``multi_start.log_likelihood_at_one_noise`` for one map: at the variance of the images, signal included.

    Args:
        state: state with one reference for both half sets.
        particles: CTF-multiplied transforms of all particles, of which those of ``refine_classes`` take part.
        settings: settings of the refinement.
        seed: random seed of the run.
    """
    n, device = particles.plane.box_size_px, particles.device
    radius = min(state.maps[0].radius, settings.max_exhaustive_shell)
    harmonics = disk_harmonics(n, radius, support_radius(settings.mask_radius, n), device)
    precision = shell_precision(particles.total_variance)[harmonics.plane.shells]
    references = [Reference.build(each.reference.mean, precision) for each in state.maps]
    grid = pose_grid(radius, stream_generator(seed, Stream.REFINEMENT, _COMPARISON), device)
    likelihood = PoseLikelihood.of_classes(references, grid, harmonics)
    rows = _rows(particles, settings, len(state.maps), seed=seed)
    local = shard(rows)
    posterior = pose_posterior(
        particles.within(radius, n),
        likelihood,
        state.particles.poses.shifts_px[local][:, None],
        rows=local,
        shift_sigma_px=settings.shift_sigma_px,
        class_shares=state.shares * (1 - state.prior_null_share),
        null_share=state.prior_null_share,
    )
    return float(all_gather(posterior, local, len(particles)).log_evidence[rows].mean())


def _rows(
    particles: ParticleTransforms, settings: RefinementSettings, n_classes: int, *, seed: int
) -> Int[Tensor, " rows"]:
    """The particles that take part, the same of all random starts."""
    order = torch.randperm(len(particles), generator=stream_generator(seed, Stream.INITIAL_MODEL_IMAGES))
    return order[: settings.max_particles * n_classes].to(particles.device)


def class_references(state: ClassesState, half: int, particles: ParticleTransforms) -> list[Reference]:
    """The maps that a half set is compared with, prepared, with the noise that all of them leave.

    Args:
        state: maps of the classes.
        half: number of the half set, 1 or 2.
        particles: CTF-multiplied transforms of all particles.
    """
    volumes = [each.reference.of_half(half) for each in state.maps]
    padded = [prepare_slices(volume) for volume in volumes]
    precision = noise_precision(padded, particles, state.shares)
    return [Reference(volume, transform, precision) for volume, transform in zip(volumes, padded, strict=True)]


def class_iteration(
    state: ClassesState,
    particles: ParticleTransforms,
    settings: RefinementSettings,
    iteration: Iteration,
    *,
    seed: int,
    rows: Int[Tensor, " rows"] | None = None,
) -> Generator[Event, None, ClassesState]:
    """E-step and M-step: particles against the maps of all classes, and new maps from their posterior.

    Args:
        state: maps, half sets and poses before the iteration.
        particles: CTF-multiplied transforms of all particles.
        settings: settings of the refinement.
        iteration: stage and number of the iteration, for progress.
        seed: random seed of the run.
        rows: particles that take part; None for all.
    """
    n, device, n_classes = particles.plane.box_size_px, particles.device, len(state.maps)
    radius = min(max(each.radius for each in state.maps), settings.max_exhaustive_shell)
    subset = particles.within(radius, n)
    harmonics = disk_harmonics(n, radius, support_radius(settings.mask_radius, n), device)
    first = state.maps[0]
    generator = stream_generator(seed, Stream.REFINEMENT, first.iteration)
    grid = pose_grid(radius, generator, device)
    n_offsets = settings.n_offsets if radius <= COARSE_SHELL else 1
    step_px = offset_step_px(n, radius, _OFFSETS_PER_WAVELENGTH)
    halves = [(half, members, shard_half_set(members, half)) for half, members, _ in first.halves(rows)]
    null_share = state.prior_null_share
    total, done = sum(len(local) for _, _, local in halves), 0
    posteriors = [Posterior.empty(n, device, n_classes)]
    sums = [[WienerBackprojection.empty(n, device=device) for _ in halves] for _ in state.maps]
    references = []
    for index, (half, _, local) in enumerate(halves):
        offsets = hexagonal_offsets(state.particles.poses.shifts_px[local], step_px, n_offsets, generator)
        references.append(class_references(state, half, particles))
        if len(local) == 0:  # another process's
            continue
        likelihood = PoseLikelihood.of_classes(references[-1], grid, harmonics)
        result = yield from expectation_step(
            subset,
            likelihood,
            offsets,
            rows=local,
            shift_sigma_px=settings.shift_sigma_px,
            class_shares=state.shares * (1 - null_share),
            null_share=null_share,
            progress=partial(iteration.progress, total=total, before=done),
        )
        done += len(local)
        posteriors.append(result.posterior)
        for number in range(n_classes):
            sums[number][index] = likelihood.insert(likelihood.of_map(result.sums, number))
    everywhere = torch.cat([members for _, members, _ in halves])
    local_rows = torch.cat([local for _, _, local in halves])
    posterior = all_gather(Posterior.cat(posteriors), local_rows, len(particles)).rows(everywhere)
    new = ParticlePoses(posterior.poses, posterior.confidence, posterior.log_evidence)
    state = replace(
        state,
        particles=state.particles.with_rows(everywhere, new),
        probability=state.probability.index_copy(0, everywhere, posterior.class_probability),
        best=state.best.with_rows(everywhere, posterior.best),
    )
    maps = [
        maximization_step(each, (of_class[0].all_reduced(), of_class[1].all_reduced()), settings, radius)
        for each, of_class in zip(state.maps, sums, strict=True)
    ]
    state = replace(state, maps=tuple(replace(each, iteration=each.iteration + 1) for each in maps))
    if settings.shift_sigma_px > 0:
        state = _refine_offsets(state, subset, particles, settings, everywhere)
    shares = {f"share_{number}": float(share) for number, share in enumerate(state.shares, 1)}
    metrics = {"log_likelihood": float(posterior.log_evidence.mean()), **shares}
    yield iteration.progress(total, total, metrics)
    return state


def _refine_offsets(
    state: ClassesState,
    subset: ParticleTransforms,
    particles: ParticleTransforms,
    settings: RefinementSettings,
    rows: Int[Tensor, " rows"],
) -> ClassesState:
    """Offsets of some particles refined locally, each against the new map of its class and half set."""
    class_of, shifts = state.class_of, state.particles.poses.shifts_px.clone()
    for half, members, _ in state.maps[0].halves(rows):
        for number, reference in enumerate(class_references(state, half, particles)):
            some = members[class_of[members] == number]
            if len(some):
                poses = state.particles.poses.rows(some)
                refined = refine_poses(
                    subset,
                    reference,
                    poses,
                    shift_sigma_px=settings.shift_sigma_px,
                    steps=_OFFSET_REFINEMENT_STEPS,
                    rows=some,
                )
                shifts[some] = refined.poses.shifts_px
    poses = replace(state.particles.poses, shifts_px=shifts)
    return replace(state, particles=replace(state.particles, poses=poses))
