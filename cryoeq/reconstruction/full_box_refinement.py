"""Refinement at the full box: two half sets, each against its own map, to the limit of the data.

It starts from poses, wherever they come from, and begins with maps of its own. Each iteration refines all poses locally
up to the shells that the half maps' correlation (FSC) supports, and makes the half maps again, some shells further.
Images and maps are cropped in Fourier space to the smallest box that holds these shells, which grows as the
correlation does (RELION's current size), up to Nyquist of the stored images. It ends where neither the resolution nor
the poses move any more. Last, all particles are refined against the map of both halves.

Zivanov et al. 2018, eLife 7, e42166 (auto-refinement, current size). Scheres and Chen 2012, Nature Methods 9, 853-854
(independent half sets).
"""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from cryoeq.domain.events import Event, Note, Progress
from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.reconstruction.half_set_refinement import refine_locally, sum_half_sets
from cryoeq.reconstruction.local_refinement import RefinedPoses
from cryoeq.reconstruction.maximization import ReferenceFilter, SolventFinder, maximization_step
from cryoeq.reconstruction.particle_scale import update_scales
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.reference import References
from cryoeq.reconstruction.state import (
    Checkpointer,
    HalfSetMaps,
    ParticlePoses,
    RefinementSettings,
    RefinementState,
    no_checkpoints,
)

STAGE, FINAL_STAGE = "full-box refinement", "final refinement"
_SHELLS_BEYOND = 10  # those of the poses, in the maps: so far may the correlation grow in one iteration
_RESERVE = 8  # shells that are read beyond those in use: reading again takes about as long as an iteration
_BOX_STEP = 8  # px: transforms of such boxes are fast
_STEPS = 2  # Gauss-Newton steps of an iteration, which the next one goes on with
_FINAL_STEPS = 3
_SETTLED = 0.1  # median rotation of the poses in one iteration, over that which moves the last shell by a coefficient

ParticleLoader = Callable[[int], Generator[Event, None, ParticleTransforms]]


@dataclass(frozen=True)
class FullBoxSettings:
    """Settings of the refinement at the full box.

    Args:
        refinement: mask, symmetry, and offsets in pixels of the full box.
        box_size_px: the full box.
        first_shell: shell up to which the poses were found.
        last_shell: last shell to refine to, below Nyquist of the stored images.
        iterations: iterations at most.
        find_solvent: mask of half maps; None for the spherical mask alone.
        filter_references: filter of half maps that takes the place of that by their correlation; None for none.
        is_independent: whether no half set had a part in the poses of the other, so that the correlation of the first
            half maps can be trusted; else the first iteration stays at the first shell.
    """

    refinement: RefinementSettings
    box_size_px: int
    first_shell: int
    last_shell: int
    iterations: int
    find_solvent: SolventFinder | None = None
    filter_references: ReferenceFilter | None = None
    is_independent: bool = True

    def at_box(self, box_size_px: int) -> RefinementSettings:
        """The settings in another box of the same side in Angstrom."""
        sigma = self.refinement.shift_sigma_px * box_size_px / self.box_size_px
        return replace(self.refinement, shift_sigma_px=sigma)

    def reach(self, radius: int) -> int:
        """The last shell of maps, whose particles are posed up to a radius."""
        return min(radius + _SHELLS_BEYOND, self.last_shell)

    def box(self, radius: int) -> int:
        """The box in which particles are posed up to a radius."""
        needed = 2 * (self.reach(radius) + 1)
        return min(self.box_size_px, _BOX_STEP * math.ceil(needed / _BOX_STEP))


@dataclass(frozen=True)
class FullBoxPoses:
    """Poses after refinement at the full box.

    Args:
        half_poses: of each particle against the map of its half set.
        refined: of each particle against the map of all.
        resolution_shell: up to which the half maps agree.
        iterations: number of iterations.
    """

    half_poses: PoseSet
    refined: RefinedPoses
    resolution_shell: int
    iterations: int


def refine_at_full_box(
    poses: PoseSet,
    half_set: Int[Tensor, " particles"],
    load: ParticleLoader,
    settings: FullBoxSettings,
    *,
    checkpoint: Checkpointer = no_checkpoints,
) -> Generator[Event, None, FullBoxPoses]:
    """Refine two independent half sets until neither their resolution nor their poses move.

    Args:
        poses: of each particle, found with its half set alone beyond the resolution that both share; full box.
        half_set: half set of each particle, 1 or 2.
        load: reads the particles in the full box up to a radius.
        settings: settings of the refinement.
        checkpoint: saves finished iterations.
    """
    run = _Run(load, settings)
    state = yield from checkpoint("full_box_0", run.first_maps(poses, half_set))
    best, number, settled = state.resolution_shell, 0, False
    while number < settings.iterations and not settled:
        number, before = number + 1, state
        state = yield from checkpoint(f"full_box_{number}", run.iterate(state, number))
        settled = state.resolution_shell <= best and median_rotation_rad(before, state) < _SETTLED / state.radius
        best = max(best, state.resolution_shell)
    if settings.iterations and not settled:
        yield Note(
            f"The full-box refinement was still moving after {number} iterations; --set full_box.iterations=N allows "
            "more.",
            "warning",
        )
    refined = yield from run.refine_all(state)
    in_full_box = replace(refined, poses=refined.poses.in_box(settings.box_size_px))
    return FullBoxPoses(state.poses.in_box(settings.box_size_px), in_full_box, state.resolution_shell, number)


