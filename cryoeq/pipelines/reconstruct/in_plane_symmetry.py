"""Test for residual astigmatism, coma or drift: do particles look alike in every direction of the detector?"""

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
_SIGMAS = 3.0  # from which on an astigmatism is told as a number


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
    """Say whether something breaks the symmetry, and draw the likelihood that was learnt.

    Args:
        run: where the picture goes.
        dataset: the particles, at their own box.
        posed: their poses and half sets.
        maps: maps made from them.
        metrics: of the reconstruction so far; the resolution of its half maps is needed.
        seed: random seed of the run.
        device: where to compute.

    Returns:
        The metrics with those of in-plane symmetry.
    """
    resolution_angstrom = metrics.half_map_resolution_angstrom
    if maps.halves is None or posed.half_set is None or resolution_angstrom is None:
        yield Note("In-plane symmetry is not tested: it needs half maps that agree.", "warning")
        return metrics
    yield Progress("in-plane symmetry", 0, 1)
    found = measure_in_plane_symmetry(
        dataset,
        posed.half_poses or posed.poses,
        posed.half_set,
        maps.halves,
        resolution_angstrom=resolution_angstrom,
        generator=stream_generator(seed, Stream.ROTATIONS),
        device=device,
    )
    yield Progress("in-plane symmetry", 1, 1)
    plot_in_plane_symmetry(run.path("in_plane_symmetry.png"), found)
    yield _tell(found)
    return replace(
        metrics,
        in_plane_divergence=found.divergence,
        in_plane_p_value=found.p_value,
        missing_astigmatism_angstrom=found.astigmatism_angstrom,
    )


def _tell(found: InPlaneSymmetry) -> Note:
    compared = (
        f"learnt divergence {found.divergence:.3f}, {float(found.turned_divergences.median()):.3f} where particles are "
        f"turned at random (p = {found.p_value:.2f})"
    )
    if not found.is_broken:
        return Note(f"In-plane symmetry: nothing breaks it; {compared}.")
    order = int(found.strengths.argmax()) + 1
    text = f"In-plane symmetry is broken, most at angular order {order} ({_CAUSES[order]}): {compared}."
    size, sigma = found.astigmatism_angstrom, found.astigmatism_sigma_angstrom
    if size is not None and sigma is not None and size > _SIGMAS * sigma:
        text += (
            f" As an astigmatism that the CTF leaves out, it is U - V = {size:.0f} +- {sigma:.0f} Angstrom along "
            f"{found.astigmatism_angle_deg:.0f} degrees."
        )
    return Note(f"{text} Refine the CTF (astigmatism, beam tilt) and run again.", "warning")
