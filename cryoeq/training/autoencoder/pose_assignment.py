"""Final poses: one forward pass of the trained encoder over all particles."""

from collections.abc import Generator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Progress
from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.domain.pose import Poses, PoseSet
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.runtime.distributed import all_gather, all_reduce, shard
from cryoeq.training.autoencoder.state import TrainingState
from cryoeq.training.autoencoder.step import FourierBatch, observe, predict, propose, select_head
from cryoeq.training.losses import data_term


@dataclass(frozen=True)
class InferredPoses:
    """Poses of all particles.

    Args:
        poses: the best hypothesis of each particle.
        confidence: posterior probability of that hypothesis among those proposed (rlnMaxValueProbDistribution).
        explained: fraction of the images' variance, inside the last shell, that the model reproduces.
    """

    poses: Poses
    confidence: Float[Tensor, " particles"]
    explained: float


@dataclass(frozen=True)
class _Part(ParticleRows):
    """Poses of one batch, on the CPU.

    Args:
        poses: best hypothesis of each image.
        confidence: its posterior probability among those proposed.
    """

    poses: PoseSet
    confidence: Float[Tensor, " batch"]


def infer_poses(
    state: TrainingState,
    dataset: ParticleDataset,
    plane: HalfPlane,
    *,
    batch_size: int,
    is_symmetric: bool,
    centred: bool,
) -> Generator[Event, None, InferredPoses]:
    """Pose every particle, in the order of the dataset; the processes of a job share them.

    Args:
        state: after training.
        dataset: the particles, at least one, at the working box.
        plane: coefficients of the encoder's input.
        batch_size: images at a time.
        is_symmetric: propose for the half-turned images too, as the symmetric loss does.
        centred: whether all shifts are known to be 0.
    """
    state.encoder.eval()
    parts, sums, done = [], [], 0
    local_rows = shard(torch.arange(len(dataset)))
    for rows in local_rows.split(batch_size):
        batch = observe(dataset, rows, plane, state.data_scale)
        part, residual, power = _infer_batch(state, batch, plane, is_symmetric=is_symmetric, centred=centred)
        parts.append(part)
        sums.append([residual, power])
        done += len(rows)
        yield Progress("encoder inference", done, len(local_rows))
    found = all_gather(_Part.cat(parts), local_rows, len(dataset))
    residual, power = all_reduce(torch.tensor(sums, dtype=torch.float64).sum(0)).tolist()
    return InferredPoses(found.poses.to_angstrom(dataset.pixel_size_angstrom), found.confidence, 1 - residual / power)


@torch.no_grad()
def _infer_batch(
    state: TrainingState, batch: FourierBatch, plane: HalfPlane, *, is_symmetric: bool, centred: bool
) -> tuple[_Part, float, float]:
    """Poses of a batch; sums over its images of the residual's mean power and of the images' own."""
    proposals = propose(
        state.encoder, batch.coefficients, plane, batch.condition, is_symmetric=is_symmetric, centred=centred
    )
    errors = data_term(predict(state.decoder, proposals, batch.transfer, plane), batch.coefficients, plane.weights)
    residuals = errors.min(1).values
    # Gaussian noise of the residual's own variance: log-likelihood -|r|^2 / (2 v) summed over the coefficients.
    posterior = torch.softmax(-errors * float(plane.weights.sum()) / (2 * residuals[:, None]), 1)
    best = select_head(proposals, errors.argmin(1))
    power = float((batch.coefficients.abs().square() @ plane.weights / plane.weights.sum()).sum())
    poses = PoseSet(best.rotations[:, 0].cpu(), best.shifts_px[:, 0].cpu(), plane.box_size_px)
    return _Part(poses, posterior.max(1).values.cpu()), float(residuals.sum()), power
