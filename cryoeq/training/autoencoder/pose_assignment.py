"""Amortized inference over the stack: one forward pass of the trained encoder for each particle."""

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
        poses: best hypothesis of each particle.
        confidence: posterior probability of the best hypothesis among those proposed (rlnMaxValueProbDistribution).
        explained: fraction of the images' variance, inside the last shell, that the model reproduces.
    """

    poses: Poses
    confidence: Float[Tensor, " particles"]
    explained: float


@dataclass(frozen=True)
class _BatchPoses(ParticleRows):
    """Poses of one batch, on the CPU.

    Args:
        poses: best hypothesis of each image.
        confidence: posterior probability of the best hypothesis among those proposed.
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
        state: trained encoder and decoder.
        dataset: particles at the working box; at least one.
        plane: coefficients of the encoder's input.
        batch_size: number of images in a forward pass.
        is_symmetric: add hypotheses from the half-turned images, as the symmetric loss does.
        centred: particles are known to be centred: all shifts are 0.
    """
    state.encoder.eval()
    batches, sums, done = [], [], 0
    local_rows = shard(torch.arange(len(dataset)))
    for rows in local_rows.split(batch_size):
        batch = observe(dataset, rows, plane, state.data_scale)
        poses, residual, power = _infer_batch(state, batch, plane, is_symmetric=is_symmetric, centred=centred)
        batches.append(poses)
        sums.append([residual, power])
        done += len(rows)
        yield Progress("encoder inference", done, len(local_rows))
    whole = all_gather(_BatchPoses.cat(batches), local_rows, len(dataset))
    residual, power = all_reduce(torch.tensor(sums, dtype=torch.float64).sum(0)).tolist()
    return InferredPoses(whole.poses.to_angstrom(dataset.pixel_size_angstrom), whole.confidence, 1 - residual / power)


@torch.no_grad()
def _infer_batch(
    state: TrainingState, batch: FourierBatch, plane: HalfPlane, *, is_symmetric: bool, centred: bool
) -> tuple[_BatchPoses, float, float]:
    """Poses of a batch; sums over its images of the residual's mean power, and of the image's mean power."""
    proposals = propose(
        state.encoder, batch.coefficients, plane, batch.ctf_features, is_symmetric=is_symmetric, centred=centred
    )
    errors = data_term(predict(state.decoder, proposals, batch.transfer, plane), batch.coefficients, plane.weights)
    residuals = errors.min(1).values
    # Gaussian noise of the residual's variance v: log-likelihood -|r|^2 / (2 v) summed over the coefficients.
    posterior = torch.softmax(-errors * float(plane.weights.sum()) / (2 * residuals[:, None]), 1)
    best = select_head(proposals, errors.argmin(1))
    power = float((batch.coefficients.abs().square() @ plane.weights / plane.weights.sum()).sum())
    poses = PoseSet(best.rotations[:, 0].cpu(), best.shifts_px[:, 0].cpu(), plane.box_size_px)
    return _BatchPoses(poses, posterior.max(1).values.cpu()), float(residuals.sum()), power
