"""Prefetch of batches: read by a thread, and copied to a GPU, while earlier batches are in use."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from cryoeq.domain.particles import ParticleBatch

_AHEAD = 2  # one being copied, one being read


def prefetch(batches: Iterator[ParticleBatch], device: torch.device) -> Generator[ParticleBatch, None, None]:
    """Batches in their order, on a device.

    A thread reads them. For a GPU it also puts them into pinned memory, from where they are copied on a stream of
    their own: neither the GPU nor the caller waits. An error while a batch is read is raised where that batch is
    due. The thread ends with the iteration.

    Args:
        batches: batches on the CPU; used by the thread alone.
        device: device of the batches that are yielded.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def fetch() -> tuple[ParticleBatch | None, torch.cuda.Event | None]:
        batch = next(batches, None)
        if batch is None or stream is None:
            return batch, None
        with torch.cuda.stream(stream):
            pinned = batch.each(lambda values: values.pin_memory())
            return pinned.each(lambda values: values.to(device, non_blocking=True)), stream.record_event()

    with ThreadPoolExecutor(1, "prefetch") as reader:
        try:
            coming = deque(reader.submit(fetch) for _ in range(_AHEAD))
            while True:
                batch, is_copied = coming.popleft().result()
                if batch is None:
                    return
                coming.append(reader.submit(fetch))
                if is_copied is not None:
                    _take_over(batch, is_copied)
                yield batch
        finally:
            reader.shutdown(wait=False, cancel_futures=True)


def _take_over(batch: ParticleBatch, is_copied: torch.cuda.Event) -> None:
    """Let what the GPU does from here on wait for the copy, and keep the copy's memory until all that has been done."""
    stream = torch.cuda.current_stream(batch.images.device)
    stream.wait_event(is_copied)

    def keep(values: torch.Tensor) -> torch.Tensor:
        values.record_stream(stream)
        return values

    batch.each(keep)
