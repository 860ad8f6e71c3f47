"""The pretended devices of a process: put in once, before the package under test is imported, and never taken out."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import library as operators

from pretended_cuda import copies, device_rules
from pretended_cuda.engine import install_engine
from pretended_cuda.generators import install_generators
from pretended_cuda.kernels import Kernel
from pretended_cuda.machine import MACHINE
from pretended_cuda.messages import install_messages
from pretended_cuda.torch_cuda import install_torch_cuda

_libraries: list[operators.Library] = []
_SPECIAL: dict[str, Callable[..., Any]] = {
    "copy_": copies.copy_, "_to_copy": copies.to_copy, "empty.memory_format": copies.empty,
    "empty_strided": copies.empty_strided, "resize_": copies.resize,
}  # fmt: skip
_COMPOSITE = {"convolution"}  # its parts are chosen by cuDNN's rules otherwise


def install(devices: int = 1, memory: int = 0, watch: str = "cryoeq/") -> None:
    """Put the pretended devices into this process.

    Args:
        devices: how many.
        memory: bytes of each; 0 for no limit (then 16 GiB are told).
        watch: part of the path of the files whose lines are told.

    Raises:
        RuntimeError: there is a real CUDA device.
    """
    MACHINE.devices, MACHINE.capacity, MACHINE.watch = devices, memory, watch
    if _libraries:
        return
    if torch.cuda.is_available():
        raise RuntimeError("there is a CUDA device: use it")
    torch._C._ensureCUDADeviceGuardSet()
    install_engine()
    install_generators()
    install_torch_cuda()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that are replaced, which is meant
        _install_kernels()
    if torch.distributed.is_available():
        install_messages(_library("c10d"))


def _library(name: str) -> operators.Library:
    _libraries.append(operators.Library(name, "IMPL"))
    return _libraries[-1]


def _install_kernels() -> None:
    checks, known = device_rules.device_checks(), device_rules.cuda_kernels()
    library = _library("aten")
    has_views = torch._C._dispatch_has_kernel_for_dispatch_key("aten::view", "CUDA")
    for name in sorted(known | set(_SPECIAL) | _COMPOSITE):
        base = name.partition(".")[0]
        if base in device_rules.VIEWS:
            if not has_views:
                library.impl(name, _view(_overload(name)), "CUDA")
        elif not any(word in base for word in device_rules.LEFT_OUT):
            function = _SPECIAL.get(name) or _kernel(name, checks.get(name, "same"), name in known | _COMPOSITE)
            library.impl(name, function, "CUDA", allow_override=True)
    library.impl("_pin_memory", copies.pin_memory, "CPU", allow_override=True)
    for key in ("CPU", "CUDA"):
        library.impl("is_pinned", copies.is_pinned, key, allow_override=True)


def _kernel(name: str, check: str, is_known: bool) -> Callable[..., Any]:
    kernel = Kernel(_overload(name), check, is_known=is_known)

    def call(*args: Any, **kwargs: Any) -> Any:  # torch wants a function
        return kernel(*args, **kwargs)

    return call


def _view(op: torch._ops.OpOverload) -> Callable[..., Any]:
    """The CPU's kernel of a view, where torch is built without CUDA's: the two are one function of torch."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return op._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)

    return call


def _overload(name: str) -> torch._ops.OpOverload:
    base, _, overload = name.partition(".")
    found: torch._ops.OpOverload = getattr(getattr(torch.ops.aten, base), overload or "default")
    return found
