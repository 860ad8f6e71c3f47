"""Refinement of the classes one by one: half sets of each, its map from new random starts, its final poses."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note
from cryoeq.domain.pose import PoseSet
from cryoeq.errors import DivergedError
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles
from cryoeq.pipelines.reconstruct.search import posed_particles
from cryoeq.reconstruction.ab_initio import reconstruct_ab_initio
from cryoeq.reconstruction.global_realignment import (
    refine_final_poses,
    search_poses_exhaustively,
    with_realigned_worst,
)
from cryoeq.reconstruction.half_set_refinement import final_iteration, refine_half_sets, refine_half_sets_locally
from cryoeq.reconstruction.local_refinement import refine_poses
from cryoeq.reconstruction.noise_model import shell_precision
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.reference import Reference, References
from cryoeq.reconstruction.settings import AbInitioSettings
from cryoeq.reconstruction.state import Checkpointer, ParticlePoses, RefinementState, State, Step
from cryoeq.runtime.random_streams import Stream, stream_generator

_STEPS = 3  # of local refinement, where maps are compared
_SURE = 3.0  # standard errors of the mean gain that are no chance


@dataclass(frozen=True)
class ClassPart:
    """A class that is refined alone.

    Args:
        number: of the class, from 1.
        rows: its particles, of all.
        settings: settings of its refinement.
        halves: its half sets.
        is_in_map: whether each of its particles is for its map.
        searched_shell: the last shell where its half maps agreed after the exhaustive search, before local iterations.
    """

    number: int
    rows: Int[Tensor, " rows"]
    settings: AbInitioSettings
    halves: RefinementState
    is_in_map: Bool[Tensor, " rows"]
    searched_shell: int

    @property
    def is_stalled(self) -> bool:
        """Whether local iterations took the half maps no further, although there are shells left.

        Right maps gain a shell at least, wrong ones none or lose some.
        """
        last = self.halves.poses.box_size_px // 2 - 1
        return self.halves.resolution_shell <= min(self.searched_shell, last - 1)


def search_alone(
    particles: ParticleTransforms,
    rows: Int[Tensor, " rows"],
    half_set: Int[Tensor, " rows"],
    settings: AbInitioSettings,
    number: int,
    checkpoint: Checkpointer,
) -> Generator[Event, None, RefinementState | None]:
    """The map of a class from new random starts, by its particles alone; None where these find nothing.

    Args:
        particles: CTF-multiplied transforms of all particles.
        rows: those of the class.
        half_set: half set of each, 1 or 2.
        settings: settings of the search.
        number: of the class, from 1.
        checkpoint: saves finished steps.
    """
    named = partial(_named, checkpoint, f"class{number}_alone_")
    initial = replace(settings.initial_model, batch_size=min(settings.initial_model.batch_size, len(rows)))
    settings = replace(settings, initial_model=initial)
    try:
        found = yield from reconstruct_ab_initio(particles.rows(rows), half_set, settings, checkpoint=named)
    except DivergedError as error:
        yield Note(f"Class {number}, its particles alone: {error}. Its map is that of all classes.", "warning")
        return None
    yield Note(f"Class {number}: new random starts with its particles alone found a map.")
    return found


def _named(checkpoint: Checkpointer, prefix: str, name: str, step: Step[State]) -> Step[State]:
    return checkpoint(prefix + name, step)


def refine_class(
    particles: ParticleTransforms,
    rows: Int[Tensor, " rows"],
    state: RefinementState,
    settings: AbInitioSettings,
    number: int,
    checkpoint: Checkpointer,
) -> Generator[Event, None, ClassPart]:
    """Half sets of one class, of all its particles; the last local iterations are left.

    Args:
        particles: CTF-multiplied transforms of all particles.
        rows: those of the class.
        state: their map and poses so far.
        settings: settings of the refinement.
        number: of the class, from 1.
        checkpoint: saves finished steps.
    """
    refinement, seed, name, images = settings.refinement, settings.seed, f"class{number}_", particles.rows(rows)
    halves = yield from checkpoint(f"{name}half_sets", refine_half_sets(state, images, refinement, seed=seed))
    searched = halves.resolution_shell
    halves = yield from checkpoint(f"{name}realigned", with_realigned_worst(halves, images, refinement, seed=seed))
    first = refinement.local_iterations - _last_iterations(settings)
    steps = refine_half_sets_locally(halves, images, refinement, iterations=first)
    halves = yield from checkpoint(f"{name}local", steps)
    return ClassPart(number, rows, settings, halves, torch.ones_like(rows, dtype=torch.bool), searched)


def refine_again_where_stalled(
    part: ClassPart, particles: ParticleTransforms, checkpoint: Checkpointer
) -> Generator[Event, None, ClassPart]:
    """The class from new random starts, where its refinement stalled and these explain held-out particles better.

    Starts of all classes may end in the same wrong optimum of one of them.

    Args:
        part: the class.
        particles: CTF-multiplied transforms of all particles.
        checkpoint: saves finished steps.
    """
    if not part.is_stalled:
        return part
    yield Note(
        f"Class {part.number}: local refinement took its half maps no further than shell {part.searched_shell}, which "
        "may be a wrong optimum. It is searched for alone."
    )
    again = partial(_named, checkpoint, "again_")
    state = yield from search_alone(particles, part.rows, part.halves.half_set, part.settings, part.number, again)
    if state is None:
        return part
    other = yield from refine_class(particles, part.rows, state, part.settings, part.number, again)
    radius = min(part.halves.radius, other.halves.radius)
    first, second = (held_out_log_likelihood(each, particles, radius) for each in (part, other))
    gain = second - first
    mean, error = float(gain.mean()), float(gain.std()) / len(gain) ** 0.5
    is_better = mean > _SURE * error
    yield Note(
        f"Class {part.number}: the map of its particles alone explains them, by that of the other half set, by "
        f"{mean:.2g} ± {error:.1g} nats each better than before: it {'replaces' if is_better else 'does not replace'} "
        "the map of all classes."
    )
    return other if is_better else part


def held_out_log_likelihood(part: ClassPart, particles: ParticleTransforms, radius: int) -> Float[Tensor, " rows"]:
    """Log-likelihood of each particle of a class under the map of the other half set, at its best pose there.

    At the variance of the images, signal included: so any two maps can be compared.

    Args:
        part: the class.
        particles: CTF-multiplied transforms of all particles.
        radius: resolution of the comparison, in cycles per box.
    """
    halves, images, n = part.halves, particles.rows(part.rows), particles.plane.box_size_px
    precision = shell_precision(images.total_variance)[images.plane.shells]
    subset, sigma_px = images.within(radius, n), part.settings.refinement.shift_sigma_px
    found = torch.zeros(len(part.rows), device=images.device)
    for half, members, _ in halves.halves():
        reference, poses = Reference.build(halves.reference.of_half(3 - half), precision), halves.poses.rows(members)
        refined = refine_poses(subset, reference, poses, shift_sigma_px=sigma_px, steps=_STEPS, rows=members)
        found[members] = refined.log_likelihood
    return found


def _last_iterations(settings: AbInitioSettings) -> int:
    """Local iterations of the half sets that are made without junk."""
    return settings.refinement.local_iterations // 2


def refine_locally(
    state: RefinementState, particles: ParticleTransforms, part: ClassPart, good: Int[Tensor, " good"], iterations: int
) -> Generator[Event, None, RefinementState]:
    """Local iterations of the half sets by some of the particles of a class; the others keep their poses.

    Args:
        state: half sets of all particles of the class.
        particles: CTF-multiplied transforms of all particles.
        part: the class.
        good: the particles that take part, of those of the class.
        iterations: number of iterations.
    """
    some = replace(state, half_set=state.half_set[good], particles=state.particles.rows(good))
    images, refinement = particles.rows(part.rows[good]), part.settings.refinement
    found = yield from refine_half_sets_locally(some, images, refinement, iterations=iterations)
    poses = state.poses.with_rows(good, found.poses)
    return replace(found, half_set=state.half_set, particles=state.particles).with_poses(poses)


def with_more_particles(
    part: ClassPart, rows: Int[Tensor, " more"], half_set: Int[Tensor, " more"], particles: ParticleTransforms
) -> ClassPart:
    """A class with particles of another one, each at the best pose against the map of its half set.

    Args:
        part: the class.
        rows: the particles that are added, of all.
        half_set: half set of each, 1 or 2.
        particles: CTF-multiplied transforms of all particles.
    """
    refinement, images, n = part.settings.refinement, particles.rows(rows), particles.plane.box_size_px
    generator = stream_generator(part.settings.seed, Stream.REALIGNMENT, part.halves.iteration)
    unknown = ParticlePoses.unknown(PoseSet.identity(len(rows), n, particles.device))
    added, references = replace(part.halves, half_set=half_set, particles=unknown), References(images)
    fine, poses = images.within(added.radius, n), added.poses
    for _, members, volume in added.halves():
        if len(members):
            reference = references.of(volume)
            found = search_poses_exhaustively(images, members, reference, refinement, generator).poses
            found = refine_poses(fine, reference, found, shift_sigma_px=refinement.shift_sigma_px, rows=members).poses
            poses = poses.with_rows(members, found)
    halves = replace(
        part.halves,
        half_set=torch.cat([part.halves.half_set, half_set]),
        particles=ParticlePoses.cat([part.halves.particles, added.with_poses(poses).particles]),
    )
    is_in_map = torch.cat([part.is_in_map, torch.ones_like(rows, dtype=torch.bool)])
    return replace(part, rows=torch.cat([part.rows, rows]), halves=halves, is_in_map=is_in_map)


def pose_class(
    part: ClassPart, particles: ParticleTransforms, dataset: ParticleDataset, checkpoint: Checkpointer
) -> Generator[Event, None, PosedParticles]:
    """The last local iterations of the half sets of a class, and final poses of all its particles.

    Args:
        part: the class.
        particles: CTF-multiplied transforms of all particles.
        dataset: the particles, at the box where poses are inferred.
        checkpoint: saves finished steps.
    """
    refinement, seed, name = part.settings.refinement, part.settings.seed, f"class{part.number}_"
    good = part.is_in_map.nonzero().squeeze(1)
    last = refine_locally(part.halves, particles, part, good, _last_iterations(part.settings))
    halves, images = (yield from checkpoint(f"{name}last", last)), particles.rows(part.rows)
    final = yield from checkpoint(f"{name}final", final_iteration(halves, images, refinement, seed=seed))
    refined = yield from refine_final_poses(final, images, refinement, seed=seed)
    return posed_particles(dataset, halves, final, refined, exhaustive_shell=0)
