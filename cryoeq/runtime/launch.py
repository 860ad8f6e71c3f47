"""Launch of one process for each of several GPUs: ``torchrun --standalone``, with the exit codes of cryoeq."""

import os
import signal
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from cryoeq.errors import ConfigError, LostProcessError, Terminated
from cryoeq.runtime.device import choose_device
from cryoeq.runtime.torchrun import torchrun_environment


def device_of(gpus: str) -> str | None:
    """The device of this process; None where processes have yet to be launched, one for each GPU.

    Args:
        gpus: indices of GPUs, separated by commas.

    Raises:
        ConfigError: these are no indices, or there are no such GPUs.
    """
    if not all(number.isdecimal() for number in gpus.split(",")) or len(set(gpus.split(","))) < len(gpus.split(",")):
        raise ConfigError(f"--gpu {gpus}", "indices of GPUs are expected, each once, separated by commas", "Try 0,1")
    names = [f"cuda:{number}" for number in gpus.split(",")]
    for name in names:
        choose_device(name, f"--gpu {gpus}")
    if len(names) == 1 or torchrun_environment().size == len(names):
        return names[torchrun_environment().local_rank]
    return None


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run a command of cryoeq in several processes of this machine, and wait for them.

    SIGTERM and SIGUSR1 to this process stop them all.

    Args:
        count: number of processes.
        arguments: arguments of the command line, the command first.

    Returns:
        The exit code of a process that failed; 0 where all succeeded.

    Raises:
        Terminated: a signal stopped the processes.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))  # torch passes SIGTERM on
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "cryoeq", *arguments)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        lost = LostProcessError.exit_code  # the code of the others when one has ended
        return next((code for code in codes if code > 0 and code != lost), lost)
    except SignalException as stop:
        if stop.sigval == signal.SIGINT:
            raise KeyboardInterrupt from stop
        raise Terminated(stop.sigval.name) from stop
    return 0
