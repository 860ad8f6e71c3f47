"""Independent streams of randomness from one seed."""

from enum import IntEnum

import torch
from jaxtyping import Shaped
from torch import Tensor

_MOST_STREAMS = 16  # room for more, so that a new stream changes no number of the others


class Stream(IntEnum):
    """What randomness is for.

    Two streams of one seed share no number, so a reconstruction never draws the poses of a simulation.
    """

    STEP = 0
    EPOCH = 1
    SIMULATION = 2
    HALF_SETS = 3
    INITIAL_MODEL = 4
    INITIAL_MODEL_IMAGES = 5
    REFINEMENT = 6
    REALIGNMENT = 7
    SYNTHETIC_PROJECTIONS = 8
    HELD_OUT = 9
    DECODER_FIT = 10
    FILTERS = 11
    AUGMENTATION = 12
    JUNK = 13
    LATTICES = 14
    ROTATIONS = 15


def stream_generator(seed: int, stream: Stream, number: int = 0, device: torch.device | None = None) -> torch.Generator:
    """A generator.

    Args:
        seed: the run's.
        stream: what for.
        number: which of the stream's generators, for example the step.
        device: where it draws, the CPU by default; another kind of device draws other numbers.
    """
    # One 63-bit seed for each (seed, stream, number), by the multiplier of a linear congruential generator.
    mixed = (seed * _MOST_STREAMS + stream) * 6364136223846793005 + number * 1442695040888963407 + 1
    return torch.Generator(device or "cpu").manual_seed(mixed % 2**63)


def to_device_async(values: Shaped[Tensor, "..."], device: torch.device) -> Shaped[Tensor, "..."]:
    """Numbers drawn on the CPU, on a device that goes on with what it is at meanwhile."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
