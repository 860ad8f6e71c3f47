"""The processes of one job, and what they tell each other (torch.distributed: NCCL on GPUs, gloo on CPUs).

All of them run the same program on the same particles, and know the same after each step. A step's images are shared
out among them; sums and poses then come together again. Everything here leaves a process that is alone as it was.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.errors import LostProcessError
from cryoeq.runtime.torchrun import torchrun_environment

Table = TypeVar("Table", bound=ParticleRows)

# The others wait so long while one writes or draws; that a process has died is noticed at once.
_PATIENCE = timedelta(minutes=30)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Let the processes that torchrun started work together inside the block.

    Args:
        device: where this process computes.
    """
    me = torchrun_environment()
    if me.size == 1:
        yield
        return
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.set_device(device)
    # Tensors on the CPU go by gloo also where GPUs compute: asking whether to stop must not wait for a GPU.
    backend = "cpu:gloo,cuda:nccl" if is_cuda else "gloo"
    with _loss_explained():
        store, rank, size = next(rendezvous("env://", timeout=_PATIENCE))
        # torchrun may keep the store when it starts a job anew: addresses of the dead are still in it. Machines count
        # restarts each for itself; several of them need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
        if me.machines == 1:
            store = dist.PrefixStore(f"attempt {me.restarts}", store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """The number of this one."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main_process() -> bool:
    """Whether this process is the one that writes."""
    return process_rank() == 0


def all_reduce(values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The sum over all processes.

    Args:
        values: of one shape in all of them.
    """
    if world_size() == 1:
        return values
    summed = values.detach().clone(memory_format=torch.contiguous_format)
    with _loss_explained():
        dist.all_reduce(torch.view_as_real(summed) if summed.is_complex() else summed)
    return summed


def broadcast(values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """What the first process has: sums on GPUs differ in their last bits, decisions must not.

    Args:
        values: of one shape in all of them.
    """
    if world_size() == 1:
        return values
    same = values.detach().clone(memory_format=torch.contiguous_format)
    with _loss_explained():
        dist.broadcast(same, 0)
    return same


def any_rank(claim: bool) -> bool:
    """Whether it is so in any of them."""
    return bool(all_reduce(torch.tensor(int(claim))))


def shard(rows: Int[Tensor, " rows"]) -> Int[Tensor, " own"]:
    """The rows that this process works on; each row is some process's.

    Args:
        rows: to be shared out; the same in all processes.
    """
    return rows.tensor_split(world_size())[process_rank()]


def shard_half_set(rows: Int[Tensor, " rows"], half: int) -> Int[Tensor, " own"]:
    """The rows of a half set that this process works on.

    An even number of processes parts into two groups, one for each half set, which then prepares one map only. An odd
    number shares out both half sets among all.

    Args:
        rows: of the half set.
        half: 1 or 2.
    """
    count, rank = world_size(), process_rank()
    if count % 2:
        return shard(rows)
    group, place = divmod(rank, count // 2)
    return rows.tensor_split(count // 2)[place] if group == half - 1 else rows[:0]


def all_gather_rows(
    values: Sequence[Shaped[Tensor, "own ..."]], rows: Int[Tensor, " own"], count: int
) -> tuple[Shaped[Tensor, "count ..."], ...]:
    """What all processes found, in the order of the rows; 0 where none has worked.

    Args:
        values: of the rows of this process, all of one type.
        rows: no row is another process's.
        count: of rows in all.
    """
    if world_size() > 1:
        sizes = all_reduce(torch.eye(world_size(), dtype=torch.long)[process_rank()] * len(rows)).tolist()
        (every,) = _of_all((rows.int(),), sizes)
        rows, values = every.long(), _of_all(values, sizes)
    return tuple(part.new_zeros(count, *part.shape[1:]).index_copy(0, rows, part) for part in values)


def all_gather(table: Table, rows: Int[Tensor, " own"], count: int) -> Table:
    """A table of all particles, from this process's rows of it; 0 where no process has worked.

    Args:
        table: the rows of this process, all columns of one type.
        rows: which they are; no row is another process's.
        count: number of particles in all.
    """
    return table.with_tensors(iter(all_gather_rows(tuple(table.tensors()), rows, count)))


def _of_all(
    values: Sequence[Shaped[Tensor, "own ..."]], sizes: Sequence[int]
) -> tuple[Shaped[Tensor, "every ..."], ...]:
    """The rows of the first process, then those of the second, and so on: one message, each row sent once.

    Args:
        values: of this process, all of one type.
        sizes: how many rows each process has.
    """
    columns = [part.flatten(1) if part.ndim > 1 else part[:, None] for part in values]
    own = torch.cat(columns, 1)
    padded = torch.nn.functional.pad(own, (0, 0, 0, max(sizes) - len(own)))
    received = [torch.empty_like(padded) for _ in sizes]
    with _loss_explained():
        dist.all_gather(received, padded)
    every = torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])
    parts = every.split([part.shape[1] for part in columns], 1)
    return tuple(part.reshape(-1, *like.shape[1:]) for part, like in zip(parts, values, strict=True))


@dataclass(frozen=True)
class BatchShard:
    """The part of a batch that this process computes.

    A batch of fewer images than there are processes is computed whole by each of them. (That is exact but for the
    variance that the encoder's first norm keeps for evaluation, whose n / (n - 1) counts each copy.)

    Args:
        places: of its images in the batch, which are neighbours.
        count: images of the whole batch.
        weight: of its mean in the mean over the batch.
    """

    places: slice
    count: int
    weight: float

    @classmethod
    def of(cls, count: int) -> "BatchShard":
        """This process's.

        Args:
            count: images of the whole batch.
        """
        if count < world_size():
            return cls(slice(0, count), count, 1 / world_size())
        sizes = _sizes(count)
        first, own = sum(sizes[: process_rank()]), sizes[process_rank()]
        return cls(slice(first, first + own), count, own / max(1, count))

    def mean(self, values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """The mean over the batch, from this process's mean over its share."""
        return all_reduce(values.detach() * self.weight) if world_size() > 1 else values.detach()

    def gather(self, values: Shaped[Tensor, "own ..."]) -> Shaped[Tensor, "count ..."]:
        """The values of all images, in the order of the batch."""
        if self.count < world_size():
            return broadcast(values)
        return values if world_size() == 1 else _of_all((values,), _sizes(self.count))[0]


def _sizes(count: int) -> list[int]:
    """How many of some rows each process works on, as ``shard`` has it."""
    least, more = divmod(count, world_size())
    return [least + (rank < more) for rank in range(world_size())]


def all_reduce_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Sum the gradients of all processes, in one message.

    Args:
        parameters: their ``grad`` is changed; one without has none in any process.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if world_size() == 1 or not gradients:
        return
    summed = all_reduce(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, summed.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def mean_over_rows(means: Shaped[Tensor, "..."], rows: int) -> Shaped[Tensor, "..."]:
    """The mean over the rows of all processes, from this one's mean over its own: batch norms see the whole batch.

    Args:
        means: of this process.
        rows: how many it has.
    """
    if world_size() == 1:
        return means
    summed = all_reduce(torch.cat([(means * rows).flatten(), means.new_full((1,), rows)]))
    return (summed[:-1] / summed[-1]).view(means.shape)


@contextmanager
def _loss_explained() -> Iterator[None]:
    """An error of torch.distributed in the user's words."""
    try:
        yield
    except RuntimeError as error:
        me = torchrun_environment()
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        first_line = re.sub(r"^\[[^ ]*\] ", "", first_line)  # gloo begins with the line of its source
        raise LostProcessError(
            f"process {me.rank + 1} of {me.size} lost touch with the others ({first_line})",
            "all processes of a job are needed until its end",
            "See what the process that ended first has said; --resume goes on from what was saved",
        ) from error
