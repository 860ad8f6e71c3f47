"""Tests of a map beyond the agreement of its halves: whether it explains its particles, and is more than a sphere."""

import math
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Progress
from cryoeq.domain.pose import PoseSet
from cryoeq.domain.volume import Volume
from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD, resolution_angstrom
from cryoeq.evaluation.roundness import measure_roundness
from cryoeq.evaluation.unexplained import measure_residuals
from cryoeq.geometry.fourier import crop_centred, fft_map, ifft_map
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.outputs.junk_plot import plot_junk
from cryoeq.outputs.residual_plot import plot_residuals
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.reconstruct.build import build_ab_initio_settings
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles
from cryoeq.reconstruction.global_realignment import search_poses_exhaustively
from cryoeq.reconstruction.known_poses import ReconstructedMaps
from cryoeq.reconstruction.local_refinement import refine_poses
from cryoeq.reconstruction.particle_transforms import load_transforms
from cryoeq.reconstruction.pose_likelihood import COARSE_SHELL
from cryoeq.reconstruction.reference import Reference
from cryoeq.runtime.random_streams import Stream, stream_generator

STAGE = "checking the map against its particles"
_SAMPLE, _MIN_SAMPLE = 512, 100  # particles whose poses are searched for; of fewer, any share is chance
_ELSEWHERE_RAD = 0.35  # 20 degrees: beyond it, local refinement does not lead from one pose to the other
_SURELY_BETTER = 3.0  # nats


def assess_maps(
    dataset: ParticleDataset, maps: ReconstructedMaps, posed: PosedParticles, run: RunFolder
) -> ReconstructionMetrics:
    """The metrics, with the share of the map that is not spherical and that of the particles that it does not explain.

    Particles count by their probability of being no junk, where that is known.

    Args:
        dataset: the particles, at the box of the comparison.
        maps: maps made from the particles.
        posed: particles with assigned poses.
        run: run folder, for pictures.
    """
    if posed.junk is not None:
        plot_junk(run.path("junk.png"), posed.junk.any_kind)
    return assess_class(dataset, maps, posed, run.path("residuals.png"))


def assess_class(
    dataset: ParticleDataset,
    maps: ReconstructedMaps,
    posed: PosedParticles,
    picture: Path,
    rows: Int[Tensor, " rows"] | None = None,
) -> ReconstructionMetrics:
    """The same of the map of one class.

    Args:
        dataset: the particles, at the box of the comparison.
        maps: maps made from particles of the class.
        posed: all particles with assigned poses.
        picture: PNG file of the residuals.
        rows: particles of the class; None for all.
    """
    metrics = posed.metrics
    if maps.halves is None or posed.half_set is None:
        return metrics
    roundness = measure_roundness(maps.halves)
    agreed = resolution_angstrom(roundness.fsc, HALF_MAP_THRESHOLD, maps.all.box_size_px, maps.all.pixel_size_angstrom)
    metrics = replace(
        metrics,
        nonspherical_share=roundness.nonspherical_share,
        nonspherical_resolution_angstrom=agreed if math.isfinite(agreed) else None,
    )
    half_poses = posed.poses if posed.half_poses is None else posed.half_poses
    residuals = measure_residuals(dataset, half_poses, posed.half_set, maps.halves, posed.junk, rows)
    if residuals is None:
        return metrics
    plot_residuals(picture, residuals)
    return replace(
        metrics,
        unexplained_share=residuals.unexplained_share,
        explained_signal_share=residuals.explained_signal,
    )


def check_poses(
    config: ReconstructConfig, dataset: ParticleDataset, volume: Volume, posed: PosedParticles, device: torch.device
) -> Generator[Event, None, float | None]:
    """Share of the particles for which a search over all poses finds a better one far from the assigned one.

    None for fewer than 100 particles.

    Args:
        config: settings of the run.
        dataset: the particles, at the box where poses were inferred.
        volume: map of all particles.
        posed: particles with assigned poses.
        device: where to compute.
    """
    if len(dataset) < _MIN_SAMPLE:
        return None
    rows = torch.linspace(0, len(dataset) - 1, min(_SAMPLE, len(dataset)), dtype=torch.float64).round().long()
    yield Progress(STAGE, 0, 1)
    particles = yield from load_transforms(dataset, device, rows)
    settings, n = build_ab_initio_settings(config, dataset).refinement, dataset.box_size_px
    cropped = ifft_map(crop_centred(fft_map(volume.values.float()), n, 3)).to(device)
    reference = Reference.prepare(cropped, particles)
    assigned = PoseSet.from_angstrom(posed.poses[rows], dataset.pixel_size_angstrom, n).each(
        lambda values: values.float().to(device)
    )
    everywhere = torch.arange(len(rows), device=device)
    generator = stream_generator(config.seed, Stream.REALIGNMENT)
    found = search_poses_exhaustively(particles, everywhere, reference, settings, generator)
    coarse = particles.within(min(COARSE_SHELL, n // 2 - 1), n)
    of_assigned, of_found = (
        refine_poses(coarse, reference, poses, shift_sigma_px=settings.shift_sigma_px)
        for poses in (assigned, found.poses)
    )
    yield Progress(STAGE, 1, 1)
    is_better = of_found.log_likelihood > of_assigned.log_likelihood + _SURELY_BETTER
    is_far = _are_far(of_found.poses.rotations, of_assigned.poses.rotations, config.search.symmetry)
    return float((is_better & is_far).float().mean())


def _are_far(
    first: Float[Tensor, "rows 3 3"], second: Float[Tensor, "rows 3 3"], symmetry: str
) -> Bool[Tensor, " rows"]:
    """Whether rotations lie in different optima, however the map is turned by its symmetry."""
    copies = [second @ element.to(second) for element in symmetry_rotations(symmetry)]
    return torch.stack([rotation_angle_rad(first, copy) for copy in copies]).amin(0) > _ELSEWHERE_RAD
