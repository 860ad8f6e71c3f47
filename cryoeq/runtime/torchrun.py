"""Rank and world size from the environment of torchrun, known before torch is imported."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class TorchrunEnvironment:
    """One of the processes that torchrun started; the defaults are those of a program without torchrun.

    Args:
        rank: rank among all processes.
        size: number of processes of the job.
        local_rank: rank among the processes of this machine, and index of the process's GPU.
        restarts: number of times that torchrun of this machine has restarted the job.
        machines: number of machines of the job.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    restarts: int = 0
    machines: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process of rank 0, the one that writes, plots and logs."""
        return self.rank == 0


def torchrun_environment() -> TorchrunEnvironment:
    """The environment of this process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return TorchrunEnvironment()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT", "GROUP_WORLD_SIZE")
    return TorchrunEnvironment(*(int(os.environ[name]) for name in names))
