"""Ab initio reconstruction: initial models, consensus refinement, symmetry axes."""

from collections.abc import Generator
from dataclasses import replace

from jaxtyping import Int
from torch import Tensor

from cryoeq.domain.events import Event, Note
from cryoeq.domain.volume import Volume
from cryoeq.errors import DivergedError
from cryoeq.geometry.map_filter import low_pass
from cryoeq.maps.symmetry import find_symmetry, impose_symmetry
from cryoeq.reconstruction.acceptance import MirrorSymmetry, mirror_symmetry
from cryoeq.reconstruction.global_realignment import with_realigned_worst
from cryoeq.reconstruction.half_set_refinement import refine_consensus
from cryoeq.reconstruction.initial_model import estimate_initial_model
from cryoeq.reconstruction.multi_start import (
    MAX_RESTARTS,
    EStepFactory,
    at_low_resolution,
    exhaustive_e_steps,
    run_multi_start,
)
from cryoeq.reconstruction.particle_radius import MARGIN, outer_radius
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.settings import AbInitioSettings
from cryoeq.reconstruction.state import Checkpointer, ConsensusMap, RefinementState, no_checkpoints
from cryoeq.runtime.device import torch_threads

_CONSENSUS = 2**29  # number of the E-step of a consensus refinement, plus that of the restart
_LOOK, _LOOK_ITERATIONS = 2**30, 30  # number of a random start that no other has, and its iterations


def reconstruct_ab_initio(
    particles: ParticleTransforms,
    half_set: Int[Tensor, " particles"],
    settings: AbInitioSettings,
    *,
    checkpoint: Checkpointer = no_checkpoints,
    e_steps: EStepFactory = exhaustive_e_steps,
) -> Generator[Event, None, RefinementState]:
    """Consensus map at low resolution from random starts, on the axes of its symmetry; half sets are not yet split.

    T, O and I are imposed from the start, other groups on the map without symmetry, whose axes are found: a map that is
    only nearly symmetric must not be trapped. Where that map is round, or none was found, they are imposed from the
    start too.

    Args:
        particles: CTF-multiplied transforms of the particles.
        half_set: half set of each particle, 1 or 2.
        settings: settings of the reconstruction.
        checkpoint: checkpointer that saves finished steps.
        e_steps: E-steps of random starts and consensus refinement without symmetry; with symmetry all poses are tried.

    Raises:
        DivergedError: nothing was found.
    """
    first_restart = 0
    if not settings.is_polyhedral:
        try:
            state, found = yield from _consensus(particles, half_set, settings, first_restart, checkpoint, e_steps)
        except DivergedError:
            if settings.symmetry == "C1":
                raise
        else:
            if settings.symmetry == "C1":
                return state
            if not found.is_round:
                return (yield from rotate_to_axes(state, settings))
        yield Note(
            f"Without symmetry no more than a round map was found: {settings.symmetry} is imposed from the start."
        )
        first_restart = MAX_RESTARTS + 1
    symmetric = settings.with_symmetric_start(particles.plane.box_size_px // 2 - 1)
    particles = particles.with_background_as_least_noise()
    if symmetric.is_polyhedral:
        symmetric = yield from _with_tight_mask(particles, symmetric)
    state, _ = yield from _consensus(particles, half_set, symmetric, first_restart, checkpoint)
    return _shared_part(state, settings)


def _consensus(
    particles: ParticleTransforms,
    half_set: Int[Tensor, " particles"],
    settings: AbInitioSettings,
    first_restart: int,
    checkpoint: Checkpointer,
    e_steps: EStepFactory = exhaustive_e_steps,
) -> Generator[Event, None, tuple[RefinementState, MirrorSymmetry]]:
    """Random starts and the refinement of the best, once more where its hands are mixed."""
    small, low_resolution = at_low_resolution(particles, settings)
    refinement, seed = low_resolution.refinement, settings.seed
    restart, last_restart = first_restart, first_restart + MAX_RESTARTS - 1
    while True:
        state = yield from run_multi_start(
            small, half_set, low_resolution, restart=restart, checkpoint=checkpoint, e_steps=e_steps
        )
        steps = refine_consensus(state, small, refinement, seed=seed, e_step=e_steps(_CONSENSUS + restart))
        state = yield from checkpoint(f"consensus_{restart}", steps)
        state = yield from with_realigned_worst(state, small, refinement, seed=seed)
        state = state.to_box(particles.plane.box_size_px)
        shell = min(state.radius, settings.refinement.max_exhaustive_shell)
        found = mirror_symmetry(
            state, settings.pixel_size_angstrom, shell, settings.symmetry if settings.starts_symmetric else "C1"
        )
        if not found.is_mixed or restart == last_restart:
            return state, found
        yield Note(
            f"Mixed handedness (mirror-symmetry score {found.score:.2f}): restarting from new random initialisations."
        )
        restart += 1


def _with_tight_mask(
    particles: ParticleTransforms, settings: AbInitioSettings
) -> Generator[Event, None, AbInitioSettings]:
    """The mask no wider than the particle needs, by a first look: neighbours lead all starts to one wrong map.

    Particles of T, O and I are about as wide in all directions, and their spherical average needs no right pose.
    """
    small, low_resolution = at_low_resolution(particles, settings)
    first = replace(low_resolution.initial_model, iterations=min(_LOOK_ITERATIONS, settings.initial_model.iterations))
    with torch_threads(1):
        model = yield from estimate_initial_model(small, first, seed=settings.seed, start=_LOOK)
    radius = min(MARGIN * outer_radius(model.volume), settings.initial_model.mask_radius)
    side = settings.refinement.box_side_angstrom
    yield Note(f"Particle diameter: {2 * radius * side:.0f} Å for the initial models, from a first map.")
    return replace(
        settings,
        initial_model=replace(settings.initial_model, mask_radius=radius),
        refinement=replace(settings.refinement, mask_radius=radius),
    )


def _shared_part(state: RefinementState, settings: AbInitioSettings) -> RefinementState:
    """The state without the shells of its map that half sets are not to share."""
    shell = settings.refinement.shared_shell
    return replace(state, reference=ConsensusMap(low_pass(state.reference.mean, shell)), radius=shell)


def rotate_to_axes(state: RefinementState, settings: AbInitioSettings) -> Generator[Event, None, RefinementState]:
    """Rotate the map to the axes of its point group and average it over the group; offsets follow the new centre.

    Args:
        state: state with one reference, made without symmetry.
        settings: settings with the point group.
    """
    name, pixel = settings.symmetry, settings.pixel_size_angstrom
    volume, poses = Volume(state.reference.mean.cpu(), pixel), state.poses
    fit = find_symmetry(volume, name)
    yield Note(f"Symmetry {name}: the map agrees with its rotated copies with a correlation of {fit.correlation:.2f}.")
    imposed = impose_symmetry(volume, name, fit).values.to(state.reference.mean)
    rotations = poses.rotations @ fit.rotation.T.to(poses.rotations)
    moved = (rotations @ (fit.shift_angstrom / pixel).to(rotations))[:, :2]
    poses = replace(poses, rotations=rotations, shifts_px=poses.shifts_px + moved)
    return replace(state, reference=ConsensusMap(imposed)).with_poses(poses)
