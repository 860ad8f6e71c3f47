"""Training of the pose autoencoder on unposed images, as a generator of events.

Each step has two losses. Autoencoding: the encoder poses the images, and the decoder learns to reproduce them at the
best hypothesis (later the encoder too learns from that residual; alone, this is the pure autoencoder of cryoAI).
Synthetic projections: the current map is projected at random poses, with CTFs and noise of the data, and the encoder
learns these poses, which are known exactly. The second loss keeps the first out of its local optima: an encoder that
must invert the whole map cannot settle with half of the particles in the other hand.

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
from cryoeq.domain.events import Event, Note, Progress
from cryoeq.equivariance import equivariance_penalty
from cryoeq.errors import DivergedError
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.runtime.batching import MicroBatcher, logging_interval
from cryoeq.runtime.distributed import BatchShard, all_reduce, all_reduce_gradients
from cryoeq.runtime.random_streams import Stream
from cryoeq.training.autoencoder.augmentation import augment
from cryoeq.training.autoencoder.kept_statistics import KeptStatistics
from cryoeq.training.autoencoder.schedule import Schedule
from cryoeq.training.autoencoder.state import TrainingState
from cryoeq.training.autoencoder.step import FourierBatch, autoencoding_loss, observe, synthetic_pose_loss, transform

_EMA_DECAY = 0.98  # of the running average of the residual's power, per step


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of the autoencoder's training.

    Args:
        batch_size: number of images per step.
        synthetic_batch_size: number of synthetic projections per step.
        schedule: length of the training, and the course of radius and learning rates.
        encoder_learning_rate: initial learning rate of the encoder.
        decoder_learning_rate: initial learning rate of the decoder.
        synthetic_weight: weight of the synthetic projections' loss; 0 for the pure autoencoder.
        image_loss_start: fraction of the training after which gradients of the autoencoding loss reach the encoder.
        wta_epsilon: weight of the mean over all hypotheses, beside the best one.
        is_symmetric: whether the autoencoding loss is the symmetric one.
        shift_sigma_px: standard deviation of the projections' shifts per axis; 0 for centred particles.
        is_augmented: whether images and poses are rotated and mirrored by random elements of D4.
        log_every: steps between two readings of the metrics; None for the device's default.
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
    log_every: int | None = None


def fit(
    state: TrainingState, dataset: ParticleDataset, plane: HalfPlane, settings: TrainingSettings
) -> Generator[Event, None, None]:
    """Train from ``state.step`` to the end of the schedule; between events the state is consistent.

    There is an event after each step on a CPU. A GPU is waited for only at an event: batches are prefetched, and
    metrics stay on the device for some steps. From the first non-finite loss on the parameters no longer change, so
    the last good state is still there when that loss is read.

    Where memory runs out in the comparison with the map, micro-batches are halved from then on, and a note says so.
    The processes of a job share each batch, and have the same state after each step.

    Args:
        state: encoder, decoder and optimizer; changed in place.
        dataset: particles at the working box.
        plane: coefficients of the encoder's input, on the device of the computation.
        settings: batch sizes, rates and weights of the losses.

    Raises:
        DivergedError: the loss is not finite.
    """
    device, total = plane.coords.device, settings.schedule.total_steps
    log_every = settings.log_every or logging_interval(device)
    local_rows = (rows[BatchShard.local(len(rows)).positions] for rows in _rows(state, dataset, settings))
    found_nonfinite = torch.zeros((), dtype=torch.float32, device=device)  # as fused Adam wants it
    pending, micro_batcher, reported_size = list[Tensor](), MicroBatcher(), None
    state.encoder.train()
    with closing(prefetch(dataset.batches_of(local_rows), device)) as batches:
        try:
            for particles in batches:
                first = state.step % steps_per_epoch(dataset, settings) * settings.batch_size
                shard = BatchShard.local(min(settings.batch_size, len(dataset) - first))
                batch = transform(particles, plane, dataset.pixel_size_angstrom, state.data_scale, shard)
                pending.append(_step(state, batch, plane, settings, found_nonfinite, micro_batcher))
                state.step += 1
                if len(pending) == log_every or state.step == total:
                    metrics = _flush_metrics(state, pending, dataset, settings)
                    if micro_batcher.max_rows != reported_size:
                        reported_size = micro_batcher.max_rows
                        yield Note(f"Out of memory: micro-batch reduced to {reported_size} images.")
                    yield Progress("training", state.step, total, metrics)
        finally:  # where a batch cannot be read, steps before it still count
            _flush_metrics(state, pending, dataset, settings)


def fits_in_memory(
    state: TrainingState, dataset: ParticleDataset, plane: HalfPlane, settings: TrainingSettings
) -> bool:
    """Whether memory suffices for a step at the end of the schedule, where steps are largest; tried on a copy.

    Args:
        state: state before the training; not changed.
        dataset: particles at the working box.
        plane: coefficients of the encoder's input, on the device of the computation.
        settings: settings with the batch size in question.
    """
    probe, micro_batcher = copy.deepcopy(state), MicroBatcher()
    probe.step = settings.schedule.total_steps - 1
    rows = torch.arange(settings.batch_size) % len(dataset)
    found_nonfinite = torch.zeros((), dtype=torch.float32, device=plane.coords.device)
    try:
        batch = observe(dataset, rows, plane, state.data_scale)
        _step(probe, batch, plane, settings, found_nonfinite, micro_batcher)
    except torch.OutOfMemoryError:
        return False
    return micro_batcher.max_rows is None


def steps_per_epoch(dataset: ParticleDataset, settings: TrainingSettings) -> int:
    """Batches of a pass over the particles, the last one smaller."""
    return -(-len(dataset) // settings.batch_size)


def _rows(
    state: TrainingState, dataset: ParticleDataset, settings: TrainingSettings
) -> Iterator[Int[Tensor, " batch"]]:
    """Particles of each step, from the current one to the last."""
    epoch, position = divmod(state.step, steps_per_epoch(dataset, settings))
    steps_left = settings.schedule.total_steps - state.step
    while steps_left > 0:
        order = dataset.locality_order(state.epoch_order(epoch, len(dataset)))
        batches = order.split(settings.batch_size)[position:][:steps_left]
        yield from batches
        epoch, position, steps_left = epoch + 1, 0, steps_left - len(batches)


def _step(
    state: TrainingState,
    batch: FourierBatch,
    plane: HalfPlane,
    settings: TrainingSettings,
    found_nonfinite: Float[Tensor, ""],
    micro_batcher: MicroBatcher,
) -> Float[Tensor, " metrics"]:
    """One optimizer step, which reads no number from the device.

    Args:
        state: encoder, decoder and optimizer; changed in place, but not after a non-finite loss.
        batch: this process's shard of the images.
        plane: coefficients of the batch.
        settings: batch sizes, rates and weights of the losses.
        found_nonfinite: 1 from the first non-finite loss on, else 0; changed in place.
        micro_batcher: size of the comparison's micro-batches; changed where memory runs out.

    Returns:
        The whole loss, then the metrics of ``_flush_metrics``, angles in radians.
    """
    schedule, shard = settings.schedule, batch.shard
    active = plane.within(schedule.radius(state.step))
    for group, rate in zip(
        state.optimizer.param_groups, (settings.encoder_learning_rate, settings.decoder_learning_rate), strict=True
    ):
        group["lr"] = rate * schedule.rate(state.step)
    statistics = KeptStatistics(state.running_statistics)
    augmentation, rows = torch.eye(3, device=plane.coords.device), shard.gather(batch.indices)
    if settings.is_augmented:
        batch, augmentation = augment(batch, plane, state.step_generator(Stream.AUGMENTATION))
    result = autoencoding_loss(
        state, batch, plane, active, wta_epsilon=settings.wta_epsilon, is_symmetric=settings.is_symmetric,
        centred=settings.shift_sigma_px == 0,
        trains_encoder=state.step >= settings.image_loss_start * schedule.total_steps, micro_batcher=micro_batcher,
    )  # fmt: skip
    loss, metrics = shard.weight * result.loss, [shard.mean(result.error)]
    if settings.synthetic_weight > 0:
        pose_loss, error_rad = synthetic_pose_loss(
            state, batch, plane, active, wta_epsilon=settings.wta_epsilon,
            count=settings.synthetic_batch_size, shift_sigma_px=settings.shift_sigma_px,
        )  # fmt: skip
        loss = loss + BatchShard.local(settings.synthetic_batch_size).weight * settings.synthetic_weight * pose_loss
        metrics.append(error_rad)
    loss = loss + shard.weight * equivariance_penalty(state.encoder).to(loss)
    whole = all_reduce(loss.detach())
    found_nonfinite.copy_(torch.where(whole.isfinite(), found_nonfinite, 1.0))
    _descend(state, loss, found_nonfinite)
    statistics.put_back_where(found_nonfinite)
    rotations = shard.gather(augmentation.mT @ result.rotations)
    metrics.insert(1, _update_poses(state, rows, rotations, found_nonfinite))
    spectrum = shard.mean(result.residual_power)
    power = torch.zeros_like(state.residual_power).index_add(0, plane.shells, spectrum) / plane.shell_counts
    average = _EMA_DECAY * state.residual_power + (1 - _EMA_DECAY) * power
    state.residual_power = torch.where(found_nonfinite > 0, state.residual_power, average)
    return torch.stack([whole, *metrics])


def _descend(state: TrainingState, loss: Float[Tensor, ""], found_nonfinite: Float[Tensor, ""]) -> None:
    """One step of the optimizer along the sum of the gradients of all processes, whose losses add up to one."""
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    all_reduce_gradients([parameter for group in state.optimizer.param_groups for parameter in group["params"]])
    state.optimizer.found_inf = found_nonfinite  # type: ignore[attr-defined]  # where it is 1, fused Adam changes nothing
    state.optimizer.step()


def _update_poses(
    state: TrainingState,
    indices: Int[Tensor, " batch"],
    rotations: Float[Tensor, "batch 3 3"],
    found_nonfinite: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Store the rotations of the batch; their mean change since the last epoch in radians, NaN in the first."""
    before = state.rotations[indices]
    state.rotations[indices] = torch.where(found_nonfinite > 0, before, rotations)
    is_first_epoch = (before == torch.eye(3, device=before.device)).all(-1).all(-1).any()
    return torch.where(is_first_epoch, math.nan, rotation_angle_rad(before, rotations).mean())


