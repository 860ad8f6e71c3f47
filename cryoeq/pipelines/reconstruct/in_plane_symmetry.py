"""Test for residual astigmatism, coma or drift by the in-plane symmetry of the particles."""

from collections.abc import Generator
from dataclasses import replace

import torch

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note, Progress
from cryoeq.evaluation.in_plane_symmetry import InPlaneSymmetry, measure_in_plane_symmetry
from cryoeq.outputs.in_plane_plot import plot_in_plane_symmetry
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles
from cryoeq.reconstruction.known_poses import ReconstructedMaps
from cryoeq.runtime.random_streams import Stream, stream_generator

_CAUSES = {1: "coma (beam tilt)", 2: "astigmatism or drift", 3: "trefoil"}
_MIN_SIGMAS = 3.0  # standard errors above which an astigmatism is reported as a number


def check_in_plane_symmetry(
    run: RunFolder,
    dataset: ParticleDataset,
    posed: PosedParticles,
    maps: ReconstructedMaps,
    metrics: ReconstructionMetrics,
    *,
    seed: int,
    device: torch.device,
) -> Generator[Event, None, ReconstructionMetrics]:
    """Report whether in-plane symmetry is broken, and draw the learnt likelihood.

    Args:
        run: folder of the run, for ``in_plane_symmetry.png``.
        dataset: images of the particles, at the box of the stack.
        posed: poses and half sets of the particles.
        maps: maps reconstructed from them.
        metrics: metrics of the reconstruction so far; the resolution of its half maps is needed.
        seed: random seed of the run.
        device: device of the computation.

    Returns:
        The metrics with those of in-plane symmetry.
    """
    resolution_angstrom = metrics.half_map_resolution_angstrom
    if maps.halves is None or posed.half_set is None or resolution_angstrom is None:
        yield Note("In-plane symmetry not tested: there are no half maps that agree to some resolution.", "warning")
        return metrics
    yield Progress("in-plane symmetry", 0, 1)
    measured = measure_in_plane_symmetry(
        dataset,
        posed.half_poses or posed.poses,
        posed.half_set,
        maps.halves,
        resolution_angstrom=resolution_angstrom,
        generator=stream_generator(seed, Stream.ROTATIONS),
        device=device,
    )
    yield Progress("in-plane symmetry", 1, 1)
    plot_in_plane_symmetry(run.path("in_plane_symmetry.png"), measured)
    yield _describe(measured)
    return replace(
        metrics,
        in_plane_divergence=measured.divergence,
        in_plane_p_value=measured.p_value,
        missing_astigmatism_angstrom=measured.astigmatism_angstrom,
    )


def _describe(measured: InPlaneSymmetry) -> Note:
    compared = (
        f"divergence of the learnt likelihood {measured.divergence:.3f}, median of randomly rotated particles "
        f"{float(measured.rotated_divergences.median()):.3f} (p = {measured.p_value:.2f})"
    )
    if not measured.is_broken:
        return Note(f"In-plane symmetry holds: {compared}.")
    order = int(measured.strengths.argmax()) + 1
    text = f"In-plane symmetry is broken, most at angular order {order} ({_CAUSES[order]}): {compared}."
    size, sigma = measured.astigmatism_angstrom, measured.astigmatism_sigma_angstrom
    if size is not None and sigma is not None and size > _MIN_SIGMAS * sigma:
        text += (
            f" Residual astigmatism: U - V = {size:.0f} ± {sigma:.0f} Å along {measured.astigmatism_angle_deg:.0f}°."
        )
    return Note(f"{text} Refine the CTF (astigmatism, beam tilt) and run again.", "warning")
