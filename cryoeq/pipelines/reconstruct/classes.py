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
from cryoeq.domain.events import Event, Note
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import Volume
from cryoeq.errors import DivergedError
from cryoeq.evaluation.class_verdict import emptied_classes
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.maps.symmetry import find_symmetry
from cryoeq.pipelines.reconstruct.build import build_ab_initio_settings
from cryoeq.pipelines.reconstruct.class_junk import keep_classes, probably_junk, refine_without_junk, structures_among
from cryoeq.pipelines.reconstruct.class_parts import (
    ClassPart,
    pose_class,
    refine_again_where_stalled,
    refine_class,
    search_alone,
)
from cryoeq.pipelines.reconstruct.half_sets import split_particles
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.pipelines.reconstruct.plan import plan_classes
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles
from cryoeq.reconstruction.ab_initio import rotate_to_axes
from cryoeq.reconstruction.acceptance import shared_resolution_note
from cryoeq.reconstruction.class_refinement import ClassesState
from cryoeq.reconstruction.classification import Classification, PartitionAgreement, classify, classify_by_evidence
from cryoeq.reconstruction.multi_start import MIN_DETAIL_FSC, at_low_resolution
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, load_transforms
from cryoeq.reconstruction.settings import AbInitioSettings
from cryoeq.reconstruction.state import Checkpointer, RefinementState, no_checkpoints

_AS_ONE = "The structure is searched for as without --classes, with all checks of such a run."


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
        yield Note(_AS_ONE)
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
        parts.append((yield from _refined_class(particles, rows, found, of_class, number, checkpoint)))
    junk, moves = (yield from probably_junk(config, dataset, parts, device)), found.agreement
    if asked == "auto":
        kept = yield from structures_among(parts, junk)
        if len(kept) == 1:
            _require_one(groups)
            yield Note(_AS_ONE)
            return None
        parts = keep_classes(parts, kept, found.state, particles)
        moves = None if moves is None else moves.of_classes(kept)
    joined = []
    for of_all in parts:
        part = yield from refine_without_junk(of_all, particles, junk, checkpoint)
        joined.append((part, (yield from pose_class(part, particles, dataset, checkpoint))))
    yield shared_resolution_note(settings.refinement)
    return _found_classes(joined, moves)


def _refined_class(
    particles: ParticleTransforms,
    rows: Int[Tensor, " rows"],
    found: Classification,
    settings: AbInitioSettings,
    number: int,
    checkpoint: Checkpointer,
) -> Generator[Event, None, ClassPart]:
    """Half sets of one class; from new random starts where two starts of all classes differ in it, or it stalls."""
    state = _state_of_class(found.state, number - 1, rows, particles.plane.box_size_px)
    agreement, alone = 1.0 if found.map_agreement is None else found.map_agreement[number - 1], None
    if agreement < MIN_DETAIL_FSC:
        yield Note(f"Class {number}: another start has another map of it (mean FSC {agreement:.2f}).")
        alone = yield from search_alone(particles, rows, state.half_set, settings, number, checkpoint)
    if alone is not None:
        return (yield from refine_class(particles, rows, alone, settings, number, checkpoint))
    if settings.symmetry != "C1":
        state = yield from rotate_to_axes(state, settings)
    part = yield from refine_class(particles, rows, state, settings, number, checkpoint)
    return part if agreement < MIN_DETAIL_FSC else (yield from refine_again_where_stalled(part, particles, checkpoint))


def _found_classes(
    joined: Sequence[tuple[ClassPart, PosedParticles]], agreement: PartitionAgreement | None
) -> FoundClasses:
    """All classes, in the order of the particle table."""
    rows = torch.cat([part.rows for part, _ in joined]).cpu()
    number = torch.cat([torch.full_like(part.rows, part.number - 1) for part, _ in joined]).cpu()
    is_in_map = torch.cat([part.is_in_map for part, _ in joined]).cpu()
    return FoundClasses(
        torch.empty_like(number).index_copy(0, rows, number),
        _joined([(part.rows.cpu(), posed) for part, posed in joined], len(rows)),
        tuple(part.settings.symmetry for part, _ in joined),
        agreement,
        torch.empty_like(is_in_map).index_copy(0, rows, is_in_map),
        tuple(posed.resolution_shell for _, posed in joined),
    )


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
