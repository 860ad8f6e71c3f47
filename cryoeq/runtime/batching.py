"""Batches as large as a device takes: side by side on the cores of a CPU, one by one on a GPU.

Within one batch that fits a core's cache, torch's own threads wait for each other more than they compute. Whole batches
do not: each core works on its own, in one thread. A GPU gets batches by its free memory, and smaller ones where that
was too much.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
Rows = TypeVar("Rows", Tensor, range)

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


def logging_interval(device: torch.device) -> int:
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
    portions = MicroBatcher()
    for batch in batches:
        yield from portions.results(function, batch)


@dataclass
class MicroBatcher:
    """How much a device takes at a time: all that it is given, until its memory runs out; from then on half of that.

    Args:
        most: rows at a time; None as long as memory has sufficed.
    """

    most: int | None = None

    def results(self, function: Callable[[Rows], Result], rows: Rows) -> Iterator[Result]:
        """The function's results for one portion of the rows after the other.

        Args:
            function: it may change nothing before it has succeeded.
            rows: what it is given, or part of it.
        """
        waiting = _split(rows, self.most or len(rows))
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
            self.most = (len(waiting[0]) + 1) // 2
            waiting = [part for portion in waiting for part in _split(portion, self.most)]
            torch.cuda.empty_cache()  # the error is gone by now, and with it what its frames held


def _split(rows: Rows, size: int) -> list[Rows]:
    return [rows[first : first + size] for first in range(0, len(rows), max(1, size))]
