"""Classes by search: structures from noise, each then refined in two half sets of its own particles.

Junk gathers in the class that it fits least badly, and dampens its map: so each class is judged before its last local
iterations, and these are made without the particles that are probably junk. Each particle is judged by the map of the
half set that it is not in, up to the shell where the half maps agree by 0.5: beyond it their FSC is as independent as
before. (6MSM among 1WCM and 30 % junk, 3,000 particles, 64 px: median error of its poses 7.1 -> 5.9 degrees, beyond 30
degrees 7.3 -> 3.4 %, half maps 18.0 -> 15.7 Å; iterations one map after the other cost as much as before, and judging
and searching poses again a tenth more.)
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cryoeq.config.reconstruct import LEAST_PARTICLES_OF_CLASS, MOST_CLASSES, ReconstructConfig
from cryoeq.config.symmetry import point_groups
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note, Progress
from cryoeq.domain.pose import Poses, PoseSet
from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.errors import DivergedError
from cryoeq.evaluation.class_verdict import emptied_classes
from cryoeq.evaluation.junk_comparison import PosedRows
from cryoeq.evaluation.unexplained import JUNK_CUT
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.maps.symmetry import find_symmetry
from cryoeq.pipelines.reconstruct.build import build_ab_initio_settings
from cryoeq.pipelines.reconstruct.half_sets import split_particles
from cryoeq.pipelines.reconstruct.junk import STAGE as JUNK_STAGE
from cryoeq.pipelines.reconstruct.junk import judge_particles
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.pipelines.reconstruct.plan import plan_classes
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles
from cryoeq.pipelines.reconstruct.search import posed_particles, refine_halves
from cryoeq.reconstruction.ab_initio import reconstruct_ab_initio, rotate_to_axes
from cryoeq.reconstruction.acceptance import shared_resolution_note
from cryoeq.reconstruction.class_refinement import ClassesState
from cryoeq.reconstruction.classification import PartitionAgreement, classify, classify_by_evidence
from cryoeq.reconstruction.global_realignment import refine_final_poses, with_realigned_worst
from cryoeq.reconstruction.half_set_refinement import final_iteration, refine_half_sets_locally
from cryoeq.reconstruction.multi_start import MIN_DETAIL_FSC, at_low_resolution
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, load_transforms
from cryoeq.reconstruction.settings import AbInitioSettings
from cryoeq.reconstruction.state import Checkpointer, RefinementState, State, Step, no_checkpoints

_LEAST_JUNK = 0.05  # of a class, from which on its maps are made again without it


@dataclass(frozen=True)
class FoundClasses:
    """Particles in classes, with their poses.

    Args:
        class_of: class of each particle, from 0.
        posed: all particles, each with its pose in the frame of its class; without maps.
        symmetries: point group of each class.
        agreement: with the partition of another random start; None without one.
        is_in_map: whether a particle is for the map of its class: not where it is probably junk.
        resolution_shells: shell up to which the half maps of each class agree; None where that is not known.
    """

    class_of: Int[Tensor, " particles"]
    posed: PosedParticles
    symmetries: tuple[str, ...]
    agreement: PartitionAgreement | None
    is_in_map: Bool[Tensor, " particles"]
    resolution_shells: tuple[int | None, ...]

    @property
    def sizes(self) -> list[int]:
        """Number of particles of each class."""
        return self.class_of.bincount(minlength=len(self.symmetries)).tolist()

    def rows(self, number: int) -> Int[Tensor, " rows"]:
        """The particles of a class.

        Args:
            number: of the class, from 0.
        """
        return (self.class_of == number).nonzero().squeeze(1)

    def rows_in_map(self, number: int) -> Int[Tensor, " rows"]:
        """Those of them that the maps are made from.

        Args:
            number: of the class, from 0.
        """
        return ((self.class_of == number) & self.is_in_map).nonzero().squeeze(1)


@dataclass(frozen=True)
class _ClassPart:
    """A class that is refined alone.

    Args:
        number: of the class, from 1.
        rows: its particles, of all.
        settings: settings of its refinement.
        halves: its half sets.
        is_in_map: whether each of its particles is for its map.
    """

    number: int
    rows: Int[Tensor, " rows"]
    settings: AbInitioSettings
    halves: RefinementState
    is_in_map: Bool[Tensor, " rows"]


def search_classes(
    config: ReconstructConfig,
    dataset: ParticleDataset,
    device: torch.device,
    checkpoint: Checkpointer = no_checkpoints,
) -> Generator[Event, None, FoundClasses | None]:
    """Find several structures from noise, and refine each; None where one is found, which this does not refine.

    Args:
        config: settings of the run.
        dataset: the particles, at the box where poses are inferred.
        device: where to compute.
        checkpoint: saves finished steps.

    Raises:
        DivergedError: one structure is left, of several with different point groups.
    """
    asked = config.search.classes
    settings = build_ab_initio_settings(config, dataset, 1 if asked == "auto" else asked)
    of_one = build_ab_initio_settings(config, dataset)
    is_cropped = dataset.box_size_px < dataset.table.box_size_px
    yield plan_classes(settings.refinement, has_full_box=is_cropped and config.full_box.iterations > 0)
    particles = yield from load_transforms(dataset, device)
    half_set = yield from split_particles(dataset, config.seed)
    small, low_resolution = at_low_resolution(particles, settings)
    find = partial(classify_by_evidence, max_classes=MOST_CLASSES) if asked == "auto" else classify
    found = yield from find(
        small, half_set, low_resolution, least_particles=LEAST_PARTICLES_OF_CLASS, checkpoint=checkpoint
    )
    class_of, n_classes, groups = found.state.class_of, len(found.state.maps), point_groups(config.search.symmetry)
    if asked != "auto" and n_classes < asked:
        yield Note(emptied_classes(asked, n_classes), "warning")
    if n_classes == 1:
        _require_one(groups)
        yield Note("The structure is searched for as without --classes, with all checks of such a run.")
        return None
    symmetries = yield from _assign_symmetries(found.state, groups, dataset.pixel_size_angstrom)
    parts = []
    for number, symmetry in enumerate(symmetries, 1):
        rows = (class_of == number - 1).nonzero().squeeze(1)
        yield Note(f"Class {number}: {len(rows)} of {len(class_of)} particles ({len(rows) / len(class_of):.1%}).")
        of_class = replace(
            of_one,
            symmetry=symmetry,
            refinement=replace(of_one.refinement, symmetry=symmetry_rotations(symmetry).float()),
        )
        state = _state_of_class(found.state, number - 1, rows, dataset.box_size_px)
        agreement = 1.0 if found.map_agreement is None else found.map_agreement[number - 1]
        if agreement < MIN_DETAIL_FSC:
            yield Note(f"Class {number}: another start has another map of it (mean FSC {agreement:.2f}).")
            state = yield from _search_alone(particles, rows, state, of_class, number, checkpoint)
        elif symmetry != "C1":
            state = yield from rotate_to_axes(state, of_class)
        parts.append((yield from _refine_class(particles, rows, state, of_class, number, checkpoint)))
    junk = yield from _probably_junk(config, dataset, parts, device)
    joined, is_in_map = [], torch.ones(len(class_of), dtype=torch.bool)
    for of_all in parts:
        part = yield from _refine_without_junk(of_all, particles, junk, checkpoint)
        joined.append((part.rows.cpu(), (yield from _pose_class(part, particles, dataset, checkpoint))))
        is_in_map[part.rows.cpu()] = part.is_in_map.cpu()
    yield shared_resolution_note(settings.refinement)
    posed, shells = _joined(joined, len(dataset)), tuple(of_class.resolution_shell for _, of_class in joined)
    return FoundClasses(class_of.cpu(), posed, symmetries, found.agreement, is_in_map, shells)


def _require_one(groups: Sequence[str]) -> None:
    if len(groups) > 1:
        raise DivergedError(
            f"there are fewer than {len(groups)} classes: one structure is left",
            f"Expected one for each of the point groups {', '.join(groups)}",
            "Run without --classes, with the --sym of one structure or without it",
        )


def _state_of_class(state: ClassesState, number: int, rows: Int[Tensor, " rows"], box_size_px: int) -> RefinementState:
    """Map and particles of one class, in the box where poses are inferred."""
    of_class = state.maps[number].merged()
    small = of_class.reference.mean.shape[-1]
    members = replace(state.particles.rows(rows), poses=state.best_poses(small).rows(rows))
    return replace(of_class, half_set=of_class.half_set[rows], particles=members).to_box(box_size_px)


def _search_alone(
    particles: ParticleTransforms,
    rows: Int[Tensor, " rows"],
    state: RefinementState,
    settings: AbInitioSettings,
    number: int,
    checkpoint: Checkpointer,
) -> Generator[Event, None, RefinementState]:
    """The map of a class from new random starts, by its particles alone; unchanged where these find nothing."""
    images, half_set = particles.rows(rows), state.half_set
    named = partial(_named, checkpoint, f"class{number}_alone_")
    initial = replace(settings.initial_model, batch_size=min(settings.initial_model.batch_size, len(rows)))
    settings = replace(settings, initial_model=initial)
    try:
        found = yield from reconstruct_ab_initio(images, half_set, settings, checkpoint=named)
    except DivergedError as error:
        yield Note(f"Class {number}, its particles alone: {error}. Its map is that of all classes.", "warning")
        return (yield from rotate_to_axes(state, settings)) if settings.symmetry != "C1" else state
    yield Note(f"Class {number}: its map is that of new random starts with its particles alone.")
    return found


def _named(checkpoint: Checkpointer, prefix: str, name: str, step: Step[State]) -> Step[State]:
    return checkpoint(prefix + name, step)


def _refine_class(
    particles: ParticleTransforms,
    rows: Int[Tensor, " rows"],
    state: RefinementState,
    settings: AbInitioSettings,
    number: int,
    checkpoint: Checkpointer,
) -> Generator[Event, None, _ClassPart]:
    """Half sets of one class, of all its particles; the last local iterations are left."""
    refinement, first = settings.refinement, settings.refinement.local_iterations - _last_iterations(settings)
    halves = yield from refine_halves(
        state,
        particles.rows(rows),
        replace(refinement, local_iterations=first),
        seed=settings.seed,
        checkpoint=checkpoint,
        name=f"class{number}_",
    )
    return _ClassPart(number, rows, settings, halves, torch.ones_like(rows, dtype=torch.bool))


def _last_iterations(settings: AbInitioSettings) -> int:
    """Local iterations of the half sets that are made without junk."""
    return settings.refinement.local_iterations // 2


def _probably_junk(
    config: ReconstructConfig, dataset: ParticleDataset, parts: Sequence[_ClassPart], device: torch.device
) -> Generator[Event, None, Bool[Tensor, " particles"] | None]:
    """Whether each particle is probably junk, by the half maps so far; None where that cannot be told."""
    pixel, order = dataset.pixel_size_angstrom, torch.cat([part.rows for part in parts]).argsort().cpu()
    maps, halves = [], [part.halves for part in parts]
    for state in halves:
        if state.sums is None:
            raise ValueError("there are no sums before the first iteration")
        first, second = (Volume(sums.reconstruct().cpu(), pixel) for sums in state.sums)
        maps.append(HalfMaps(first, second))
    number = torch.cat([torch.full_like(part.rows, part.number - 1) for part in parts]).cpu()
    poses, half_set = PoseSet.cat([state.poses for state in halves]), torch.cat([state.half_set for state in halves])
    posed = PosedRows(poses.each(torch.Tensor.cpu), half_set.cpu(), number).rows(order)
    yield Progress(JUNK_STAGE, 0, 1)
    found = judge_particles(config, dataset, maps, posed, device)
    yield Progress(JUNK_STAGE, 1, 1)
    return None if isinstance(found, str) else found.probability.any_kind >= JUNK_CUT


def _refine_without_junk(
    part: _ClassPart,
    particles: ParticleTransforms,
    is_junk: Bool[Tensor, " particles"] | None,
    checkpoint: Checkpointer,
) -> Generator[Event, None, _ClassPart]:
    """The class with new half maps of those of its particles that are no junk, where some are."""
    if is_junk is None:
        return part
    is_good = ~is_junk.to(part.rows.device)[part.rows]
    sizes = part.halves.half_set[is_good].bincount(minlength=3)[1:]
    if float(is_good.float().mean()) > 1 - _LEAST_JUNK or int(sizes.min()) < LEAST_PARTICLES_OF_CLASS:
        return part
    count = len(part.rows)
    yield Note(
        f"Class {part.number}: {count - int(is_good.sum())} of {count} particles are junk with a probability of "
        f"{JUNK_CUT:g} or more; its maps are made without them."
    )
    steps = _clean_halves(part, particles, is_good.nonzero().squeeze(1))
    halves = yield from checkpoint(f"class{part.number}_without_junk", steps)
    return replace(part, halves=halves, is_in_map=is_good)


def _clean_halves(
    part: _ClassPart, particles: ParticleTransforms, good: Int[Tensor, " good"]
) -> Generator[Event, None, RefinementState]:
    """Half maps of some particles of a class, and poses of all of them against these maps, searched for again."""
    state = yield from _refine_locally(part.halves, particles, part, good, 1)
    # Another frame of the grid of poses than that of the search before.
    state = replace(state, iteration=state.iteration + 1)
    refinement = part.settings.refinement
    return (yield from with_realigned_worst(state, particles.rows(part.rows), refinement, seed=part.settings.seed))


def _refine_locally(
    state: RefinementState, particles: ParticleTransforms, part: _ClassPart, good: Int[Tensor, " good"], iterations: int
) -> Generator[Event, None, RefinementState]:
    """Local iterations of the half sets by some of the particles of a class; the others keep their poses."""
    some = replace(state, half_set=state.half_set[good], particles=state.particles.rows(good))
    images, refinement = particles.rows(part.rows[good]), part.settings.refinement
    found = yield from refine_half_sets_locally(some, images, refinement, iterations=iterations)
    poses = state.poses.with_rows(good, found.poses)
    return replace(found, half_set=state.half_set, particles=state.particles).with_poses(poses)


def _pose_class(
    part: _ClassPart, particles: ParticleTransforms, dataset: ParticleDataset, checkpoint: Checkpointer
) -> Generator[Event, None, PosedParticles]:
    """The last local iterations of the half sets of a class, and final poses of all its particles."""
    refinement, seed, name = part.settings.refinement, part.settings.seed, f"class{part.number}_"
    good = part.is_in_map.nonzero().squeeze(1)
    last = _refine_locally(part.halves, particles, part, good, _last_iterations(part.settings))
    halves, images = (yield from checkpoint(f"{name}last", last)), particles.rows(part.rows)
    final = yield from checkpoint(f"{name}final", final_iteration(halves, images, refinement, seed=seed))
    refined = yield from refine_final_poses(final, images, refinement, seed=seed)
    return posed_particles(dataset, halves, final, refined, exhaustive_shell=0)


def _assign_symmetries(
    state: ClassesState, names: Sequence[str], pixel_size_angstrom: float
) -> Generator[Event, None, tuple[str, ...]]:
    """A point group for each class; where there is one for each, they go to the classes that agree with them best."""
    if len(names) == 1:
        return tuple(names) * len(state.maps)
    fits = np.zeros((len(state.maps), len(names)))
    for number, each in enumerate(state.maps):
        volume = Volume(each.reference.mean.cpu(), pixel_size_angstrom)
        for column, name in enumerate(names):
            fits[number, column] = 0.0 if name == "C1" else find_symmetry(volume, name).correlation
    _, order = linear_sum_assignment(fits, maximize=True)
    chosen = tuple(names[int(column)] for column in order)
    told = ", ".join(f"class {number} has {name}" for number, name in enumerate(chosen, 1))
    yield Note(f"Symmetry, by the correlation of each map with its rotated copies: {told}.")
    return chosen


def _joined(parts: Sequence[tuple[Int[Tensor, " _"], PosedParticles]], count: int) -> PosedParticles:
    """All particles in the order of the table, from those of each class."""
    order = torch.cat([rows for rows, _ in parts]).argsort()

    def joined(columns: Sequence[Tensor | None]) -> Tensor:
        return torch.cat([column for column in columns if column is not None])[order]

    def joined_poses(tables: Sequence[Poses | None]) -> Poses:
        there = [table for table in tables if table is not None]
        return Poses(joined([table.rotations for table in there]), joined([table.shifts_angstrom for table in there]))

    posed = [each for _, each in parts]
    sizes = [len(rows) for rows, _ in parts]
    sigma = joined([each.rotation_sigma_rad for each in posed])
    evidence = sum((each.metrics.log_evidence or 0.0) * size for each, size in zip(posed, sizes, strict=True)) / count
    metrics = ReconstructionMetrics(log_evidence=evidence, median_rotation_sigma_deg=float(sigma.median().rad2deg()))
    return PosedParticles(
        joined_poses([each.poses for each in posed]),
        joined([each.half_set for each in posed]),
        joined_poses([each.half_poses for each in posed]),
        joined([each.confidence for each in posed]),
        sigma,
        metrics=metrics,
    )
