"""A watch over the other processes of a job: NCCL waits for a process that has died, where gloo fails at once.

A thread of each process waits for a message from its right neighbour, over a connection of gloo's own. As it ends, each
process tells its left neighbour how. Where a process dies, the connection closes; where one fails, it says so: the news
goes round, and each process has some seconds to end by itself. Then its NCCL communicators are aborted, so that a
collective that waits raises an error, and at last the process is ended from the thread: a wait for a GPU can neither
be interrupted nor see a signal. A machine that loses power closes no connection: NCCL's own time limit is left.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from cryoeq.errors import LostProcessError
from cryoeq.runtime.torchrun import torchrun_environment

_ENDED, _FAILED = 0, 1
_GRACE_S = 5.0
_FOREVER = timedelta(days=365)


@contextlib.contextmanager
def watch_peers() -> Iterator[None]:
    """End this process within seconds if another process of the job dies or fails inside the block.

    Processes that end well leave the block together; a signal (``Terminated``) is no failure, since all are stopped.
    """
    group, has_left = dist.new_group(backend="gloo", timeout=_FOREVER), threading.Event()
    thread = threading.Thread(target=_watch, args=(group, has_left), name="peer watch", daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        has_left.set()
        _tell(group, _FAILED if isinstance(error, Exception) else _ENDED)
        thread.join(_GRACE_S)
        raise
    has_left.set()
    _tell(group, _ENDED)
    thread.join()


def _tell(group: dist.ProcessGroup, state: int) -> None:
    """Tell the left neighbour, if it is still there."""
    with contextlib.suppress(RuntimeError):
        dist.send(torch.tensor([state]), (dist.get_rank() - 1) % dist.get_world_size(), group)


def _watch(group: dist.ProcessGroup, has_left: threading.Event) -> None:
    """Wait for the right neighbour; where it is lost, pass that on, and end this process unless it does so itself."""
    state = torch.tensor([_FAILED])
    with contextlib.suppress(RuntimeError):  # the connection was closed: the process has died
        dist.recv(state, (dist.get_rank() + 1) % dist.get_world_size(), group)
    if int(state) == _ENDED or has_left.is_set():
        return
    _tell(group, _FAILED)
    if has_left.wait(_GRACE_S):
        return
    _abort()
    if has_left.wait(_GRACE_S):
        return
    environment = torchrun_environment()
    sys.stderr.write(
        f"cryoeq: process {environment.rank + 1} of {environment.size} lost touch with the others, while it waited: "
        "all processes of a job are needed until its end. --resume continues from the last checkpoint.\n"
    )
    sys.stderr.flush()
    os._exit(LostProcessError.exit_code)


def _abort() -> None:
    """Let collectives of NCCL that wait for another process fail."""
    with contextlib.suppress(RuntimeError):
        backend = dist.group.WORLD._get_backend(torch.device("cuda"))  # type: ignore[union-attr]
        if dist.is_nccl_available() and isinstance(backend, dist.ProcessGroupNCCL):
            backend.abort()
