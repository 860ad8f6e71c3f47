"""The training of encoder and decoder on unposed images, as a generator of events.

Two tasks share each step. Images: the encoder poses them, the decoder learns to reproduce them at the best hypothesis
(and, where asked, the encoder learns from the same residual: the pure autoencoder of cryoAI). Synthetic projections:
the current map is projected at random poses, with the CTFs and the noise of the data, and the encoder learns those poses, which it
is told exactly. The second task is what keeps the first out of its local minima: the encoder must invert the whole map,
so it cannot settle with half of the particles in the other hand.

Yao et al. 2023, ACE-EM: boosted ab initio cryo-EM 3D reconstruction with asymmetric complementary autoencoder (arXiv
2302.06091). Levy et al. 2022, CryoAI (ECCV). de Ruijter and Cesa 2024 (arXiv 2406.01630) for the equivariant encoder.
"""

import copy
import math
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.prefetch import prefetch
from cryoeq.domain.events import Note, Progress
from cryoeq.equivariance import equivariance_penalty
from cryoeq.errors import DivergedError
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.runtime.batching import MicroBatcher, logging_interval
from cryoeq.runtime.distributed import BatchShard, all_reduce, all_reduce_gradients
from cryoeq.runtime.random_streams import Stream
from cryoeq.training.autoencoder.augmentation import augment
from cryoeq.training.autoencoder.schedule import Schedule
from cryoeq.training.autoencoder.state import TrainingState
from cryoeq.training.autoencoder.step import FourierBatch, autoencoding_loss, observe, synthetic_pose_loss, transform

_MEMORY = 0.98  # of the running average of the residual's power


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Args:
        batch_size: images per step.
        synthetic_batch_size: renderings per step.
        schedule: of radius and learning rate.
        encoder_learning_rate: learning rate of the encoder.
        decoder_learning_rate: learning rate of the decoder.
        synthetic_weight: of the poses of renderings in the loss; 0 for the pure autoencoder.
        image_loss_start: fraction of the training from which the encoder learns from the residuals of the images too.
        wta_epsilon: weight of the hypotheses that are not the best.
        is_symmetric: use the symmetric loss.
        shift_sigma_px: spread of the shifts that renderings get; 0 where particles are known to be centred.
        is_augmented: turn and mirror each image by a random element of D4, and its pose with it.
        reading: figures are read after so many steps; None for what suits the device.
    """

    batch_size: int
    synthetic_batch_size: int
    schedule: Schedule
    encoder_learning_rate: float
    decoder_learning_rate: float
    synthetic_weight: float
    image_loss_start: float
    wta_epsilon: float
    is_symmetric: bool
    shift_sigma_px: float
    is_augmented: bool = False
    reading: int | None = None


def fit(
    state: TrainingState, dataset: ParticleDataset, plane: HalfPlane, settings: TrainingSettings
) -> Generator[Progress | Note, None, None]:
    """Train from ``state.step`` to the end of the schedule; between events the state is consistent.

    There is an event after each step on a CPU. A GPU is never waited for but at an event: batches are read ahead, and
    figures stay where they are for some steps. After a step whose loss is not finite nothing is learnt any more, so the
    last good state is still there when that is read.

    Where memory runs out while images are compared with the map, that goes by halves from then on, and a note says so.

    The processes of a job share out each batch, and have the same state after each step.

    Args:
        state: changed in place.
        dataset: the particles, at the working box.
        plane: the coefficients that the encoder sees, up to the last shell; on the device of the computation.
        settings: how to train.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    device, total = plane.coords.device, settings.schedule.total_steps
    every = settings.reading or logging_interval(device)
    own = dataset.batches_of(rows[BatchShard.of(len(rows)).places] for rows in _rows(state, dataset, settings))
    is_lost = torch.zeros((), dtype=torch.float32, device=device)  # as fused Adam wants it
    unread, portions, told = list[Tensor](), MicroBatcher(), None
    state.encoder.train()
    with closing(prefetch(own, device)) as batches:
        try:
            for batch in batches:
                place = state.step % steps_per_epoch(dataset, settings) * settings.batch_size
                share = BatchShard.of(min(settings.batch_size, len(dataset) - place))
                seen = transform(batch, plane, dataset.pixel_size_angstrom, state.data_scale, share)
                unread.append(_step(state, seen, plane, settings, is_lost, portions))
                state.step += 1
                if len(unread) == every or state.step == total:
                    figures = _read(state, unread, dataset, settings)
                    if portions.most != told:
                        told = portions.most
                        yield Note(f"Memory ran out: images are compared with the map {told} at a time from here on.")
                    yield Progress("training", state.step, total, figures)
        finally:  # where a batch cannot be read, steps before it still count
            _read(state, unread, dataset, settings)


