"""Memory of the device: what tensors hold, what the allocator keeps, and when it runs out."""

import weakref

import torch
from torch import Tensor

from pretended_cuda.labels import CUDA, relabel
from pretended_cuda.machine import GIB, MACHINE


def on_device(result: Tensor, index: int) -> Tensor:
    """A result of the CPU as a tensor of the device, whose memory it now takes.

    Raises:
        torch.OutOfMemoryError: it has too little.
    """
    if result.is_conj() or result.is_neg():
        result = result.resolve_conj().resolve_neg()
    storage = result.detach().untyped_storage()
    size, pointer = storage.nbytes(), storage.data_ptr()
    rounded = (size + 511) // 512 * 512
    with MACHINE.lock:
        if MACHINE.capacity and MACHINE.used[index] + rounded > MACHINE.capacity:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory (pretended). Tried to allocate {size / 2**20:.2f} MiB. GPU {index} has a total "
                f"capacity of {MACHINE.capacity / GIB:.2f} GiB of which "
                f"{(MACHINE.capacity - MACHINE.used[index]) / GIB:.2f} GiB is free."
            )
        MACHINE.used[index] += rounded
        MACHINE.peak[index] = max(MACHINE.peak[index], MACHINE.used[index])
        MACHINE.reserved[index] = max(MACHINE.reserved[index], MACHINE.used[index])
        MACHINE.made_on[pointer] = MACHINE.thread.stream
    weakref.finalize(storage, _freed, index, rounded, pointer)
    return relabel(result.detach(), CUDA, index)


def _freed(index: int, size: int, pointer: int) -> None:
    with MACHINE.lock:
        MACHINE.used[index] -= size
        if MACHINE.streams > 1 and pointer in MACHINE.made_on:
            _check_users(pointer)
        for table in (MACHINE.writes, MACHINE.reads, MACHINE.made_on, MACHINE.recorded):
            table.pop(pointer, None)


def _check_users(pointer: int) -> None:
    """No other stream may still be at work on memory that is freed, unless ``record_stream`` has named it."""
    made = MACHINE.made_on[pointer]
    last = {stream: number for stream, (number, _) in MACHINE.reads.get(pointer, {}).items()}
    if pointer in MACHINE.writes:
        stream, number, _ = MACHINE.writes[pointer]
        last[stream] = max(number, last.get(stream, 0))
    for user, number in last.items():
        seen = max(MACHINE.clock[made].get(user, 0), MACHINE.host_clock.get(user, 0))
        if user != made and user not in MACHINE.recorded.get(pointer, ()) and seen < number:
            MACHINE.complain(
                f"memory made on stream {made} is freed while stream {user} may use it, without record_stream"
            )


def empty_cache() -> None:
    """torch.cuda.empty_cache: the allocator gives back what no tensor holds."""
    for index in range(MACHINE.devices):
        MACHINE.reserved[index] = MACHINE.used[index]
