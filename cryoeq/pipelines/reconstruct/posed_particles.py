"""Particles with assigned poses: what every mode of pose inference returns, and what maps are made from."""

from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.optics import CtfParameters
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import HalfMaps
from cryoeq.evaluation.unexplained import JunkProbabilities
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.reconstruction.known_poses import ReconstructedMaps, filter_by_halves, reconstruct_from_poses


@dataclass(frozen=True)
class PosedParticles:
    """Poses of all particles, how certain they are, and maps where these are already made.

    Args:
        poses: one per particle, against the map of all.
        half_set: 1 or 2 per particle; None without half sets.
        half_poses: of each particle against the map of its half set alone, for independent half maps; None where they
            are the same.
        confidence: probability of the most probable pose (rlnMaxValueProbDistribution); None where poses were given.
        rotation_sigma_rad: standard deviation of the rotation; None where it was not estimated.
        maps: posterior-weighted maps, where the search reached Nyquist of the stored images; None where they are still
            to be made from the poses.
        metrics: figures for ``job.json`` and the report.
        junk: probability that each particle is junk; None where it was not told.
        ctf: refined CTF parameters; None where those of the table were kept.
        resolution_shell: shell up to which the half sets agreed where they were posed; None where they were not.
    """

    poses: Poses
    half_set: Int[Tensor, " particles"] | None
    half_poses: Poses | None = None
    confidence: Float[Tensor, " particles"] | None = None
    rotation_sigma_rad: Float[Tensor, " particles"] | None = None
    maps: ReconstructedMaps | None = None
    metrics: ReconstructionMetrics = field(default_factory=ReconstructionMetrics)
    junk: JunkProbabilities | None = None
    resolution_shell: int | None = None
    ctf: CtfParameters | None = None

    @property
    def figure_of_merit(self) -> Float[Tensor, " particles"] | None:
        """Expected cosine of the error of the rotation, to second order (rlnParticleFigureOfMerit)."""
        sigma = self.rotation_sigma_rad
        return None if sigma is None else torch.exp(-0.5 * sigma.square())


def make_maps(
    dataset: ParticleDataset,
    posed: PosedParticles,
    device: torch.device,
    symmetry: str,
    rows: Int[Tensor, " rows"] | None = None,
) -> ReconstructedMaps:
    """Maps from poses; where the halves were posed independently, half maps from those poses.

    Args:
        dataset: the particles, at the box of the maps.
        posed: particles with assigned poses.
        device: where to compute.
        symmetry: point group of the map.
        rows: particles that the maps are made from; None for all.
    """
    make = partial(reconstruct_from_poses, dataset, device=device, symmetry=symmetry)
    if posed.half_poses is None or posed.half_set is None:
        return make(posed.poses, posed.half_set, rows=rows)
    all_rows = torch.arange(len(posed.half_set)) if rows is None else rows.cpu()
    first_rows, second_rows = (all_rows[posed.half_set.cpu()[all_rows] == half] for half in (1, 2))
    merged = make(posed.poses, rows=all_rows)
    if not len(first_rows) or not len(second_rows):
        return merged
    # One after the other: the sums are most of the memory.
    first, second = (make(posed.half_poses, rows=half_rows).all for half_rows in (first_rows, second_rows))
    return filter_by_halves(merged.all, HalfMaps(first, second))
