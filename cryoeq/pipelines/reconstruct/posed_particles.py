"""Particles with assigned poses: what every mode of pose inference returns, and what maps are made from."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.pose import Poses
from cryoeq.evaluation.unexplained import JunkProbabilities
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.reconstruction.known_poses import ReconstructedMaps


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
    """

    poses: Poses
    half_set: Int[Tensor, " particles"] | None
    half_poses: Poses | None = None
    confidence: Float[Tensor, " particles"] | None = None
    rotation_sigma_rad: Float[Tensor, " particles"] | None = None
    maps: ReconstructedMaps | None = None
    metrics: ReconstructionMetrics = field(default_factory=ReconstructionMetrics)
    junk: JunkProbabilities | None = None

    @property
    def figure_of_merit(self) -> Float[Tensor, " particles"] | None:
        """Expected cosine of the error of the rotation, to second order (rlnParticleFigureOfMerit)."""
        sigma = self.rotation_sigma_rad
        return None if sigma is None else torch.exp(-0.5 * sigma.square())
