"""Batches side by side on the cores of a CPU.

Within one batch that fits a core's cache, torch's own threads wait for each other more than they compute. Whole batches
do not: each core works on its own, in one thread.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def in_parallel(function: Callable[[Tensor], Result], batches: tuple[Tensor, ...]) -> Iterator[Result]:
    """The function's results, batch by batch and in their order; on a CPU as many at a time as torch has threads.

    Args:
        function: of the rows of a batch; it may not change what other batches see.
        batches: rows.
    """
    workers = min(torch.get_num_threads(), len(batches)) if batches[0].device.type == "cpu" else 1
    if workers == 1:
        yield from map(function, batches)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # of the matrix library for all threads; of OpenMP for this one, and below for each
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(function, batches)
    finally:
        torch.set_num_threads(before)
