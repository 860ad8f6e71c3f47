"""Final poses: one forward pass of the trained encoder over all particles."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Progress
from cryoeq.domain.pose import Poses
from cryoeq.domain.processes import gathered, over_all, share_of
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.training.losses import data_term
from cryoeq.training.state import TrainingState
from cryoeq.training.tasks import Observation, choose, observe, predict, propose


@dataclass(frozen=True)
class Assignment:
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
class _Part:
    """What one batch adds: poses and confidence on the CPU, and sums over its images."""

    rotations: Float[Tensor, "batch 3 3"]
    shifts_px: Float[Tensor, "batch 2"]
    confidence: Float[Tensor, " batch"]
    residual: float
    power: float


def assign_poses(
    state: TrainingState,
    dataset: ParticleDataset,
    plane: HalfPlane,
    *,
    batch_size: int,
    is_symmetric: bool,
    centred: bool,
) -> Iterator[Progress | Assignment]:
    """Pose every particle, in the order of the dataset; the processes of a job share them out.

    Args:
        state: after training.
        dataset: the particles, at the working box.
        plane: the coefficients that the encoder sees.
        batch_size: images at a time.
        is_symmetric: propose for the half-turned images too, as the symmetric loss does.
        centred: particles are known to be centred: all shifts are 0.

    Yields:
        Progress, and at last the assignment.
    """
    state.encoder.eval()
    parts = []
    own = share_of(torch.arange(len(dataset)))
    for rows in own.split(batch_size):
        seen = observe(dataset, rows, plane, state.data_scale)
        parts.append(_assign_batch(state, seen, plane, is_symmetric=is_symmetric, centred=centred))
        yield Progress("posing", sum(len(part.confidence) for part in parts), len(own))
    names = ("rotations", "shifts_px", "confidence")
    found = [torch.cat([getattr(part, name) for part in parts]) for name in names]
    rotations, shifts_px, confidence = gathered(found, own, len(dataset))
    sums = [[part.residual, part.power] for part in parts]
    residual, power = over_all(torch.tensor(sums, dtype=torch.float64).sum(0)).tolist()
    yield Assignment(Poses(rotations, shifts_px * dataset.pixel_size_angstrom), confidence, 1 - residual / power)


@torch.no_grad()
def _assign_batch(
    state: TrainingState, seen: Observation, plane: HalfPlane, *, is_symmetric: bool, centred: bool
) -> _Part:
    proposals = propose(
        state.encoder, seen.coefficients, plane, seen.condition, is_symmetric=is_symmetric, centred=centred
    )
    errors = data_term(predict(state.decoder, proposals, seen.transfer, plane), seen.coefficients, plane.weights)
    least = errors.min(1).values
    # Gaussian noise of the residual's own variance: log-likelihood -|r|^2 / (2 v) summed over the coefficients.
    posterior = torch.softmax(-errors * float(plane.weights.sum()) / (2 * least[:, None]), 1)
    best = choose(proposals, errors.argmin(1))
    power = float((seen.coefficients.abs().square() @ plane.weights / plane.weights.sum()).sum())
    return _Part(
        best.rotations[:, 0].cpu(), best.shifts_px[:, 0].cpu(), posterior.max(1).values.cpu(), float(least.sum()), power
    )