def median_rotation_rad(before: RefinementState, after: RefinementState) -> float:
    """Median angle by which an iteration rotated the poses.

    Args:
        before: state before it.
        after: state after it.
    """
    return float(rotation_angle_rad(before.poses.rotations, after.poses.rotations).median())


class _Run:
    """The particles as far as they are needed, and the steps.

    Args:
        load: reads particles up to a radius.
        settings: settings of the refinement.
    """

    def __init__(self, load: ParticleLoader, settings: FullBoxSettings) -> None:
        self._load, self._settings = load, settings
        self._particles: ParticleTransforms | None = None
        self._loaded_shell = 0

    def first_maps(
        self, poses: PoseSet, half_set: Int[Tensor, " particles"]
    ) -> Generator[Event, None, RefinementState]:
        """Half maps at the given poses, and the radius that they support.

        Args:
            poses: of all particles.
            half_set: half set of each particle.
        """
        settings = self._settings
        box = settings.box(settings.first_shell)
        nothing = torch.zeros(box, box, box, device=half_set.device)
        ones = poses.shifts_px.new_ones(len(poses))
        state = RefinementState(
            reference=HalfSetMaps(nothing, nothing),
            half_set=half_set,
            particles=ParticlePoses(poses.in_box(box), ones, ones),
            fsc=torch.zeros(box // 2 + 1, device=half_set.device),
            radius=settings.first_shell,
            iteration=0,
        )
        references = yield from self._references(state.radius)
        state = self._maximize(state, references)
        if not settings.is_independent:
            state = replace(state, radius=settings.first_shell)
        yield Progress(STAGE, 0, settings.iterations, self._metrics(state), (0, settings.iterations))
        return state

    def iterate(self, state: RefinementState, number: int) -> Generator[Event, None, RefinementState]:
        """One iteration: poses, then maps.

        Args:
            state: maps, half sets and poses.
            number: of the iteration, from 1.
        """
        references = yield from self._references(state.radius)
        before = state = state.to_box(references.particles.plane.box_size_px)
        state = self._pose(state, references, _STEPS)
        state = replace(self._maximize(state, references), iteration=number)
        moved = {"pose_change_deg": math.degrees(median_rotation_rad(before, state))}
        total = self._settings.iterations
        yield Progress(STAGE, number, total, self._metrics(state) | moved, (number, total))
        return state

    def refine_all(self, state: RefinementState) -> Generator[Event, None, RefinedPoses]:
        """Poses of all particles against the map of both half sets.

        Args:
            state: the half sets at their end.
        """
        references = yield from self._references(state.radius)
        yield Progress(FINAL_STAGE, 0, 1)
        state = state.to_box(references.particles.plane.box_size_px)
        update_scales(state, references)
        merged = self._maximize(state, references, is_merged=True)
        settings = self._settings.at_box(references.particles.plane.box_size_px)
        refined = refine_locally(merged, references, merged.radius, settings.shift_sigma_px, steps=_FINAL_STEPS)
        yield Progress(FINAL_STAGE, 1, 1)
        return refined

    def _pose(self, state: RefinementState, references: References, steps: int) -> RefinementState:
        settings = self._settings.at_box(references.particles.plane.box_size_px)
        refined = refine_locally(state, references, state.radius, settings.shift_sigma_px, steps=steps, rescales=True)
        particles = ParticlePoses(refined.poses, state.particles.confidence, refined.log_likelihood)
        return replace(state, particles=particles)

    def _maximize(self, state: RefinementState, references: References, *, is_merged: bool = False) -> RefinementState:
        """The state with maps from its poses; with one map of both half sets where they are merged."""
        settings = self._settings.at_box(references.particles.plane.box_size_px)
        reach, find_solvent = self._settings.reach(state.radius), self._settings.find_solvent
        sums = sum_half_sets(state, references, settings, reach)
        references.release()
        state = state.merged() if is_merged else state
        state = maximization_step(
            state,
            sums,
            settings,
            reach,
            find_solvent=find_solvent,
            filter_references=self._settings.filter_references,
            keeps_sums=False,
        )
        return replace(state, radius=min(state.radius, self._settings.last_shell))

    def _references(self, radius: int) -> Generator[Event, None, References]:
        """The particles up to the shells of the maps, in the smallest box."""
        settings = self._settings
        reach = settings.reach(radius)
        if self._particles is None or self._loaded_shell < reach:
            self._particles = None  # before others take their place
            self._loaded_shell = min(reach + _RESERVE, settings.last_shell)
            self._particles = yield from self._load(self._loaded_shell)
        return References(self._particles.within(reach, settings.box(radius)), max_prepared=1)

    def _metrics(self, state: RefinementState) -> dict[str, float]:
        resolution_angstrom = self._settings.refinement.resolution_angstrom
        return {
            "resolution_limit_angstrom": resolution_angstrom(state.radius),
            "fsc_resolution_angstrom": resolution_angstrom(state.resolution_shell),
        }
