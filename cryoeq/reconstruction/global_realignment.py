"""Global re-alignment: exhaustive search over poses and offsets for the particles that fit worst.

EM iterations change offsets by small steps only, and a wrong pose has its own best offset, so some particles stay in a
local optimum of both. Against a good map they stand out by their low log-likelihood.
"""

from collections.abc import Generator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cryoeq.domain.events import Event, Progress
from cryoeq.geometry.disk_harmonics import disk_harmonics, support_radius
from cryoeq.reconstruction.expectation import Posterior, disk_offsets, offset_step_px, pose_posterior
from cryoeq.reconstruction.local_refinement import RefinedPoses, refine_poses
from cryoeq.reconstruction.particle_scale import update_scales
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.pose_likelihood import COARSE_SHELL, PoseLikelihood, pose_grid
from cryoeq.reconstruction.reference import Reference, References
from cryoeq.reconstruction.state import RefinementSettings, RefinementState
from cryoeq.runtime.distributed import all_gather, shard
from cryoeq.runtime.random_streams import Stream, stream_generator

STAGE = "global re-alignment"
_FRACTION = 1 / 3  # of the particles, those of the lowest log-likelihood
REACH = 3.0  # radius of the search for offsets, over their standard deviation
OFFSETS_PER_WAVELENGTH = 2.5


@dataclass(frozen=True)
class GlobalRealignment:
    """Poses after global re-alignment.

    Args:
        refined: poses of all particles, the better of the old and the new one.
        changed: True where the exhaustive search found a better pose.
    """

    refined: RefinedPoses
    changed: Bool[Tensor, " particles"]


def realign_worst(
    state: RefinementState, particles: ParticleTransforms, settings: RefinementSettings, radius: int, *, seed: int
) -> GlobalRealignment:
    """Refine all poses locally, and search for better ones of the particles that fit worst.

    Args:
        state: maps, poses and log-likelihoods so far.
        particles: CTF-multiplied transforms of all particles.
        settings: settings of the refinement.
        radius: resolution of the local refinement that decides, in cycles per box.
        seed: random seed of the run.
    """
    generator = stream_generator(seed, Stream.REALIGNMENT, state.iteration)
    references, sigma_px = References(particles), settings.shift_sigma_px
    update_scales(state, references)
    particles = references.particles
    fine, coarse = (
        particles.within(reach, particles.plane.box_size_px) for reach in (radius, min(COARSE_SHELL, radius))
    )
    refined, order, changed_rows = [], [], []
    for _, rows, volume in state.halves():
        reference = references.of(volume)
        best = refine_poses(fine, reference, state.poses.rows(rows), shift_sigma_px=sigma_px, rows=rows)
        worst = state.particles.log_evidence[rows].argsort()[: round(_FRACTION * len(rows)) if sigma_px > 0 else 0]
        if len(worst):
            found = search_poses_exhaustively(particles, rows[worst], reference, settings, generator)
            nearby = refine_poses(coarse, reference, found.poses, shift_sigma_px=sigma_px, rows=rows[worst])
            new = refine_poses(fine, reference, nearby.poses, shift_sigma_px=sigma_px, rows=rows[worst])
            better = (new.log_likelihood > best.log_likelihood[worst]).nonzero().squeeze(1)
            best = best.with_rows(worst[better], new.rows(better))
            changed_rows.append(rows[worst[better]])
        refined.append(best)
        order.append(rows)
    changed = torch.zeros_like(state.half_set, dtype=torch.bool)
    changed[torch.cat([*changed_rows, rows[:0]])] = True
    return GlobalRealignment(RefinedPoses.cat(refined).rows(torch.cat(order).argsort()), changed)


def with_realigned_worst(
    state: RefinementState, particles: ParticleTransforms, settings: RefinementSettings, *, seed: int
) -> Generator[Event, None, RefinementState]:
    """The state after global re-alignment at its own radius; unchanged where particles are centred.

    Args:
        state: maps, poses and log-likelihoods so far.
        particles: CTF-multiplied transforms of all particles.
        settings: settings of the refinement.
        seed: random seed of the run.
    """
    if settings.shift_sigma_px == 0:  # all offsets are known, and every iteration searches all poses
        return state
    yield Progress(STAGE, 0, 1)
    radius = min(state.radius, settings.max_exhaustive_shell)
    found = realign_worst(state, particles, settings, radius, seed=seed)
    yield Progress(STAGE, 1, 1)
    rows = found.changed.nonzero().squeeze(1)
    return state.with_poses(state.poses.with_rows(rows, found.refined.poses.rows(rows)))


def refine_final_poses(
    state: RefinementState, particles: ParticleTransforms, settings: RefinementSettings, *, seed: int
) -> Generator[Event, None, RefinedPoses]:
    """Final poses up to the last shell: refined locally, after global re-alignment of those that fit worst.

    Args:
        state: state after the final iteration.
        particles: CTF-multiplied transforms of all particles.
        settings: settings of the refinement.
        seed: random seed of the run.
    """
    yield Progress(STAGE, 0, 1)
    found = realign_worst(state, particles, settings, particles.plane.box_size_px // 2 - 1, seed=seed)
    yield Progress(STAGE, 1, 1, {"changed": float(found.changed.float().mean())})
    return found.refined


def search_poses_exhaustively(
    particles: ParticleTransforms,
    rows: Int[Tensor, " rows"],
    reference: Reference,
    settings: RefinementSettings,
    generator: torch.Generator,
) -> Posterior:
    """The most probable of all poses and offsets, at low resolution; the processes of a job share the particles.

    Args:
        particles: CTF-multiplied transforms of all particles.
        rows: the particles to search, at least one.
        reference: the map.
        settings: settings of the refinement.
        generator: random number generator of the grid.
    """
    n, device = particles.plane.box_size_px, particles.device
    radius = min(COARSE_SHELL, settings.max_exhaustive_shell)
    subset = particles.within(radius, n)
    harmonics = disk_harmonics(n, radius, support_radius(settings.mask_radius, n), device)
    grid = pose_grid(radius, generator, device, settings.symmetry)
    likelihood = PoseLikelihood.build(reference, grid, harmonics)
    step_px, reach_px = offset_step_px(n, radius, OFFSETS_PER_WAVELENGTH), REACH * settings.shift_sigma_px
    offsets = (
        disk_offsets(reach_px, step_px, len(rows), generator, device)
        if reach_px > 0
        else torch.zeros(len(rows), 1, 2, device=device)
    )
    local_rows = shard(torch.arange(len(rows), device=device))
    posterior = pose_posterior(
        subset, likelihood, offsets[local_rows], rows=rows[local_rows], shift_sigma_px=settings.shift_sigma_px
    )
    return all_gather(posterior, local_rows, len(rows))
