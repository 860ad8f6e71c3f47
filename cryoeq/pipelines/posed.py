"""Particles with poses, however they were come by."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped
from torch import Tensor

from cryoeq.domain.pose import Poses
from cryoeq.pipelines.known import KnownReconstruction


@dataclass(frozen=True)
class PosedParticles:
    """What a map is made from.

    Args:
        poses: one per particle.
        half_set: 1 or 2 per particle; None without half sets.
        columns: further columns of ``run_data.star``.
        results: figures for ``job.json`` and the report.
        half_poses: of each particle against the map of its half alone, for the half maps; None where they are the same.
        maps: already made; None where they are still to be made from the poses.
    """

    poses: Poses
    half_set: Int[Tensor, " particles"] | None
    columns: dict[str, Shaped[np.ndarray, " particles"]]
    results: dict[str, float]
    half_poses: Poses | None = None
    maps: KnownReconstruction | None = None
