"""Choice of the compute device, and CPU threads of torch."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cryoeq.errors import ConfigError
from cryoeq.runtime.torchrun import torchrun_environment


def choose_device(name: str, option: str = "") -> torch.device:
    """The device of ``--device``; float32 on CUDA devices is float32 from then on, not TF32.

    Args:
        name: ``auto`` (a CUDA device where there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``. Without a
            number it is the CUDA device of the process's local rank, the first for a single process.
        option: the option as the user typed it, for messages; by default ``--device``.

    Returns:
        The device, present on this machine.

    Raises:
        ConfigError: no such device on this machine, or another name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise ConfigError(f"--device {name}", "cryoeq knows auto, cpu, cuda and cuda:N", "Use --device auto")
    index = torchrun_environment().local_rank if match[1] is None else int(match[1])
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        place = f"process {index} of this machine" if match[1] is None and index else "this machine"
        raise ConfigError(
            f"{option or f'--device {name}'}: torch {torch.__version__} sees {count} CUDA devices on {place}",
            "",
            f"{'Leave it out' if option else 'Use --device auto or --device cpu, or start fewer processes'}; "
            "`cryoeq doctor` shows what is missing",
        )
    # Float32 is float32: by default convolutions would have the ten bits of TF32.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda", index)


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Limit torch to ``count`` CPU threads inside the block; None keeps their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
