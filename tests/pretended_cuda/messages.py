"""Messages between processes: NCCL's place is taken by gloo on the aliases."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import library as operators

from pretended_cuda.labels import on_host
from pretended_cuda.machine import MACHINE


def install_messages(library: operators.Library) -> None:
    """Collectives of CUDA tensors, and groups that ask for NCCL.

    Args:
        library: fragment of c10d that keeps the kernels alive.
    """
    dist = torch.distributed
    for name in torch._C._dispatch_get_registrations_for_dispatch_key("CUDA"):
        space, _, short = name.partition("::")
        if space == "c10d" and "check_for_nan" not in short:
            library.impl(short, _collective(getattr(torch.ops.c10d, short).default), "CUDA", allow_override=True)
    own = dist.init_process_group

    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        if backend == "nccl":
            raise NotImplementedError("A group of NCCL alone, which refuses CPU tensors, is not pretended")
        own("gloo" if "nccl" in (backend or "") else backend, *args, **kwargs)

    dist.init_process_group = init_process_group
    dist.distributed_c10d.init_process_group = init_process_group


def _collective(op: torch._ops.OpOverload) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        MACHINE.kernels[MACHINE.site(), f"c10d::{op._schema.name.partition('::')[2]}"] += 1
        aliases: dict[int, tuple[Tensor, Tensor]] = {}
        found = op(*[_to_host(value, aliases) for value in args])
        return _back(found, {id(host): original for original, host in aliases.values()})

    return call


def _to_host(value: Any, aliases: dict[int, tuple[Tensor, Tensor]]) -> Any:
    if isinstance(value, list | tuple):
        return [_to_host(part, aliases) for part in value]
    if not isinstance(value, Tensor):
        return value
    if not value.is_cuda:
        raise RuntimeError("No backend type associated with device type cpu (a CPU tensor among those for NCCL)")
    if id(value) not in aliases:
        aliases[id(value)] = (value, on_host(value))
    return aliases[id(value)][1]


def _back(value: Any, originals: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return originals.get(id(value), value)
    return type(value)(_back(part, originals) for part in value) if type(value) in {list, tuple} else value
