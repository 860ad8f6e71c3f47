"""Classes by search: structures from noise, each then refined in two half sets of its own particles."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Int
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
from cryoeq.pipelines.reconstruct.half_sets import split_particles
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.pipelines.reconstruct.plan import plan_classes
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles
from cryoeq.pipelines.reconstruct.search import posed_particles, refine_halves
from cryoeq.reconstruction.ab_initio import rotate_to_axes
from cryoeq.reconstruction.acceptance import shared_resolution_note
from cryoeq.reconstruction.class_refinement import ClassesState
from cryoeq.reconstruction.classification import PartitionAgreement, classify, classify_by_evidence
from cryoeq.reconstruction.global_realignment import refine_final_poses
from cryoeq.reconstruction.half_set_refinement import final_iteration
from cryoeq.reconstruction.multi_start import at_low_resolution
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, load_transforms
from cryoeq.reconstruction.settings import AbInitioSettings
from cryoeq.reconstruction.state import Checkpointer, RefinementState, no_checkpoints


@dataclass(frozen=True)
class FoundClasses:
    """Particles in classes, with their poses.

    Args:
        class_of: class of each particle, from 0.
        posed: all particles, each with its pose in the frame of its class; without maps.
        symmetries: point group of each class.
        agreement: with the partition of another random start; None without one.
    """

    class_of: Int[Tensor, " particles"]
    posed: PosedParticles
    symmetries: tuple[str, ...]
    agreement: PartitionAgreement | None

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
    yield plan_classes(settings.refinement)
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
    for number, symmetry in enumerate(symmetries):
        rows = (class_of == number).nonzero().squeeze(1)
        yield Note(f"Class {number + 1}: {len(rows)} of {len(class_of)} particles ({len(rows) / len(class_of):.1%}).")
        state = _state_of_class(found.state, number, rows, dataset.box_size_px)
        of_class = replace(
            settings,
            symmetry=symmetry,
            refinement=replace(settings.refinement, symmetry=symmetry_rotations(symmetry).float()),
        )
        name = f"class{number + 1}_"
        posed = yield from _refine_class(particles.rows(rows), state, of_class, dataset, checkpoint, name)
        parts.append((rows.cpu(), posed))
    yield shared_resolution_note(settings.refinement)
    return FoundClasses(class_of.cpu(), _joined(parts, len(dataset)), symmetries, found.agreement)


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


def _refine_class(
    particles: ParticleTransforms,
    state: RefinementState,
    settings: AbInitioSettings,
    dataset: ParticleDataset,
    checkpoint: Checkpointer,
    name: str,
) -> Generator[Event, None, PosedParticles]:
    """Half sets and final poses of one class."""
    refinement, seed = settings.refinement, settings.seed
    if settings.symmetry != "C1":
        state = yield from rotate_to_axes(state, settings)
    halves = yield from refine_halves(state, particles, refinement, seed=seed, checkpoint=checkpoint, name=name)
    final = yield from checkpoint(f"{name}final", final_iteration(halves, particles, refinement, seed=seed))
    refined = yield from refine_final_poses(final, particles, refinement, seed=seed)
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
