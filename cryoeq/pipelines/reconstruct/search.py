"""Poses by search: ab initio expectation-maximisation, as the page of ``cryoeq.reconstruction`` tells it."""

import math
from collections.abc import Generator

import torch

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note
from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.pipelines.reconstruct.build import build_ab_initio_settings, build_e_steps
from cryoeq.pipelines.reconstruct.half_sets import split_particles
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.pipelines.reconstruct.plan import plan_search
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles
from cryoeq.reconstruction.ab_initio import reconstruct_ab_initio
from cryoeq.reconstruction.acceptance import report_handedness, require_reproducible, shared_resolution_note
from cryoeq.reconstruction.global_realignment import refine_final_poses, with_realigned_worst
from cryoeq.reconstruction.half_set_refinement import final_iteration, refine_half_sets, refine_half_sets_locally
from cryoeq.reconstruction.known_poses import ReconstructedMaps, filter_by_halves
from cryoeq.reconstruction.local_refinement import RefinedPoses
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, load_transforms
from cryoeq.reconstruction.state import Checkpointer, RefinementSettings, RefinementState, no_checkpoints


def search_poses(
    config: ReconstructConfig,
    dataset: ParticleDataset,
    device: torch.device,
    checkpoint: Checkpointer = no_checkpoints,
) -> Generator[Event, None, PosedParticles]:
    """Find the structure from noise.

    Args:
        config: settings of the run.
        dataset: the particles, at the box where poses are inferred.
        device: where to compute.
        checkpoint: saves finished steps.

    Raises:
        DivergedError: nothing was found.
    """
    settings, seed = build_ab_initio_settings(config, dataset), config.seed
    refinement = settings.refinement
    is_cropped = dataset.box_size_px < dataset.table.box_size_px
    yield plan_search(refinement, has_full_box=is_cropped and config.full_box.iterations > 0)
    particles = yield from load_transforms(dataset, device)
    half_set = yield from split_particles(dataset, seed)
    if not settings.is_polyhedral:
        yield from _e_step_notes(config)
    e_steps = build_e_steps(config, settings, device)
    consensus = yield from reconstruct_ab_initio(particles, half_set, settings, checkpoint=checkpoint, e_steps=e_steps)
    halves = yield from refine_halves(consensus, particles, refinement, seed=seed, checkpoint=checkpoint)
    yield from require_reproducible(particles, consensus, halves, settings)
    yield shared_resolution_note(refinement)
    return (yield from pose_all(config, dataset, particles, halves, refinement, checkpoint))


def _e_step_notes(config: ReconstructConfig) -> Generator[Event, None, None]:
    """Which views are tried, where these are not all."""
    if config.search.e_step == "amortized":
        given = config.search.amortized
        yield Note(
            f"From noise to the consensus, {given.likely_views} views that a network proposes ({given.group}) and "
            f"{given.random_views} random ones are tried for each particle, or as many as there are; from the half "
            "sets on, all."
        )


def pose_from_consensus(
    config: ReconstructConfig,
    dataset: ParticleDataset,
    particles: ParticleTransforms,
    consensus: RefinementState,
    settings: RefinementSettings,
    checkpoint: Checkpointer,
) -> Generator[Event, None, PosedParticles]:
    """Poses of both half sets, from a map that they share.

    Args:
        config: settings of the run.
        dataset: the particles, at the box where poses are inferred.
        particles: their CTF-multiplied transforms.
        consensus: the map, and poses at it.
        settings: settings of the refinement.
        checkpoint: saves finished steps.
    """
    halves = yield from refine_halves(consensus, particles, settings, seed=config.seed, checkpoint=checkpoint)
    return (yield from pose_all(config, dataset, particles, halves, settings, checkpoint))


def pose_all(
    config: ReconstructConfig,
    dataset: ParticleDataset,
    particles: ParticleTransforms,
    halves: RefinementState,
    settings: RefinementSettings,
    checkpoint: Checkpointer,
) -> Generator[Event, None, PosedParticles]:
    """All particles against the map of both half sets.

    Args:
        config: settings of the run.
        dataset: the particles, at the box where poses are inferred.
        particles: their CTF-multiplied transforms.
        halves: the half sets at their end.
        settings: settings of the refinement.
        checkpoint: saves finished steps.
    """
    final = yield from checkpoint("final", final_iteration(halves, particles, settings, seed=config.seed))
    refined = yield from refine_final_poses(final, particles, settings, seed=config.seed)
    yield from report_handedness(final, dataset.pixel_size_angstrom, config.search.symmetry)
    return posed_particles(dataset, halves, final, refined, exhaustive_shell=settings.max_exhaustive_shell)


def refine_halves(
    consensus: RefinementState,
    particles: ParticleTransforms,
    settings: RefinementSettings,
    *,
    seed: int,
    checkpoint: Checkpointer,
    name: str = "",
) -> Generator[Event, None, RefinementState]:
    """Independent half sets to the last shell, from a consensus map.

    Args:
        consensus: map and poses that the half sets start from.
        particles: CTF-multiplied transforms of the particles.
        settings: settings of the refinement.
        seed: random seed of the run.
        checkpoint: saves finished steps.
        name: what the names of the steps begin with.
    """
    halves = yield from checkpoint(f"{name}half_sets", refine_half_sets(consensus, particles, settings, seed=seed))
    halves = yield from checkpoint(f"{name}realigned", with_realigned_worst(halves, particles, settings, seed=seed))
    local = refine_half_sets_locally(halves, particles, settings, iterations=settings.local_iterations)
    return (yield from checkpoint(f"{name}local", local))


def posed_particles(
    dataset: ParticleDataset,
    halves: RefinementState,
    final: RefinementState,
    refined: RefinedPoses,
    *,
    exhaustive_shell: int,
) -> PosedParticles:
    """Poses of all particles and of the half sets; maps where the exhaustive search reached the last shell.

    Args:
        dataset: the particles, at the box where poses were inferred.
        halves: the half sets at their end.
        final: all particles against the mean map.
        refined: final poses of all particles.
        exhaustive_shell: radius that the sums of the final iteration reach; 0 where there are none.
    """
    pixel, n = dataset.pixel_size_angstrom, dataset.box_size_px
    poses, half_poses = (table.each(torch.Tensor.cpu).to_angstrom(pixel) for table in (refined.poses, halves.poses))
    has_maps = n == dataset.table.box_size_px and exhaustive_shell >= n // 2 - 1
    sigma = refined.rotation_sigma_rad.cpu()
    metrics = ReconstructionMetrics(
        log_evidence=float(final.particles.log_evidence.mean()),
        median_rotation_sigma_deg=math.degrees(float(sigma.median())),
    )
    return PosedParticles(
        poses,
        halves.half_set.cpu(),
        half_poses,
        final.particles.confidence.cpu(),
        sigma,
        _maps(halves, final, pixel) if has_maps else None,
        metrics,
        resolution_shell=halves.resolution_shell,
    )


def _maps(halves: RefinementState, final: RefinementState, pixel_size_angstrom: float) -> ReconstructedMaps:
    """Maps from the posterior-weighted sums, unfiltered but for that of all particles."""
    if halves.sums is None or final.sums is None:
        raise ValueError("there are no sums before the first iteration")
    first, second = (Volume(sums.reconstruct().cpu(), pixel_size_angstrom) for sums in halves.sums)
    merged = Volume((final.sums[0] + final.sums[1]).reconstruct().cpu(), pixel_size_angstrom)
    return filter_by_halves(merged, HalfMaps(first, second))
