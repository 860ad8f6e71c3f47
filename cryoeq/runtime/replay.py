"""CUDA graphs: a step of many small kernels, carried out again and again, is launched as one."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

Step = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class _Graph:
    """A captured step.

    Args:
        graph: the graph.
        inputs: what it reads.
        outputs: what it writes.
    """

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def replayed(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)


class Replay:
    """A step that is carried out as it stands on a CPU, and on a GPU as a graph from the third time on.

    The first time tables are made that the step keeps, and plans of transforms; the second time its kernels are
    captured. Where that fails, it is carried out as it stands from then on.

    Args:
        step: a function of a key, of numbers that are tensors on a GPU, and of tensors. It may not wait for the GPU,
            copy from the host or draw random numbers; whatever else it depends on, and all sizes, its key must tell.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._graphs: dict[Hashable, _Graph | None] = {}
        self.failure: str | None = None  # why there are no graphs

    def __call__(self, key: Hashable, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the step returns, in memory of its own."""
        if inputs[0].device.type != "cuda" or self.failure is not None:
            return self._step(key, *inputs)
        if key not in self._graphs:
            self._graphs[key] = None
            return self._step(key, *inputs)
        graph = self._graphs[key] or self._captured(key, inputs)
        if graph is None:
            return self._step(key, *inputs)
        self._graphs[key] = graph
        return graph.replayed(inputs)

    def _captured(self, key: Hashable, inputs: tuple[Tensor, ...]) -> _Graph | None:
        own = tuple(values.clone() for values in inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                outputs = self._step(key, *own)
        except RuntimeError as error:  # too little memory for the graph's own, or a kernel that cannot be captured
            self.failure = (str(error).splitlines() or [type(error).__name__])[0]
            self._graphs.clear()
            return None
        return _Graph(graph, own, outputs)