def _flush_metrics(
    state: TrainingState, pending: list[Tensor], dataset: ParticleDataset, settings: TrainingSettings
) -> dict[str, float]:
    """Wait for the device, and record the metrics of the pending steps; those of the last step."""
    steps = torch.stack(pending).tolist() if pending else []
    first, metrics = state.step - len(steps), dict[str, float]()
    pending.clear()
    for step, (whole, error, change_rad, *errors_rad) in enumerate(steps, first):
        if not math.isfinite(whole):
            state.step = step
            raise DivergedError(
                f"training step {step}: the loss is {whole}",
                "a finite loss is needed to continue",
                "Lower training.encoder_learning_rate and training.decoder_learning_rate with --set, or try another "
                "--seed",
                rows=tuple(next(_rows(state, dataset, settings)).tolist()),
            )
        metrics = {"loss": error, "pose_change_deg": math.degrees(change_rad)}
        if errors_rad:
            metrics["synthetic_error_deg"] = math.degrees(errors_rad[0])
        _record(state, metrics, step % steps_per_epoch(dataset, settings))
    return metrics


def _record(state: TrainingState, metrics: dict[str, float], position: int) -> None:
    """Update the mean of each metric over the epoch so far."""
    for name, value in metrics.items():
        values = state.history.setdefault(name, [])
        if position == 0:
            values.append(value)
        else:
            values[-1] += (value - values[-1]) / (position + 1)
