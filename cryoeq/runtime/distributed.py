"""Collectives of a job of several processes (torch.distributed: NCCL on GPUs, gloo on CPUs).

All processes run the same program on the same particles, and have the same state after each step. They share the images
of a step; sums are then reduced, and poses gathered. In a single process every collective returns its argument.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
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
from cryoeq.runtime.peer_watch import watch_peers
from cryoeq.runtime.torchrun import torchrun_environment

Table = TypeVar("Table", bound=ParticleRows)

# Others wait at most this long while one process writes or plots; a process that has died is noticed at once.
_TIMEOUT = timedelta(minutes=30)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started into one group inside the block.

    Args:
        device: compute device of this process.
    """
    environment = torchrun_environment()
    if environment.size == 1:
        yield
        return
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.set_device(device)
    # Tensors on the CPU use gloo also where GPUs compute: agreeing on a stop must not wait for a GPU.
    backend = "cpu:gloo,cuda:nccl" if is_cuda else "gloo"
    with _lost_process_explained():
        store, rank, size = next(rendezvous("env://", timeout=_TIMEOUT))
        # torchrun may keep the store when it restarts a job: addresses of dead processes are still in it. Each machine
        # counts its own restarts; jobs on several of them need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
        if environment.machines == 1:
            store = dist.PrefixStore(f"attempt {environment.restarts}", store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    try:
        with watch_peers() if is_cuda else nullcontext():
            yield
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Number of processes of the job."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Rank of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main_process() -> bool:
    """Whether this is the process of rank 0, the one that writes."""
    return process_rank() == 0


def all_reduce(values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The sum over all processes.

    Args:
        values: summands, of the same shape in all processes.
    """
    if world_size() == 1:
        return values
    summed = values.detach().clone(memory_format=torch.contiguous_format)
    with _lost_process_explained():
        dist.all_reduce(torch.view_as_real(summed) if summed.is_complex() else summed)
    return summed


def broadcast(values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The values of rank 0: sums on GPUs differ in their last bits, decisions must not.

    Args:
        values: tensor of the same shape in all processes.
    """
    if world_size() == 1:
        return values
    received = values.detach().clone(memory_format=torch.contiguous_format)
    with _lost_process_explained():
        dist.broadcast(received, 0)
    return received


def all_reduce_max(values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The largest value over all processes, element by element.

    Args:
        values: numbers or booleans, of the same shape in all processes.
    """
    if world_size() == 1:
        return values
    largest = values.to(torch.int32) if values.dtype == torch.bool else values.clone()
    with _lost_process_explained():
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest.to(values.dtype)


def any_rank(claim: bool) -> bool:
    """Whether a claim holds in any process."""
    return bool(all_reduce(torch.tensor(int(claim))))


def shard(rows: Int[Tensor, " rows"]) -> Int[Tensor, " local"]:
    """The rows that this process works on; each row belongs to one process.

    Args:
        rows: all rows, the same in every process.
    """
    return rows.tensor_split(world_size())[process_rank()]


def shard_half_set(rows: Int[Tensor, " rows"], half: int) -> Int[Tensor, " local"]:
    """The rows of a half set that this process works on.

    An even number of processes forms two groups, one for each half set, so that each process prepares one map only. An
    odd number of processes shares both half sets.

    Args:
        rows: all rows of the half set, the same in every process.
        half: number of the half set, 1 or 2.
    """
    count, rank = world_size(), process_rank()
    if count % 2:
        return shard(rows)
    group, position = divmod(rank, count // 2)
    return rows.tensor_split(count // 2)[position] if group == half - 1 else rows[:0]


def all_gather_rows(
    values: Sequence[Shaped[Tensor, "local ..."]], rows: Int[Tensor, " local"], count: int
) -> tuple[Shaped[Tensor, "count ..."], ...]:
    """The columns of a table from the rows of all processes; 0 in rows that belong to none.

    Args:
        values: columns of this process's rows, all of one type.
        rows: indices of this process's rows, disjoint from those of the others.
        count: number of rows of the whole table.
    """
    if world_size() > 1:
        sizes = all_reduce(torch.eye(world_size(), dtype=torch.long)[process_rank()] * len(rows)).tolist()
        (all_rows,) = _all_gather_uneven((rows.int(),), sizes)
        rows, values = all_rows.long(), _all_gather_uneven(values, sizes)
    return tuple(column.new_zeros(count, *column.shape[1:]).index_copy(0, rows, column) for column in values)


def exchange_rows(table: Shaped[Tensor, "count ..."]) -> None:
    """Give every process the whole of a table of which each has written the rows of its ``shard``; in place.

    A process sends its rows to all others, so no second table is needed.

    Args:
        table: contiguous, and written to.
    """
    if world_size() == 1:
        return
    values = torch.view_as_real(table) if table.is_complex() else table
    with _lost_process_explained():
        for rank, rows in enumerate(values.split(_sizes(len(values)))):
            dist.broadcast(rows, rank)


def all_gather(table: Table, rows: Int[Tensor, " local"], count: int) -> Table:
    """A table of all particles from the rows of all processes; 0 in rows that belong to none.

    Args:
        table: rows of this process, all columns of one type.
        rows: indices of this process's rows, disjoint from those of the others.
        count: number of particles of the whole table.
    """
    return table.with_tensors(iter(all_gather_rows(tuple(table.tensors()), rows, count)))


def gather_shards(table: Table, count: int) -> Table:
    """A table of all rows, of which each process has those that ``shard`` gives it of them in order.

    Args:
        table: rows of this process, all columns of one type.
        count: number of rows of the whole table.
    """
    return table.with_tensors(iter(gather_shard_columns(tuple(table.tensors()), count)))


def gather_shard_columns(
    values: Sequence[Shaped[Tensor, "local ..."]], count: int
) -> Sequence[Shaped[Tensor, "count ..."]]:
    """Columns as ``gather_shards`` has them.

    Args:
        values: columns of this process's rows, all of one type.
        count: number of rows of the whole table.
    """
    return values if world_size() == 1 else _all_gather_uneven(values, _sizes(count))


def _all_gather_uneven(
    values: Sequence[Shaped[Tensor, "local ..."]], sizes: Sequence[int]
) -> tuple[Shaped[Tensor, "all ..."], ...]:
    """The rows of all processes, in the order of their ranks: one message, each row sent once.

    Args:
        values: columns of this process's rows, all of one type.
        sizes: number of rows of each process.
    """
    flat = [column.flatten(1) if column.ndim > 1 else column[:, None] for column in values]
    local = torch.cat(flat, 1)
    padded = torch.nn.functional.pad(local, (0, 0, 0, max(sizes) - len(local)))
    received = [torch.empty_like(padded) for _ in sizes]
    with _lost_process_explained():
        dist.all_gather(received, padded)
    joined = torch.cat([rows[:size] for rows, size in zip(received, sizes, strict=True)])
    columns = joined.split([column.shape[1] for column in flat], 1)
    return tuple(column.reshape(-1, *like.shape[1:]) for column, like in zip(columns, values, strict=True))


@dataclass(frozen=True)
class BatchShard:
    """The images of a batch that this process computes.

    A batch of fewer images than there are processes is computed whole by each of them. (That is exact but for the
    variance that the encoder's first norm keeps for evaluation, whose n / (n - 1) counts each image once per process.)

    Args:
        positions: contiguous positions of the shard's images in the batch.
        count: number of images of the whole batch.
        weight: weight of the shard's mean in the mean over the batch.
    """

    positions: slice
    count: int
    weight: float

    @classmethod
    def local(cls, count: int) -> "BatchShard":
        """The shard of this process.

        Args:
            count: number of images of the whole batch.
        """
        if count < world_size():
            return cls(slice(0, count), count, 1 / world_size())
        sizes = _sizes(count)
        first, size = sum(sizes[: process_rank()]), sizes[process_rank()]
        return cls(slice(first, first + size), count, size / max(1, count))

    def mean(self, values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """The mean over the batch, from this process's mean over its shard."""
        return all_reduce(values.detach() * self.weight) if world_size() > 1 else values.detach()

    def gather(self, values: Shaped[Tensor, "local ..."]) -> Shaped[Tensor, "count ..."]:
        """The values of all images, in the order of the batch."""
        if self.count < world_size():
            return broadcast(values)
        return values if world_size() == 1 else _all_gather_uneven((values,), _sizes(self.count))[0]


def _sizes(count: int) -> list[int]:
    """Number of rows of each process after ``shard``."""
    size, remainder = divmod(count, world_size())
    return [size + (rank < remainder) for rank in range(world_size())]


def all_reduce_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Sum the gradients of all processes, in one message.

    Args:
        parameters: parameters whose ``grad`` is changed in place; one without a gradient has none in any process.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if world_size() == 1 or not gradients:
        return
    summed = all_reduce(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, total in zip(gradients, summed.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


def mean_over_rows(means: Shaped[Tensor, "..."], rows: int) -> Shaped[Tensor, "..."]:
    """The mean over the rows of all processes, so that batch norms see the whole batch.

    Args:
        means: means over the rows of this process.
        rows: number of rows of this process.
    """
    if world_size() == 1:
        return means
    summed = all_reduce(torch.cat([(means * rows).flatten(), means.new_full((1,), rows)]))
    return (summed[:-1] / summed[-1]).view(means.shape)


@contextmanager
def _lost_process_explained() -> Iterator[None]:
    """Raise an error of torch.distributed as one that names this process and says what to do."""
    try:
        yield
    except RuntimeError as error:
        environment = torchrun_environment()
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        first_line = re.sub(r"^\[[^ ]*\] ", "", first_line)  # gloo begins with the line of its source
        raise LostProcessError(
            f"process {environment.rank + 1} of {environment.size} lost touch with the others ({first_line})",
            "all processes of a job are needed until its end",
            "See the messages of the process that ended first; --resume continues from the last checkpoint",
        ) from error
