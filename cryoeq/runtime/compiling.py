"""What can be compiled here: the encoder by torch.compile, kernels by Triton."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec

from torch import nn

from cryoeq.domain.events import Note


def find_compiler() -> str | None:
    """The C++ compiler that torch.compile would call."""
    candidates = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((path for name in candidates if name and (path := shutil.which(name))), None)


def compile_if_possible(encoder: nn.Module, *, is_requested: bool) -> Iterator[Note]:
    """Compile the encoder's forward and backward pass at its first use; its parameters stay.

    Args:
        encoder: network to compile, in place.
        is_requested: whether the settings ask for it; otherwise nothing happens.

    Yields:
        A note on what was done.
    """
    if not is_requested:
        return
    if find_compiler() is None:
        yield Note("torch.compile skipped: no C++ compiler found (see cryoeq doctor).")
        return
    from torch._dynamo import config  # an import of seconds

    config.suppress_errors = True  # where compilation fails, the encoder runs uncompiled, with a warning
    encoder.compile()
    yield Note("torch.compile: the first step, and each step with another number of images, can take minutes.")


@cache
def can_launch_triton() -> bool:
    """Whether Triton is installed, finds the driver of a GPU, and can compile what launches its kernels (in C).

    Its interpreter, which the environment variable ``TRITON_INTERPRET`` turns on, needs neither.
    """
    if find_spec("triton") is None:
        return False
    import triton

    if triton.knobs.runtime.interpret:
        return True
    try:
        triton.runtime.driver.active.get_current_target()
    except (AssertionError, ImportError, OSError, RuntimeError, subprocess.CalledProcessError):
        return False
    return True
