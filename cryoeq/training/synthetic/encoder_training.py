"""Training of a pose encoder on synthetic projections of a map.

Each projection is used at the offset nearest to its shift, and at another: the encoder learns the poses of particles
that an offset centres, and low probabilities where it does not.

Training on synthetic projections: Yao et al. 2023, ACE-EM (arXiv 2302.06091).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.events import Progress
from cryoeq.equivariance import equivariance_penalty
from cryoeq.errors import DivergedError
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.runtime.batching import logging_interval
from cryoeq.runtime.distributed import BatchShard, all_reduce, all_reduce_gradients
from cryoeq.runtime.random_streams import Stream, stream_generator
from cryoeq.training.losses import mixture_loss, pose_cost
from cryoeq.training.synthetic.encoder_input import best_hypotheses, propose_at_offsets
from cryoeq.training.synthetic.projections import ProjectionSimulator, choose_offsets

_WARMUP_STEPS = 50  # in which the learning rate rises
_WTA_EPSILON = 0.02  # weight of the mean cost of all hypotheses: without it some would never be trained


class TrainingStage(IntEnum):
    """Stages of an encoder's training; each has projections of its own."""

    PRETRAINING = 0
    FINETUNING = 1


_STAGE_NAMES = {TrainingStage.PRETRAINING: "encoder training", TrainingStage.FINETUNING: "encoder fine-tuning"}


@dataclass(frozen=True)
class EncoderTrainingSettings:
    """Settings of an encoder's training.

    Args:
        steps: number of optimizer steps.
        batch_size: images per step; half as many projections where each is used at two offsets.
        learning_rate: highest learning rate; it falls to 0 as a cosine.
        concentration: inverse temperature of the mixture components, for the squared chordal distance of rotations.
        initial_noise_scale: amplitude of the first projections' noise, relative to that of the particles; it rises to 1
            in the first half. An encoder that begins with less noise is past its plateau sooner.
    """

    steps: int
    batch_size: int
    learning_rate: float
    concentration: float
    initial_noise_scale: float = 1.0


def train_encoder(
    encoder: torch.nn.Module,
    simulator: ProjectionSimulator,
    settings: EncoderTrainingSettings,
    *,
    seed: int,
    stage: TrainingStage = TrainingStage.PRETRAINING,
) -> Iterator[Progress]:
    """Train the encoder on new projections in each step; it is left in evaluation mode.

    There is an event after each step on a CPU. A GPU is waited for only at an event, where metrics are read.

    Args:
        encoder: pose encoder, trained in place.
        simulator: source of the training projections.
        settings: length of the training, rates and noise.
        seed: random seed of the run.
        stage: training stage; each has random numbers of its own.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    generator = stream_generator(seed, Stream.SYNTHETIC_PROJECTIONS, stage)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99))
    log_every, pending = logging_interval(simulator.padded.device), list[Tensor]()
    encoder.train()
    for step in range(settings.steps):
        rate = min(1.0, (step + 1) / _WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate
        first = settings.initial_noise_scale
        noise_scale = min(1.0, first + (1 - first) * 2 * step / settings.steps)
        loss, metrics = _training_loss(encoder, simulator, settings, generator, noise_scale)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        all_reduce_gradients(list(encoder.parameters()))
        optimizer.step()
        pending.append(metrics)
        if len(pending) == log_every or step + 1 == settings.steps:
            error_rad = _flush_metrics(pending, step + 1)
            error_deg = {"synthetic_error_deg": math.degrees(error_rad)}
            yield Progress(_STAGE_NAMES[stage], step + 1, settings.steps, error_deg)
    encoder.eval()


def _training_loss(
    encoder: torch.nn.Module,
    simulator: ProjectionSimulator,
    settings: EncoderTrainingSettings,
    generator: torch.Generator,
    noise_scale: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, " metrics"]]:
    """The loss over this process's shard of new projections; the whole loss, and the median error in radians."""
    encoder_input = simulator.encoder_input
    count = settings.batch_size // encoder_input.offsets_per_projection
    projections = simulator.simulate(count, generator, noise_scale=noise_scale)
    shard, offsets = BatchShard.local(count), choose_offsets(encoder_input, projections.shifts_px, generator)
    batch = projections.each(lambda values: values[shard.positions])
    proposals = propose_at_offsets(
        encoder, batch.ctf_multiplied, encoder_input, offsets[shard.positions], batch.ctf_features
    )
    costs = pose_cost(proposals, batch.rotations, batch.shifts_px, simulator.shift_sigma_px)
    pose_loss = mixture_loss(proposals.logits, costs, settings.concentration) + _WTA_EPSILON * costs.mean()
    loss = shard.weight * (pose_loss + equivariance_penalty(encoder).to(pose_loss))
    errors_rad = rotation_angle_rad(best_hypotheses(proposals)[0].detach(), batch.rotations)
    return loss, torch.stack([all_reduce(loss.detach()), shard.gather(errors_rad).median()])


def _flush_metrics(pending: list[Tensor], done: int) -> float:
    """Wait for the device; the error of the last step, in radians."""
    steps = torch.stack(pending).tolist()
    pending.clear()
    for step, (whole, _) in enumerate(steps, done - len(steps)):
        if not math.isfinite(whole):
            raise DivergedError(
                f"step {step} of the encoder's training: the loss is {whole}",
                "a finite loss is needed to continue",
                "Lower hybrid.learning_rate with --set, or try another --seed",
            )
    return float(steps[-1][1])
