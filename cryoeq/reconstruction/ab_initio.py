"""Ab initio reconstruction: initial models, consensus refinement, symmetry axes."""

from collections.abc import Generator
from dataclasses import replace

from jaxtyping import Int
from torch import Tensor

from cryoeq.domain.events import Event, Note
from cryoeq.domain.volume import Volume
from cryoeq.maps.symmetry import find_symmetry, impose_symmetry
from cryoeq.reconstruction.acceptance import mixed_handedness
from cryoeq.reconstruction.global_realignment import with_realigned_worst
from cryoeq.reconstruction.half_set_refinement import refine_consensus
from cryoeq.reconstruction.multi_start import MAX_RESTARTS, at_low_resolution, run_multi_start
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.settings import AbInitioSettings
from cryoeq.reconstruction.state import Checkpointer, ConsensusMap, RefinementState, no_checkpoints


def reconstruct_ab_initio(
    particles: ParticleTransforms,
    half_set: Int[Tensor, " particles"],
    settings: AbInitioSettings,
    *,
    checkpoint: Checkpointer = no_checkpoints,
) -> Generator[Event, None, RefinementState]:
    """Consensus map at low resolution from random starts, on the axes of its symmetry; half sets are not yet split.

    Args:
        particles: CTF-multiplied transforms of the particles.
        half_set: half set of each particle, 1 or 2.
        settings: settings of the reconstruction.
        checkpoint: checkpointer that saves finished steps.

    Raises:
        DivergedError: nothing was found.
    """
    small, low_resolution = at_low_resolution(particles, settings)
    refinement, seed = low_resolution.refinement, settings.seed
    for restart in range(MAX_RESTARTS):
        state = yield from run_multi_start(small, half_set, low_resolution, restart=restart, checkpoint=checkpoint)
        steps = refine_consensus(state, small, refinement, seed=seed)
        state = yield from checkpoint(f"consensus_{restart}", steps)
        state = yield from with_realigned_worst(state, small, refinement, seed=seed)
        state = state.to_box(particles.plane.box_size_px)
        shell = min(state.radius, settings.refinement.max_exhaustive_shell)
        score = mixed_handedness(state, settings.pixel_size_angstrom, shell)
        if score is None or restart == MAX_RESTARTS - 1:
            break
        yield Note(f"Mixed handedness (mirror-symmetry score {score:.2f}): restarting from new random initialisations.")
    if settings.symmetry != "C1":
        state = yield from _rotate_to_axes(state, settings)
    return state


def _rotate_to_axes(state: RefinementState, settings: AbInitioSettings) -> Generator[Event, None, RefinementState]:
    """Rotate the map to the axes of its point group and average it over the group; offsets follow the new centre."""
    name, pixel = settings.symmetry, settings.pixel_size_angstrom
    volume, poses = Volume(state.reference.mean.cpu(), pixel), state.poses
    fit = find_symmetry(volume, name)
    yield Note(f"Symmetry {name}: the map agrees with its rotated copies with a correlation of {fit.correlation:.2f}.")
    imposed = impose_symmetry(volume, name, fit).values.to(state.reference.mean)
    rotations = poses.rotations @ fit.rotation.T.to(poses.rotations)
    moved = (rotations @ (fit.shift_angstrom / pixel).to(rotations))[:, :2]
    poses = replace(poses, rotations=rotations, shifts_px=poses.shifts_px + moved)
    return replace(state, reference=ConsensusMap(imposed)).with_poses(poses)