def fits_in_memory(
    state: TrainingState, dataset: ParticleDataset, plane: HalfPlane, settings: TrainingSettings
) -> bool:
    """Whether memory suffices for a step at the end of the schedule, where steps are largest; a copy takes it.

    Args:
        state: left as it is.
        dataset: the particles.
        plane: of their coefficients.
        settings: how to train.
    """
    tried, portions = copy.deepcopy(state), MicroBatcher()
    tried.step = settings.schedule.total_steps - 1
    rows = torch.arange(settings.batch_size) % len(dataset)
    try:
        seen = observe(dataset, rows, plane, state.data_scale)
        _step(tried, seen, plane, settings, torch.zeros((), dtype=torch.float32, device=plane.coords.device), portions)
    except torch.OutOfMemoryError:
        return False
    return portions.most is None


def steps_per_epoch(dataset: ParticleDataset, settings: TrainingSettings) -> int:
    """Batches of a pass over the particles, the last one smaller."""
    return -(-len(dataset) // settings.batch_size)


def _rows(
    state: TrainingState, dataset: ParticleDataset, settings: TrainingSettings
) -> Iterator[Int[Tensor, " batch"]]:
    """The particles of each step, from the present one on."""
    epoch, position = divmod(state.step, steps_per_epoch(dataset, settings))
    left = settings.schedule.total_steps - state.step
    while left > 0:
        order = dataset.locality_order(state.epoch_order(epoch, len(dataset)))
        batches = order.split(settings.batch_size)[position:][:left]
        yield from batches
        epoch, position, left = epoch + 1, 0, left - len(batches)


def _step(
    state: TrainingState,
    seen: FourierBatch,
    plane: HalfPlane,
    settings: TrainingSettings,
    is_lost: Float[Tensor, ""],
    portions: MicroBatcher,
) -> Float[Tensor, " figures"]:
    """One step, without a look at any of its numbers.

    Args:
        state: changed in place, but by a step that is lost.
        seen: this process's share of the batch.
        plane: of the images.
        settings: how to train.
        is_lost: 1 from the first loss on that is not finite, else 0; changed in place.
        portions: images that are compared with the map at a time; changed where memory runs out.

    Returns:
        The loss of all that is learnt, then the figures of ``_read``, angles in radians.
    """
    schedule, share = settings.schedule, seen.share
    active = plane.within(schedule.radius(state.step))
    for group, rate in zip(
        state.optimizer.param_groups, (settings.encoder_learning_rate, settings.decoder_learning_rate), strict=True
    ):
        group["lr"] = rate * schedule.rate(state.step)
    statistics = [(kept, kept.clone()) for kept in state.running_statistics]
    turns, rows = torch.eye(3, device=plane.coords.device), share.gather(seen.indices)
    if settings.is_augmented:
        seen, turns = augment(seen, plane, state.step_generator(Stream.AUGMENTATION))
    outcome = autoencoding_loss(
        state, seen, plane, active, wta_epsilon=settings.wta_epsilon, is_symmetric=settings.is_symmetric,
        centred=settings.shift_sigma_px == 0,
        encoder_learns=state.step >= settings.image_loss_start * schedule.total_steps, portions=portions,
    )  # fmt: skip
    loss, figures = share.weight * outcome.loss, [share.mean(outcome.error)]
    if settings.synthetic_weight > 0:
        posed, error_rad = synthetic_pose_loss(
            state, seen, plane, active, wta_epsilon=settings.wta_epsilon,
            count=settings.synthetic_batch_size, shift_sigma_px=settings.shift_sigma_px,
        )  # fmt: skip
        loss = loss + BatchShard.of(settings.synthetic_batch_size).weight * settings.synthetic_weight * posed
        figures.append(error_rad)
    loss = loss + share.weight * equivariance_penalty(state.encoder).to(loss)
    whole = all_reduce(loss.detach())
    is_lost.copy_(torch.where(whole.isfinite(), is_lost, 1.0))
    _descend(state, loss, is_lost)
    for kept, before in statistics:
        kept.copy_(torch.where(is_lost > 0, before, kept))
    figures.insert(1, _update_poses(state, rows, share.gather(turns.mT @ outcome.rotations), is_lost))
    spectrum = share.mean(outcome.residual_power)
    power = torch.zeros_like(state.residual_power).index_add(0, plane.shells, spectrum) / plane.shell_counts
    blended = _MEMORY * state.residual_power + (1 - _MEMORY) * power
    state.residual_power = torch.where(is_lost > 0, state.residual_power, blended)
    return torch.stack([whole, *figures])


def _descend(state: TrainingState, loss: Float[Tensor, ""], is_lost: Float[Tensor, ""]) -> None:
    """One step of the optimizer by the gradients of all processes, whose losses are shares of one."""
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    all_reduce_gradients([parameter for group in state.optimizer.param_groups for parameter in group["params"]])
    state.optimizer.found_inf = is_lost  # type: ignore[attr-defined]  # where it is 1, fused Adam changes nothing
    state.optimizer.step()


def _update_poses(
    state: TrainingState,
    indices: Int[Tensor, " batch"],
    rotations: Float[Tensor, "batch 3 3"],
    is_lost: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Remember the rotations of the batch; their mean turn since the last visit in radians, NaN at the first."""
    before = state.rotations[indices]
    state.rotations[indices] = torch.where(is_lost > 0, before, rotations)
    is_main_process = (before == torch.eye(3, device=before.device)).all(-1).all(-1).any()
    return torch.where(is_main_process, math.nan, rotation_angle_rad(before, rotations).mean())


def _read(
    state: TrainingState, unread: list[Tensor], dataset: ParticleDataset, settings: TrainingSettings
) -> dict[str, float]:
    """Wait for the device, and keep the figures of the steps since it was last waited for; those of the last step."""
    steps = torch.stack(unread).tolist() if unread else []
    first, figures = state.step - len(steps), dict[str, float]()
    unread.clear()
    for step, (whole, error, change_rad, *errors_rad) in enumerate(steps, first):
        if not math.isfinite(whole):
            state.step = step
            raise DivergedError(
                f"training step {step}: the loss is {whole}",
                "a finite number is needed to go on",
                "Lower training.encoder_learning_rate and training.decoder_learning_rate with --set, or try another "
                "--seed",
                rows=tuple(next(_rows(state, dataset, settings)).tolist()),
            )
        figures = {"loss": error, "pose_change_deg": math.degrees(change_rad)}
        if errors_rad:
            figures["synthetic_error_deg"] = math.degrees(errors_rad[0])
        _record(state, figures, step % steps_per_epoch(dataset, settings))
    return figures


def _record(state: TrainingState, figures: dict[str, float], position: int) -> None:
    """Keep the mean of each figure over the epoch so far."""
    for name, value in figures.items():
        values = state.history.setdefault(name, [])
        if position == 0:
            values.append(value)
        else:
            values[-1] += (value - values[-1]) / (position + 1)
