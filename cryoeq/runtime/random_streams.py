"""Independent streams of randomness from one seed."""

from enum import IntEnum

import torch
from jaxtyping import Shaped
from torch import Tensor

_MAX_STREAMS = 16  # fixed, so that a new stream changes no number of the others


class Stream(IntEnum):
    """Purpose of random numbers.

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
    """The random number generator of a seed, a stream and a number.

    Args:
        seed: random seed of the run.
        stream: purpose of the random numbers.
        number: number of the generator within the stream, for example the step.
        device: device of the generator, the CPU by default; another kind of device draws other numbers.
    """
    # One 63-bit seed for each (seed, stream, number), by the multiplier of a linear congruential generator.
    mixed = (seed * _MAX_STREAMS + stream) * 6364136223846793005 + number * 1442695040888963407 + 1
    return torch.Generator(device or "cpu").manual_seed(mixed % 2**63)


def to_device_async(values: Shaped[Tensor, "..."], device: torch.device) -> Shaped[Tensor, "..."]:
    """Values of the CPU on a device, by a copy that does not wait for the device."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
