"""CUDA graphs: kernels that are captured are carried out again, in the memory that they had then.

As on a GPU nothing that waits and no copy from or to the host can be captured, the outputs of a capture hold nothing
until it is replayed, and a replay reads what its inputs hold by then. A capture counts each kernel, since the host
works as much for it; a replay counts one launch.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from pretended_cuda.copies import fill_with_garbage
from pretended_cuda.labels import on_host
from pretended_cuda.machine import MACHINE
from pretended_cuda.streams import waited


class Graph:
    """torch.cuda.CUDAGraph."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.kernels: list[Callable[[], None]] = []
        self.bytes = 0

    def replay(self) -> None:
        """Carry out all kernels."""
        site = MACHINE.site()
        for kernel in self.kernels:
            kernel()
        MACHINE.kernels[site, "graph"] += 1
        MACHINE.bytes[site, "graph"] += self.bytes


class Capture:
    """torch.cuda.graph: what is launched inside goes into a graph."""

    def __init__(self, graph: Graph, **_: object) -> None:
        self.graph = graph

    def __enter__(self) -> None:
        waited("capture", MACHINE.site())
        if MACHINE.recording is not None:
            raise RuntimeError("CUDA error: a capture is under way (pretended)")
        self.before, MACHINE.recording = MACHINE.bytes.total(), Recording(self.graph)

    def __exit__(self, kind: object, *_: object) -> None:
        recording, MACHINE.recording = MACHINE.recording, None
        self.graph.bytes = MACHINE.bytes.total() - self.before
        if kind is None and recording is not None:
            recording.forget()


class Recording:
    """A capture under way."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.written: list[Tensor] = []

    def add(self, kernel: Callable[[], None], fresh: Sequence[Tensor]) -> None:
        """A kernel, and the results that it made."""
        self.graph.kernels.append(kernel)
        self.written.extend(fresh)

    def forget(self) -> None:
        """Nothing has been carried out yet."""
        for tensor in self.written:
            if tensor.numel():
                fill_with_garbage(on_host(tensor))


def refuse_in_capture(what: str) -> None:
    """Raise where something cannot be captured.

    Raises:
        RuntimeError: as CUDA's, which invalidates the capture.
    """
    if MACHINE.recording is not None:
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what}, pretended)")
