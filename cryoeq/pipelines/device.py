"""Where the numbers are computed."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cryoeq.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device of ``--device``.

    Args:
        name: ``auto`` (the first CUDA device where there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Returns:
        The device, present on this machine.

    Raises:
        ConfigError: no such device here, or a name that is none of these.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise ConfigError(f"--device {name}", "cryoeq knows auto, cpu, cuda and cuda:N", "Use --device auto")
    index, count = int(match[1] or 0), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        raise ConfigError(
            f"--device {name}: torch {torch.__version__} sees {count} CUDA devices on this machine",
            "",
            "Use --device auto or --device cpu; `cryoeq doctor` tells what is missing",
        )
    return torch.device("cuda", index)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch compute with ``count`` threads of the CPU inside the block; None leaves their number alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
