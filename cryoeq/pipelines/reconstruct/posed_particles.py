"""Particles with assigned poses: what every mode of pose inference returns, and what maps are made from."""

from dataclasses import dataclass, field, replace
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
from cryoeq.reconstruction.known_poses import (
    ReconstructedMaps,
    filter_by_halves,
    holds_all_sums,
    reconstruct_from_poses,
)


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

    def rows(self, rows: Int[Tensor, " rows"], resolution_shell: int | None) -> "PosedParticles":
        """Poses and half sets of some particles, as of those of one class; their metrics are still those of all.

        Args:
            rows: of the particles.
            resolution_shell: shell up to which their half maps agree; None where that is not known.
        """

        def some(column: Tensor | None) -> Tensor | None:
            return None if column is None else column[rows]

        return PosedParticles(
            self.poses[rows],
            some(self.half_set),
            None if self.half_poses is None else self.half_poses[rows],
            some(self.confidence),
            some(self.rotation_sigma_rad),
            metrics=self.metrics,
            resolution_shell=resolution_shell,
        )

    def with_rows(self, rows: Int[Tensor, " rows"], refined: "PosedParticles") -> "PosedParticles":
        """These particles, some of them with the poses of a later refinement.

        Args:
            rows: of the particles that were refined.
            refined: they, in this order.
        """

        def put(column: Tensor, values: Tensor) -> Tensor:
            return column.index_copy(0, rows, values.to(column))

        def put_poses(before: Poses, after: Poses) -> Poses:
            rotations = put(before.rotations, after.rotations)
            return Poses(rotations, put(before.shifts_angstrom, after.shifts_angstrom))

        sigma, metrics = self.rotation_sigma_rad, self.metrics
        if sigma is not None and refined.rotation_sigma_rad is not None:
            sigma = put(sigma, refined.rotation_sigma_rad)
            metrics = replace(metrics, median_rotation_sigma_deg=float(sigma.median().rad2deg()))
        half_poses = put_poses(self.half_poses or self.poses, refined.half_poses or refined.poses)
        poses = put_poses(self.poses, refined.poses)
        return replace(self, poses=poses, half_poses=half_poses, rotation_sigma_rad=sigma, metrics=metrics)


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
    if holds_all_sums(dataset.box_size_px):
        return make(posed.poses, posed.half_set, half_poses=posed.half_poses, rows=rows)
    all_rows = torch.arange(len(posed.half_set)) if rows is None else rows.cpu()
    first_rows, second_rows = (all_rows[posed.half_set.cpu()[all_rows] == half] for half in (1, 2))
    merged = make(posed.poses, rows=all_rows)
    if not len(first_rows) or not len(second_rows):
        return merged
    # One after the other: the sums are most of the memory.
    first, second = (make(posed.half_poses, rows=half_rows).all for half_rows in (first_rows, second_rows))
    return filter_by_halves(merged.all, HalfMaps(first, second))
