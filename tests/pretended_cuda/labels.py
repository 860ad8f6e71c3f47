"""One memory, called the CPU's or CUDA's."""

import ctypes

import torch
from torch import Tensor

CPU, CUDA = 1, 2  # DLDeviceType

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def relabel(tensor: Tensor, kind: int, index: int) -> Tensor:
    """The same memory as a tensor of another device, which keeps the first alive."""
    capsule = torch._C._to_dlpack(tensor)
    place = _pointer(capsule, b"dltensor")  # struct DLManagedTensor {void *data; int32 device_type, device_id; ...}
    ctypes.c_int32.from_address(place + 8).value = kind
    ctypes.c_int32.from_address(place + 12).value = index
    return torch._C._from_dlpack(capsule)


def on_host(tensor: Tensor) -> Tensor:
    """The CPU's alias of a device tensor; conjugate and negative bits, which DLPack does not know, are kept."""
    if tensor.is_conj():
        return on_host(tensor.conj()).conj()
    if tensor.is_neg():
        return torch._neg_view(on_host(torch._neg_view(tensor)))
    return relabel(tensor, CPU, 0)
