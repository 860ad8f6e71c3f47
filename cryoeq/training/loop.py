"""The training of encoder and decoder on unposed images, as a generator of events.

Two tasks share each step. Images: the encoder poses them, the decoder learns to reproduce them at the best hypothesis
(and, where asked, the encoder learns from the same residual: the pure autoencoder of cryoAI). Renderings: the current
map is projected at random poses, with the CTFs and the noise of the data, and the encoder learns those poses, which it
is told exactly. The second task is what keeps the first out of its local minima: the encoder must invert the whole map,
so it cannot settle with half of the particles in the other hand.

Yao et al. 2023, ACE-EM: boosted ab initio cryo-EM 3D reconstruction with asymmetric complementary autoencoder (arXiv
2302.06091). Levy et al. 2022, CryoAI (ECCV). de Ruijter and Cesa 2024 (arXiv 2406.01630) for the equivariant encoder.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Progress
from cryoeq.domain.processes import BatchShare, add_gradients, over_all
from cryoeq.domain.randomness import Stream, stream_generator
from cryoeq.equivariance import cost_of_degrees
from cryoeq.errors import DivergedError
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.training.augmentation import augment
from cryoeq.training.schedule import Schedule
from cryoeq.training.state import TrainingState
from cryoeq.training.tasks import Observation, learn_images, learn_renderings, observe

_MEMORY = 0.98  # of the running average of the residual's power


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Args:
        batch_size: images per step.
        rendered_batch_size: renderings per step.
        schedule: of radius and learning rate.
        encoder_rate: learning rate of the encoder.
        decoder_rate: learning rate of the decoder.
        rendered_weight: of the poses of renderings in the loss; 0 for the pure autoencoder.
        images_from: fraction of the training from which the encoder learns from the residuals of the images too.
        leak: weight of the hypotheses that are not the best.
        is_symmetric: use the symmetric loss.
        shift_sigma_px: spread of the shifts that renderings get; 0 where particles are known to be centred.
        is_augmented: turn and mirror each image by a random element of D4, and its pose with it.
    """

    batch_size: int
    rendered_batch_size: int
    schedule: Schedule
    encoder_rate: float
    decoder_rate: float
    rendered_weight: float
    images_from: float
    leak: float
    is_symmetric: bool
    shift_sigma_px: float
    is_augmented: bool = False


def fit(
    state: TrainingState, dataset: ParticleDataset, plane: HalfPlane, settings: TrainingSettings
) -> Iterator[Progress]:
    """Train from ``state.step`` to the end of the schedule, one event a step; between events the state is consistent.

    The processes of a job share out each batch, and have the same state after each step.

    Args:
        state: changed in place.
        dataset: the particles, at the working box.
        plane: the coefficients that the encoder sees, up to the last shell; on the device of the computation.
        settings: how to train.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    per_epoch = -(-len(dataset) // settings.batch_size)
    epoch, order = -1, torch.empty(0, dtype=torch.long)
    state.encoder.train()
    while state.step < settings.schedule.total_steps:
        now, position = divmod(state.step, per_epoch)
        if now != epoch:
            epoch, order = now, dataset.near_on_disk(state.epoch_order(now, len(dataset)))
        rows = order[position * settings.batch_size : (position + 1) * settings.batch_size]
        seen = observe(dataset, rows, plane, state.data_scale, BatchShare.of(len(rows)))
        figures = _step(state, seen, rows, plane, settings)
        _record(state, figures, position)
        state.step += 1
        yield Progress("training", state.step, settings.schedule.total_steps, figures)


def _step(
    state: TrainingState, seen: Observation, rows: Int[Tensor, " batch"], plane: HalfPlane, settings: TrainingSettings
) -> dict[str, float]:
    schedule, share = settings.schedule, seen.share
    active = plane.within(schedule.radius(state.step))
    for group, rate in zip(state.optimizer.param_groups, (settings.encoder_rate, settings.decoder_rate), strict=True):
        group["lr"] = rate * schedule.rate(state.step)
    turns = torch.eye(3, device=plane.coords.device)
    if settings.is_augmented:
        seen, turns = augment(seen, plane, stream_generator(state.seed, Stream.AUGMENTATION, state.step))
    outcome = learn_images(
        state, seen, plane, active, leak=settings.leak, is_symmetric=settings.is_symmetric,
        centred=settings.shift_sigma_px == 0,
        encoder_learns=state.step >= settings.images_from * schedule.total_steps,
    )  # fmt: skip
    change_deg = _update_poses(state, rows, share.gather(turns.mT @ outcome.rotations))
    loss, figures = share.weight * outcome.loss, {"pose_change_deg": change_deg}
    if settings.rendered_weight > 0:
        posed, error_deg = learn_renderings(
            state, seen, plane, active, leak=settings.leak,
            count=settings.rendered_batch_size, shift_sigma_px=settings.shift_sigma_px,
        )  # fmt: skip
        loss = loss + BatchShare.of(settings.rendered_batch_size).weight * settings.rendered_weight * posed
        figures["rendered_error_deg"] = error_deg
    _descend(state, loss + share.weight * cost_of_degrees(state.encoder).to(loss), rows)
    shells = plane.shells
    spectrum = share.mean(outcome.residual_power)
    power = torch.zeros_like(state.residual_power).index_add(0, shells, spectrum) / shells.bincount()
    state.residual_power = _MEMORY * state.residual_power + (1 - _MEMORY) * power
    return {"loss": float(share.mean(outcome.error)), **figures}


def _descend(state: TrainingState, loss: Float[Tensor, ""], rows: Int[Tensor, " batch"]) -> None:
    """One step of the optimizer by the gradients of all processes, whose losses are shares of one."""
    whole = float(over_all(loss.detach()))
    if not math.isfinite(whole):
        raise DivergedError(
            f"training step {state.step}: the loss is {whole}",
            "a finite number is needed to go on",
            "Lower training.encoder_rate and training.decoder_rate with --set, or try another --seed",
            rows=tuple(rows.tolist()),
        )
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    add_gradients([parameter for group in state.optimizer.param_groups for parameter in group["params"]])
    state.optimizer.step()


def _update_poses(state: TrainingState, indices: Int[Tensor, " batch"], rotations: Float[Tensor, "batch 3 3"]) -> float:
    """Remember the rotations of the batch; their mean turn since the last visit in degrees, NaN at the first."""
    before, now = state.rotations[indices], rotations.cpu()
    state.rotations[indices] = now
    is_first = (before == torch.eye(3)).all(-1).all(-1).any()
    return math.nan if is_first else math.degrees(float(rotation_angle_rad(before, now).mean()))


def _record(state: TrainingState, figures: dict[str, float], position: int) -> None:
    """Keep the mean of each figure over the epoch so far."""
    for name, value in figures.items():
        values = state.history.setdefault(name, [])
        if position == 0:
            values.append(value)
        else:
            values[-1] += (value - values[-1]) / (position + 1)
