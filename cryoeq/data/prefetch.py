"""Prefetch of batches: read by threads, and copied to a GPU, while earlier batches are in use."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.particles import ParticleBatch

_AHEAD = 2  # one being copied, one being read
_MAX_READERS = 8  # threads that read for one GPU


def prefetch(batches: Iterator[ParticleBatch], device: torch.device) -> Generator[ParticleBatch, None, None]:
    """Batches in their order, on a device.

    A thread reads them. For a GPU it also puts them into pinned memory, from where they are copied on a stream of
    their own: neither the GPU nor the caller waits. An error while a batch is read is raised where that batch is
    due. The thread ends with the iteration.

    Args:
        batches: batches on the CPU; used by the thread alone.
        device: device of the batches that are yielded.
    """
    read = _copying(device)(lambda: next(batches, None))
    yield from _in_order(iter(lambda: read, None), readers=1)


def read_batches(
    dataset: ParticleDataset, batch_size: int, device: torch.device, rows: Int[Tensor, " rows"] | None = None
) -> Generator[ParticleBatch, None, None]:
    """Preprocessed batches on a device, as ``ParticleDataset.batches`` has them.

    For a GPU several threads read the images as they are stored, and the GPU crops and normalises them: one thread that
    does both would keep it waiting.

    Args:
        dataset: particles.
        batch_size: particles per batch.
        device: device of the batches that are yielded.
        rows: rows of the particle table; None for all, in the order of the file.
    """
    if device.type != "cuda":
        yield from dataset.batches(batch_size, rows)
        return
    copying = _copying(device)
    chunks = (torch.arange(len(dataset)) if rows is None else rows).split(batch_size)
    reads = (copying(partial(dataset.stored, chunk)) for chunk in chunks)
    for batch in _in_order(reads, readers=min(_MAX_READERS, torch.get_num_threads())):
        yield dataset.preprocessed(batch)


Read = Callable[[], tuple[ParticleBatch | None, torch.cuda.Event | None]]


def _copying(device: torch.device) -> Callable[[Callable[[], ParticleBatch | None]], Read]:
    """Makes of what reads a batch what brings it on its way to the device too, with the event of its arrival."""
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def copied(read: Callable[[], ParticleBatch | None]) -> tuple[ParticleBatch | None, torch.cuda.Event | None]:
        batch = read()
        if batch is None or stream is None:
            return batch, None
        with torch.cuda.stream(stream):
            pinned = batch.each(lambda values: values.pin_memory())
            return pinned.each(lambda values: values.to(device, non_blocking=True)), stream.record_event()

    return lambda read: partial(copied, read)


def _in_order(reads: Iterator[Read], *, readers: int) -> Generator[ParticleBatch, None, None]:
    """The batches that threads read, in their order, up to the end of the reads or the first that gives none."""
    with ThreadPoolExecutor(readers, "prefetch") as pool:
        try:
            coming = deque(pool.submit(read) for _, read in zip(range(readers + _AHEAD - 1), reads, strict=False))
            while coming:
                batch, is_copied = coming.popleft().result()
                if batch is None:
                    return
                if (read := next(reads, None)) is not None:
                    coming.append(pool.submit(read))
                if is_copied is not None:
                    _take_over(batch, is_copied)
                yield batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _take_over(batch: ParticleBatch, is_copied: torch.cuda.Event) -> None:
    """Let what the GPU does from here on wait for the copy, and keep the copy's memory until all that has been done."""
    stream = torch.cuda.current_stream(batch.images.device)
    stream.wait_event(is_copied)

    def keep(values: torch.Tensor) -> torch.Tensor:
        values.record_stream(stream)
        return values

    batch.each(keep)
