"""The state of the pretended machine: its devices, what is counted, what was found wrong."""

import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

Counts = Counter[tuple[str, str]]  # (line of the watched package, what)
GIB = 2**30
_FOLDER = str(Path(__file__).parent)


class PretendedCudaError(RuntimeError):
    """Something that goes wrong on a GPU, with an error or without."""


class _Thread(threading.local):
    """What each thread has of its own: current device and stream, 0 in a new one, as CUDA has it."""

    device = 0
    stream = 0


class Machine:
    """The devices of this process, and what happened on them."""

    def __init__(self) -> None:
        self.devices = 1
        self.capacity = 0  # bytes of each device; 0 for no limit
        self.watch = ""  # part of the path of the files whose lines are told
        self.named: dict[CodeType, str] = {}
        self.thread = _Thread()
        self.lock = threading.RLock()
        self.used: Counter[int] = Counter()  # bytes that tensors hold
        self.reserved: Counter[int] = Counter()  # bytes that the allocator holds, which keeps what tensors free
        self.peak: Counter[int] = Counter()
        self.kernels, self.bytes, self.flops, self.waits, self.host_copies = (Counts() for _ in range(5))
        self.without_kernel: Counter[str] = Counter()
        self.complaints: list[str] = []
        self.generators: list[torch.Generator] = []
        self.cuda_seeds: set[int] = set()
        self.pinned: dict[int, int] = {}  # data pointer of a pinned storage: bytes
        self.recording: Any = None  # graphs.Recording of a capture under way
        # Streams have vector clocks; order only matters once there is more than one stream.
        self.streams = 1
        self.clock: dict[int, dict[int, int]] = {0: {0: 0}}
        self.host_clock: dict[int, int] = {}
        self.writes: dict[int, tuple[int, int, str]] = {}  # data pointer: stream, number, what
        self.reads: dict[int, dict[int, tuple[int, str]]] = defaultdict(dict)
        self.made_on: dict[int, int] = {}
        self.recorded: dict[int, set[int]] = defaultdict(set)
        self.pending: list[tuple[int, int, Callable[[], object]]] = []  # copies under way: stream, number, delivery

    @property
    def limit(self) -> int:
        """Bytes of each device, as told."""
        return self.capacity or 16 * GIB

    def index(self, device: object = None) -> int:
        """Number of a device, the current one by default; it need not exist."""
        if isinstance(device, int):
            found: int | None = device if device >= 0 else None
        else:
            found = None if device is None else torch.device(device).index  # type: ignore[call-overload]
        return self.thread.device if found is None else found

    def existing(self, device: object = None) -> int:
        """Number of a device.

        Raises:
            RuntimeError: there is no such device.
        """
        if (index := self.index(device)) >= self.devices:
            raise RuntimeError("CUDA error: invalid device ordinal (pretended)")
        return index

    def complain(self, message: str) -> None:
        """Note what a GPU would not have told; tests fail in which it was noted."""
        self.complaints.append(message)

    def site(self) -> str:
        """The line of the watched package that is being carried out."""
        frame: FrameType | None = sys._getframe(1)
        outside = None
        while frame is not None:
            code = frame.f_code
            if (name := self.named.get(code)) is None:
                name = self.named[code] = self._watched_name(code.co_filename)
            if name:
                return f"{name}:{frame.f_lineno} {code.co_name}"
            if outside is None and "/torch/" not in code.co_filename and not code.co_filename.startswith(_FOLDER):
                outside = frame
            frame = frame.f_back
        return "autograd thread" if outside is None else f"{Path(outside.f_code.co_filename).name}:{outside.f_lineno}"

    def _watched_name(self, path: str) -> str:
        """Path of a file of the watched package, from its folder on; empty for other files."""
        is_watched = self.watch in path and "site-packages" not in path.partition(self.watch)[0][-40:]
        return path[path.rfind(self.watch) :] if is_watched else ""


MACHINE = Machine()
