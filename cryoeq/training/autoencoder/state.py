"""All that a training is made of at one moment, and what a checkpoint stores."""

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
    """The whole state of a training.

    Randomness has no state of its own: each step and each epoch draws from a generator seeded by its number.

    Args:
        encoder: images to pose hypotheses.
        decoder: poses to slices.
        optimizer: of both; its parameter groups are the encoder's and the decoder's.
        data_scale: factor that the images were multiplied by to have unit variance.
        residual_power: mean |observed - predicted|^2 of each shell, a running average; the noise that renderings get.
        rotations: last known rotation of each particle, identity before its first visit; on the computing device.
        seed: of all randomness.
        step: steps taken.
        history: figures of each finished epoch.
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
        """Randomness of the current step, drawn where it is computed."""
        return stream_generator(self.seed, stream, self.step, self.residual_power.device)

    def epoch_order(self, epoch: int, count: int) -> Tensor:
        """In which order the particles are visited in an epoch."""
        return torch.randperm(count, generator=stream_generator(self.seed, Stream.EPOCH, epoch))

    @property
    def running_statistics(self) -> list[Tensor]:
        """What the encoder's norms keep of the batches that they have seen."""
        learnt = dict(self.encoder.named_parameters())
        return [values for name, values in self.encoder.state_dict().items() if name not in learnt]

    @property
    def is_finite(self) -> bool:
        """Whether all that is learnt is a number: a step may take it to infinity before the next one's loss says so."""
        learnt = (*self.encoder.parameters(), *self.decoder.parameters(), self.rotations)
        return bool(torch.stack([torch.isfinite(values).all() for values in learnt]).all())

    def to_checkpoint(self) -> dict[str, Any]:
        """Tensors and plain values only, as ``torch.load(weights_only=True)`` wants them."""
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
        """Take over what ``to_checkpoint`` gave."""
        self.encoder.load_state_dict(checkpoint["encoder"])
        self.decoder.load_state_dict(checkpoint["decoder"])
        kept = checkpoint["optimizer"]  # of an older version, whose optimizer could not leave out a step, maybe
        groups = [{**group, "fused": True} for group in kept["param_groups"]]
        self.optimizer.load_state_dict({**kept, "param_groups": groups})
        self.data_scale = checkpoint["data_scale"]
        self.residual_power = checkpoint["residual_power"].to(self.residual_power.device)
        self.rotations = checkpoint["rotations"].to(self.rotations.device)
        self.seed, self.step = checkpoint["seed"], checkpoint["step"]
        self.history = {name: list(values) for name, values in checkpoint["history"].items()}
