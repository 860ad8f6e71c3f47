"""Copies between host and device, new memory, and pinned memory."""

import weakref
from typing import Any

import torch
from torch import Tensor

from pretended_cuda.labels import on_host
from pretended_cuda.machine import MACHINE
from pretended_cuda.memory import on_device
from pretended_cuda.streams import launch, put_off, waited


def copy_(self: Tensor, src: Tensor, non_blocking: bool = False) -> Tensor:
    """aten::copy_ where one of the two is on the device."""
    site = MACHINE.site()
    read, written = ({each.untyped_storage().data_ptr()} if each.is_cuda else set() for each in (src, self))
    launch(read, written, f"copy_ at {site}")
    what = f"copy_ {src.device.type} to {self.device.type}"
    MACHINE.kernels[site, what] += 1
    MACHINE.bytes[site, what] += self.numel() * self.element_size() + src.numel() * src.element_size()
    if MACHINE.recording is not None:
        _record_copy(self, src)
    if not self.is_cuda:
        _copy_to_host(self, src, site, is_late=non_blocking and is_pinned(self))
    elif not src.is_cuda:
        _copy_from_host(self, src, site, non_blocking=non_blocking)
    else:
        on_host(self).copy_(on_host(src))
    return self


def _record_copy(self: Tensor, src: Tensor) -> None:
    """One from device to device is carried out again whenever the graph is replayed."""
    if not (self.is_cuda and src.is_cuda):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing (a copy, pretended)")
    MACHINE.recording.add(lambda: on_host(self).copy_(on_host(src)), [])


def _copy_to_host(self: Tensor, src: Tensor, site: str, *, is_late: bool) -> None:
    if not is_late:
        self.copy_(on_host(src))
        waited("copy to the host", site)
        return
    seen = on_host(src).clone()
    fill_with_garbage(self)
    put_off(lambda: self.copy_(seen))


def _copy_from_host(self: Tensor, src: Tensor, site: str, *, non_blocking: bool) -> None:
    on_host(self).copy_(src)
    if non_blocking and is_pinned(src):
        seen = src.clone()

        def check() -> None:
            if not torch.equal(torch.atleast_1d(seen).view(torch.uint8), torch.atleast_1d(src).view(torch.uint8)):
                MACHINE.complain(f"pinned memory was changed before its copy at {site} was waited for")

        put_off(check)
        return
    MACHINE.host_copies[site, "from memory that is not pinned" if src.numel() > 1 else "one number"] += 1
    if not non_blocking:  # torch copies, and waits for the stream
        waited("copy from the host", site)


def to_copy(
    self: Tensor, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None,
    non_blocking: bool = False, memory_format: Any = None,
) -> Tensor:  # fmt: skip
    """aten::_to_copy of a device tensor (torch's own would ask the driver for pinned memory)."""
    device, dtype = device or self.device, dtype or self.dtype
    keep = memory_format in {None, torch.preserve_format}
    if keep and torch._prims_common.is_non_overlapping_and_dense_or_false(self):
        out = torch.empty_strided(self.size(), self.stride(), dtype=dtype, device=device)
    else:
        out = torch.empty_like(self, dtype=dtype, device=device, memory_format=memory_format or torch.preserve_format)
    if non_blocking and device.type == "cpu":
        _mark_pinned(out)
    return out.copy_(self, non_blocking)


# -- new memory


def empty(
    size: Any, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None,
    memory_format: Any = None,
) -> Tensor:  # fmt: skip
    """aten::empty on the device."""
    made = torch.empty([int(s) for s in size], dtype=dtype, memory_format=memory_format or torch.contiguous_format)
    return on_device(fill_with_garbage(made), MACHINE.existing(device))


def empty_strided(
    size: Any, stride: Any, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
) -> Tensor:
    """aten::empty_strided on the device."""
    made = torch.empty_strided([int(s) for s in size], [int(s) for s in stride], dtype=dtype)
    return on_device(fill_with_garbage(made), MACHINE.existing(device))


def fill_with_garbage(tensor: Tensor) -> Tensor:
    """What was never written: NaN, the largest integer, or True."""
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        return tensor.fill_(float("nan"))
    return tensor.fill_(True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max)


def resize(self: Tensor, size: Any, *, memory_format: Any = None) -> Tensor:
    """aten::resize_ of a device tensor, whose memory grows where it must."""
    shape = tuple(int(extent) for extent in size)
    meta = torch.empty(shape, device="meta")
    strides, count = meta.stride(), meta.numel()
    storage = self.untyped_storage()
    if (self.storage_offset() + count) * self.element_size() <= storage.nbytes():
        return self.as_strided_(shape, strides)
    grown = torch.empty(count, dtype=self.dtype)
    grown[: self.numel()].copy_(on_host(self).reshape(-1)[:count])
    self.data = on_device(grown, self.device.index).as_strided(shape, strides)
    return self


def adopt(out: Tensor, computed: Tensor) -> None:
    """A computed output into the tensor that was given for it."""
    if out.shape != computed.shape:
        resize(out, computed.shape)
    if computed.numel():
        on_host(out).copy_(computed)


# -- pinned memory


def _mark_pinned(tensor: Tensor) -> Tensor:
    storage = tensor.untyped_storage()
    MACHINE.pinned[storage.data_ptr()] = storage.nbytes()
    weakref.finalize(storage, MACHINE.pinned.pop, storage.data_ptr(), None)
    return tensor


def is_pinned(tensor: Tensor, device: object = None) -> bool:
    """aten::is_pinned."""
    return not tensor.is_cuda and tensor.untyped_storage().data_ptr() in MACHINE.pinned


def pin_memory(self: Tensor, device: object = None) -> Tensor:
    """aten::_pin_memory."""
    return _mark_pinned(self.clone(memory_format=torch.contiguous_format))
