"""The functions of torch.cuda, as they are with a driver; storages on the device."""

from types import SimpleNamespace
from typing import Any

import torch

from pretended_cuda import streams
from pretended_cuda.graphs import Capture, Graph
from pretended_cuda.machine import MACHINE
from pretended_cuda.memory import empty_cache, on_device

_NAME = "Pretended GPU"
_MEMORY = (
    "mem_get_info", "memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved",
    "reset_peak_memory_stats", "empty_cache",
)  # fmt: skip
_RANDOM = ("get_rng_state", "set_rng_state", "manual_seed", "manual_seed_all")


def install_torch_cuda() -> None:
    """Put them in the place of torch's."""
    torch._C._set_cudnn_enabled(False)  # so that no operator of cuDNN is called
    functions = _device_functions() | _memory_functions() | _random_functions() | _stream_functions()
    for name, value in functions.items():
        setattr(torch.cuda, name, value)
    for module, names in ((torch.cuda.memory, _MEMORY), (torch.cuda.random, _RANDOM)):
        for name in names:
            setattr(module, name, functions[name])
    torch.Tensor.record_stream = streams.record_stream  # type: ignore[assignment]
    _install_storages()


def _device_functions() -> dict[str, Any]:
    return {
        "_lazy_init": lambda: None, "init": lambda: None, "is_initialized": lambda: True, "is_available": lambda: True,
        "_is_in_bad_fork": lambda: False, "_lazy_call": lambda function, **_: function(), "ipc_collect": lambda: None,
        "device_count": lambda: MACHINE.devices, "current_device": lambda: MACHINE.thread.device,
        "set_device": _set_device, "device": _DeviceContext, "_exchange_device": _exchange,
        "_maybe_exchange_device": _exchange, "get_device_name": lambda device=None: _NAME,
        "get_device_capability": lambda device=None: (9, 0), "get_device_properties": _properties,
        "is_bf16_supported": lambda *_, **__: True, "is_bf16_emulation_supported": lambda: True,
        "_sleep": lambda cycles: None,
    }  # fmt: skip


def _memory_functions() -> dict[str, Any]:
    index = MACHINE.index

    def reset_peak(device: object = None) -> None:
        MACHINE.peak[index(device)] = MACHINE.used[index(device)]

    return {
        "mem_get_info": lambda device=None: (MACHINE.limit - MACHINE.reserved[index(device)], MACHINE.limit),
        "memory_allocated": lambda device=None: MACHINE.used[index(device)],
        "memory_reserved": lambda device=None: MACHINE.reserved[index(device)],
        "max_memory_allocated": lambda device=None: MACHINE.peak[index(device)],
        "max_memory_reserved": lambda device=None: MACHINE.peak[index(device)],
        "reset_peak_memory_stats": reset_peak, "empty_cache": empty_cache,
    }  # fmt: skip


def _random_functions() -> dict[str, Any]:
    def of(device: object) -> torch.Generator:
        return MACHINE.generators[MACHINE.index(device)]

    return {
        "get_rng_state": lambda device="cuda": of(device).get_state(),
        "set_rng_state": lambda state, device="cuda": of(device).set_state(state),
        "manual_seed": lambda seed: of(None).manual_seed(seed),
        "manual_seed_all": lambda seed: [generator.manual_seed(seed) for generator in MACHINE.generators],
    }


def _stream_functions() -> dict[str, Any]:
    return {
        "synchronize": streams.synchronize, "Stream": streams.Stream, "Event": streams.Event,
        "stream": streams.stream_context, "current_stream": streams.current_stream,
        "default_stream": streams.default_stream, "set_stream": streams.set_stream,
        "CUDAGraph": Graph, "graph": Capture, "is_current_stream_capturing": lambda: MACHINE.recording is not None,
    }  # fmt: skip


def _properties(device: object = None) -> SimpleNamespace:
    return SimpleNamespace(
        name=_NAME, major=9, minor=0, total_memory=MACHINE.limit, multi_processor_count=132, warp_size=32,
        max_threads_per_multi_processor=2048, gcnArchName="", is_integrated=0, is_multi_gpu_board=0,
        uuid=str(MACHINE.index(device)),
    )  # fmt: skip


def _set_device(device: object) -> None:
    MACHINE.thread.device = MACHINE.existing(device)


def _exchange(index: int | None) -> int:
    before = MACHINE.thread.device
    if index is not None and index >= 0:
        MACHINE.thread.device = index
    return before


class _DeviceContext:
    """torch.cuda.device."""

    def __init__(self, device: object) -> None:
        self.index = MACHINE.index(device)

    def __enter__(self) -> None:
        self.before = _exchange(self.index)

    def __exit__(self, *_: object) -> None:
        MACHINE.thread.device = self.before


def _install_storages() -> None:
    """copy.deepcopy and torch.load make storages, and move them, by themselves."""
    kind: Any = torch.UntypedStorage
    own_to, own_new = kind.to, kind.__new__

    def new(cls: Any, *args: Any, **kwargs: Any) -> Any:
        place = torch.device(kwargs.get("device") or "cpu")
        if place.type != "cuda":
            return own_new(cls, *args, **kwargs)
        size = args[0] if args else kwargs.get("size", 0)
        make = torch.tensor if isinstance(size, list | tuple) else torch.empty
        return on_device(make(size, dtype=torch.uint8), MACHINE.existing(place)).untyped_storage()

    def to(self: Any, *, device: Any, non_blocking: bool = False) -> Any:
        return (
            _moved(self, torch.device(device)) if torch.device(device).type == "cuda" else own_to(self, device=device)
        )

    kind.__new__, kind.to = new, to
    kind.cuda = lambda self, device=None, non_blocking=False: _moved(self, torch.device("cuda", MACHINE.index(device)))


def _moved(storage: torch.UntypedStorage, device: torch.device) -> torch.UntypedStorage:
    values = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    return values.to(device).untyped_storage()
