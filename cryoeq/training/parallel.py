"""Batches as large as a device takes: side by side on the cores of a CPU, one by one on a GPU.

Within one batch that fits a core's cache, torch's own threads wait for each other more than they compute. Whole batches
do not: each core works on its own, in one thread. A GPU gets batches by its free memory, and smaller ones where that
was too much.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

_SHARE_OF_MEMORY = 32  # bytes of free memory for each number of a batch: float32, and what is made on the way
_LEAST, _MOST = 2**21, 2**30
_STEPS_ON_GPU = 16


def numbers_at_a_time(device: torch.device, on_cpu: int) -> int:
    """How many numbers a batch may be made of.

    Args:
        device: of the computation; a GPU is asked for its free memory.
        on_cpu: what suits a processor's cache.
    """
    if device.type != "cuda":
        return on_cpu
    free, _ = torch.cuda.mem_get_info(device)
    return min(_MOST, max(_LEAST, free // _SHARE_OF_MEMORY))


def steps_per_reading(device: torch.device) -> int:
    """After how many steps the figures of a training are read: to be read, a GPU must have done all it was told."""
    return _STEPS_ON_GPU if device.type == "cuda" else 1


def in_parallel(function: Callable[[Tensor], Result], batches: tuple[Tensor, ...]) -> Iterator[Result]:
    """The function's results, batch by batch and in their order; on a CPU as many at a time as torch has threads.

    A batch for which a GPU has too little memory is halved, and so are those that follow.

    Args:
        function: of the rows of a batch; it may not change what other batches see.
        batches: rows.
    """
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
    largest = max(1, len(batches[0]))
    for batch in batches:
        waiting = [*batch.split(largest)]
        while waiting:
            try:
                result = function(waiting[0])
            except torch.OutOfMemoryError:
                if len(waiting[0]) == 1:
                    raise
                largest = (len(waiting[0]) + 1) // 2
                waiting = [part for rows in waiting for part in rows.split(largest)]
                torch.cuda.empty_cache()
                continue
            del waiting[0]
            yield result
