"""The compiled kernels, made before they are needed, so that the first run says what it waits for."""

from collections.abc import Generator

import torch

from cryoeq.domain.events import Event, Progress

STAGE = "compiling kernels, once per installation"


def compile_kernels(device: torch.device) -> Generator[Event, None, None]:
    """Machine code of pose search and local refinement, where it is used and was not kept by an earlier run.

    Args:
        device: where the run computes: CPUs use it.

    Yields:
        Its progress; nothing where it is there.
    """
    if device.type != "cpu":
        return
    from cryoeq.reconstruction.kernel_cache import compile_now, is_compiled  # not above, because of numba

    if is_compiled():
        return
    yield Progress(STAGE, 0, 1)
    compile_now()
    yield Progress(STAGE, 1, 1)
