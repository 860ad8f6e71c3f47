"""Batch sizes and micro-batches: batches side by side on the cores of a CPU, one by one on a GPU.

Within one batch that fits a core's cache, torch's own threads wait for each other more than they compute. Whole batches
do not: each core works on one of them, in one thread. A GPU gets batches by its free memory, and smaller ones where
that was too much.
"""

import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
Rows = TypeVar("Rows", Tensor, range)

_BYTES_PER_NUMBER = 32  # of free memory, for each number of a batch: float32, and intermediate results
_MIN_NUMBERS, _MAX_NUMBERS = 2**21, 2**30
_STEPS_ON_GPU = 16
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 2**23  # malloc.h


def numbers_at_a_time(device: torch.device, on_cpu: int, most: int | None = None) -> int:
    """Number of tensor elements that a batch may have.

    Args:
        device: device of the computation; on a GPU its free memory decides.
        on_cpu: number that suits the cache of a CPU core.
        most: number that a GPU gets at most; None for the usual one.
    """
    if device.type != "cuda":
        return on_cpu
    most = _MAX_NUMBERS if most is None else most
    # In a graph: what has just been carried out with the memory that was there.
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        return most
    free, _ = torch.cuda.mem_get_info(device)  # what torch's allocator holds and no tensor uses is not among it
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(most, max(_MIN_NUMBERS, free // _BYTES_PER_NUMBER))


@cache
def return_large_arrays() -> None:
    """Give the memory of arrays of 8 MiB and more back to the system whenever they are freed, from now on.

    The C library keeps arrays of up to 32 MiB. Where they have another size each time, they do not fit into what others
    left, and a process grows to several times what it holds (to 4 GB in the place of 0.7: 400 particles of 32 px,
    offsets of 60 Å). A process that does not need it takes a tenth longer with it. Without glibc nothing is done.
    """
    if hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def logging_interval(device: torch.device) -> int:
    """Steps between two readings of a training's metrics: to read one, a GPU must have finished its queue."""
    return _STEPS_ON_GPU if device.type == "cuda" else 1


def in_parallel(function: Callable[[Tensor], Result], batches: tuple[Tensor, ...]) -> Iterator[Result]:
    """The function's results, batch by batch and in their order; on a CPU one batch per torch thread at a time.

    A batch for which a GPU has too little memory is halved, and so are those that follow.

    Args:
        function: function of the rows of a batch, without side effects on other batches.
        batches: rows of each batch.
    """
    if not batches:
        return
    workers = min(torch.get_num_threads(), len(batches)) if batches[0].device.type == "cpu" else 1
    if workers == 1:
        yield from _halving(function, batches)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # of the matrix library for all threads; of OpenMP for this one, and below for each
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(function, batches)
    finally:
        torch.set_num_threads(before)


def _halving(function: Callable[[Tensor], Result], batches: tuple[Tensor, ...]) -> Iterator[Result]:
    micro_batcher = MicroBatcher()
    for batch in batches:
        yield from micro_batcher.results(function, batch)


@dataclass
class MicroBatcher:
    """Splits batches into micro-batches: whole ones until memory runs out, halves from then on.

    Args:
        max_rows: rows of a micro-batch; None as long as memory has sufficed.
    """

    max_rows: int | None = None

    def results(self, function: Callable[[Rows], Result], rows: Rows) -> Iterator[Result]:
        """The function's results for one micro-batch after the other.

        Args:
            function: function of the rows of a micro-batch, without side effects where memory runs out in it.
            rows: rows of the whole batch.
        """
        waiting = _split(rows, self.max_rows or len(rows))
        while waiting:
            try:
                result = function(waiting[0])
            except torch.OutOfMemoryError:
                if len(waiting[0]) == 1:
                    raise
            else:
                del waiting[0]
                yield result
                continue
            self.max_rows = (len(waiting[0]) + 1) // 2
            waiting = [half for micro_batch in waiting for half in _split(micro_batch, self.max_rows)]
            torch.cuda.empty_cache()  # the error is gone by now, and with it what its frames held


def _split(rows: Rows, size: int) -> list[Rows]:
    return [rows[first : first + size] for first in range(0, len(rows), max(1, size))]
