"""Which process of a job this is, as torchrun tells it in the environment; known before torch is imported."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class TorchrunEnvironment:
    """A process among those that torchrun started.

    Args:
        rank: its number among all.
        size: how many there are; 1 for a program that was started by itself.
        local_rank: its number on this machine, and so its GPU.
        restarts: how often torchrun of this machine has started the job anew.
        machines: on which the processes run.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    restarts: int = 0
    machines: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether it is the one that writes, draws and logs."""
        return self.rank == 0


def torchrun_environment() -> TorchrunEnvironment:
    """This process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return TorchrunEnvironment()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT", "GROUP_WORLD_SIZE")
    return TorchrunEnvironment(*(int(os.environ[name]) for name in names))
