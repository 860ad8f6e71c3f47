"""Whether torch.compile can be had, and the encoder compiled where it can."""

import os
import shutil
from collections.abc import Iterator

from torch import nn

from cryoeq.domain.events import Note


def find_compiler() -> str | None:
    """The C++ compiler that torch.compile would call."""
    candidates = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((path for name in candidates if name and (path := shutil.which(name))), None)


def compile_if_possible(encoder: nn.Module, *, is_wanted: bool) -> Iterator[Note]:
    """Let torch.compile take over the encoder's forward and backward pass at its first use; its parameters stay.

    Args:
        encoder: changed in place.
        is_wanted: else nothing happens.

    Yields:
        What was done.
    """
    if not is_wanted:
        return
    if find_compiler() is None:
        yield Note("No C++ compiler was found (cryoeq doctor): the encoder is not compiled, all else is as asked.")
        return
    from torch._dynamo import config  # takes seconds

    config.suppress_errors = True  # what cannot be compiled after all runs as it is, with a warning
    encoder.compile()
    yield Note("The encoder is compiled: the first step, and each with another number of images, takes up to minutes.")
