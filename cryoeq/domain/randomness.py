"""Independent streams of randomness from one seed."""

from enum import IntEnum

import torch

_MOST_STREAMS = 16  # room for more, so that a new stream changes no number of the others


class Stream(IntEnum):
    """What randomness is for.

    Two streams of one seed share no number, so a reconstruction never draws the poses of a simulation.
    """

    STEP = 0
    EPOCH = 1
    SIMULATION = 2
    HALF_SETS = 3
    BASIN = 4
    BASIN_IMAGES = 5
    GROWTH = 6
    SECOND_LOOK = 7
    LESSONS = 8
    HELD_OUT = 9
    DECODER_FIT = 10
    FILTERS = 11
    AUGMENTATION = 12
    JUNK = 13
    LATTICES = 14
    TURNS = 15


def stream_generator(seed: int, stream: Stream, number: int = 0) -> torch.Generator:
    """A generator on the CPU.

    Args:
        seed: the run's.
        stream: what for.
        number: which of the stream's generators, for example the step.
    """
    # One 63-bit seed for each (seed, stream, number), by the multiplier of a linear congruential generator.
    mixed = (seed * _MOST_STREAMS + stream) * 6364136223846793005 + number * 1442695040888963407 + 1
    return torch.Generator().manual_seed(mixed % 2**63)
