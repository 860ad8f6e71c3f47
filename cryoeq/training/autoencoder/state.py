"""Training state of the autoencoder, and its checkpoint."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoeq.models.implicit_decoder import ImplicitDecoder
from cryoeq.models.voxel_decoder import VoxelDecoder
from cryoeq.runtime.random_streams import Stream, stream_generator


@dataclass
class TrainingState:
    """The whole state of a training at one step.

    Randomness has no state of its own: each step and each epoch draws from a generator seeded by its number.

    Args:
        encoder: network from images to pose hypotheses.
        decoder: model of the map, from poses to slices.
        optimizer: optimizer of both; its parameter groups are the encoder's and the decoder's.
        data_scale: factor that gives the images unit variance.
        residual_power: mean |observed - predicted|^2 of each shell, an exponential moving average; noise spectrum of
            the synthetic projections.
        rotations: last known rotation of each particle, identity before its first step; on the computing device.
        seed: random seed of the run.
        step: number of steps taken.
        history: mean of each metric over each epoch.
        batch_size: images per step, where the memory of a GPU has decided that; else None.
    """

    encoder: nn.Module
    decoder: VoxelDecoder | ImplicitDecoder
    optimizer: torch.optim.Optimizer
    data_scale: float
    residual_power: Float[Tensor, " shells"]
    rotations: Float[Tensor, "particles 3 3"]
    seed: int
    step: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)
    batch_size: int | None = None

    def step_generator(self, stream: Stream = Stream.STEP) -> torch.Generator:
        """Random numbers of the current step, on the computing device."""
        return stream_generator(self.seed, stream, self.step, self.residual_power.device)

    def epoch_order(self, epoch: int, count: int) -> Tensor:
        """Random order of the particles in an epoch."""
        return torch.randperm(count, generator=stream_generator(self.seed, Stream.EPOCH, epoch))

    @property
    def running_statistics(self) -> list[Tensor]:
        """Running means and variances of the encoder's batch norms."""
        parameters = dict(self.encoder.named_parameters())
        return [values for name, values in self.encoder.state_dict().items() if name not in parameters]

    @property
    def is_finite(self) -> bool:
        """Whether all parameters are finite: a step may make them infinite before the loss of the next one shows it."""
        tensors = (*self.encoder.parameters(), *self.decoder.parameters(), self.rotations)
        return bool(torch.stack([torch.isfinite(values).all() for values in tensors]).all())

    def to_checkpoint(self) -> dict[str, Any]:
        """Tensors and plain values only, as ``torch.load(weights_only=True)`` requires."""
        return {
            "encoder": self.encoder.state_dict(),
            "decoder": self.decoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "data_scale": self.data_scale,
            "residual_power": self.residual_power,
            "rotations": self.rotations,
            "seed": self.seed,
            "step": self.step,
            "history": {name: list(values) for name, values in self.history.items()},
            "batch_size": self.batch_size,
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Load what ``to_checkpoint`` gave."""
        self.encoder.load_state_dict(checkpoint["encoder"])
        self.decoder.load_state_dict(checkpoint["decoder"])
        optimizer = checkpoint["optimizer"]
        # Early checkpoints of version 0.1 are of an Adam that was not fused, and could not leave out a step.
        groups = [{**group, "fused": True} for group in optimizer["param_groups"]]
        self.optimizer.load_state_dict({**optimizer, "param_groups": groups})
        self.data_scale = checkpoint["data_scale"]
        self.residual_power = checkpoint["residual_power"].to(self.residual_power.device)
        self.rotations = checkpoint["rotations"].to(self.rotations.device)
        self.seed, self.step = checkpoint["seed"], checkpoint["step"]
        self.history = {name: list(values) for name, values in checkpoint["history"].items()}
