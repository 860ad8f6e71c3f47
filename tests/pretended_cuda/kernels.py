"""What takes the place of CUDA kernels: rules, counts, and the CPU's kernel on aliases of the arguments."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pretended_cuda import device_rules
from pretended_cuda.copies import adopt
from pretended_cuda.generators import check_generator
from pretended_cuda.graphs import refuse_in_capture
from pretended_cuda.labels import on_host
from pretended_cuda.machine import MACHINE, PretendedCudaError
from pretended_cuda.memory import on_device
from pretended_cuda.streams import launch, waited

_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "mv", "dot", "convolution"}
# Of the tensor that these read from or add to, by index, no more is touched than the others have.
_READ_BY_INDEX, _WRITTEN_BY_INDEX = {"index", "index_select", "gather", "take"}, {"scatter_add_", "index_add_"}
_NUMBERS = {bool, int, float, complex}
_SCALARS_TAKEN = {"fill_", "where"}  # beside what TensorIterator takes


class Kernel:
    """One operator's CUDA kernel.

    Args:
        op: the operator.
        check: rule of its devices (``device_rules.device_checks``).
        is_known: whether there is such a kernel.
    """

    def __init__(self, op: torch._ops.OpOverload, check: str, *, is_known: bool) -> None:
        self.op, self.check, self.is_known = op, check, is_known
        schema = op._schema
        self.name = schema.name.partition("::")[2]
        self.label = self.name + (f".{schema.overload_name}" if schema.overload_name else "")
        self.arguments = schema.arguments
        self.position = {argument.name: place for place, argument in enumerate(self.arguments)}
        self.is_written = [_is_written(argument) for argument in self.arguments]
        self.returns = [self._returned_argument(value) for value in schema.returns]
        self.is_out = any(_is_written(argument) and argument.is_out for argument in self.arguments)
        self.is_index = self.name in device_rules.INDEXING
        self.tensors = [
            place for place, argument in enumerate(self.arguments)
            if str(argument.type) in {"Tensor", "Optional[Tensor]"}
        ]  # fmt: skip

    def _returned_argument(self, value: Any) -> int | None:
        """Which argument is returned, where it is one that was written to."""
        if not _is_written(value):
            return None
        names = value.alias_info.before_set
        return next(
            place for place, argument in enumerate(self.arguments)
            if argument.alias_info and argument.alias_info.before_set == names
        )  # fmt: skip

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        values: list[Any] = [*args, *[None] * (len(self.arguments) - len(args))]
        given = [True] * len(args) + [False] * (len(self.arguments) - len(args))
        for name, value in kwargs.items():
            values[self.position[name]], given[self.position[name]] = value, True
        site = MACHINE.site()
        device = self._checked_device(values, site)
        if self._waits(values):
            refuse_in_capture(self.label)
            waited(self.label, site)
        if not self.is_known:
            MACHINE.without_kernel[str(self.op)] += 1
        hosts = self._hosts(values, given, device)
        fresh = self._fresh_outs(values, hosts) if self.is_out else []
        found = self._carry_out(values, hosts, given)
        for out, computed in fresh:
            adopt(out, computed)
        results = self._results(found, values, device)
        self._count(values, results, site)
        if MACHINE.recording is not None:
            self._record(values, given, results, device)
        return results

    # -- graphs

    def _record(self, values: list[Any], given: list[bool], results: Any, device: int) -> None:
        """Carry it out again whenever the graph is replayed, into the memory of these results."""
        fresh = self._fresh(results)

        def again() -> None:
            hosts = self._hosts(values, given, device)
            outs = self._fresh_outs(values, hosts) if self.is_out else []
            found = self._carry_out(values, hosts, given)
            for out, grown in outs:
                adopt(out, grown)
            for own, computed in zip(fresh, self._fresh(found), strict=True):
                on_host(own).copy_(computed)

        MACHINE.recording.add(again, fresh)

    def _fresh(self, results: Any) -> list[Tensor]:
        """The results that are no arguments."""
        parts = results if len(self.returns) > 1 else [results] if self.returns else []
        chosen = (part for part, place in zip(parts, self.returns, strict=True) if place is None)
        return [tensor for part in chosen for tensor in _tensors(part)]

    # -- rules

    def _checked_device(self, values: Sequence[Any], site: str) -> int:
        """The device of the arguments, by the operator's own rule."""
        common: int | None = None
        loose = []
        for place, value in enumerate(values):
            if isinstance(value, torch._C.Generator):
                check_generator(value, "cuda")
            elif type(value) is torch.device and value.type == "cuda":
                common = MACHINE.existing(value)
            for tensor in _tensors(value):
                if tensor.is_cuda:
                    common = self._same(tensor.device, common, place)
                else:
                    loose.append((place, tensor))
        for place, tensor in loose:
            if not self._takes(place, tensor, site):
                raise self._mismatch(tensor.device, common or 0, place)
        return MACHINE.thread.device if common is None else common

    def _same(self, device: torch.device, common: int | None, place: int) -> int:
        if common in {None, device.index}:
            return device.index
        if self.name not in device_rules.ANY_DEVICE:
            raise self._mismatch(device, common or 0, place)
        return common or 0

    def _takes(self, place: int, tensor: Tensor, site: str) -> bool:
        """Whether an argument may be on the CPU."""
        if self.name in device_rules.ANY_DEVICE:
            return True
        if self.is_index and self.arguments[place].name == "indices":
            MACHINE.host_copies[site, f"index on the {tensor.device.type} in {self.label}"] += 1
            return True
        is_free = self.check == "iterator" or self.is_index or self.name in _SCALARS_TAKEN
        return tensor.dim() == 0 and not self.is_written[place] and is_free

    def _mismatch(self, one: torch.device, other: int, place: int) -> RuntimeError:
        return RuntimeError(
            f"Expected all tensors to be on the same device, but got {self.arguments[place].name} is on {one}, "
            f"different from other tensors on cuda:{other} (when checking argument in method wrapper_CUDA_"
            f"{self.label.replace('.', '_')})"
        )

    def _waits(self, values: Sequence[Any]) -> bool:
        if self.is_index:
            return any(index is not None and index.dtype in {torch.bool, torch.uint8} for index in values[1])
        if self.name == "repeat_interleave":
            return values[-1] is None
        return self.name in device_rules.WAITING

    # -- the CPU's kernel

    def _hosts(self, values: Sequence[Any], given: list[bool], device: int) -> list[Any]:
        """The arguments of the CPU's kernel; ``given`` is changed where one is added."""
        aliases: dict[int, Tensor] = {}
        hosts = [_alias(value, aliases) for value in values]
        for place, argument in enumerate(self.arguments):
            if argument.name == "device" and given[place]:
                hosts[place] = torch.device("cpu")
            elif argument.name == "pin_memory" and given[place]:
                hosts[place] = None
            elif argument.name == "generator" and values[place] is None:
                hosts[place], given[place] = MACHINE.generators[device], True
        return hosts

    def _carry_out(self, values: Sequence[Any], hosts: Sequence[Any], given: Sequence[bool]) -> Any:
        last = max((place for place, is_given in enumerate(given) if is_given), default=-1)
        positional, named = [], {}
        for place, argument in enumerate(self.arguments[: last + 1]):
            if not argument.kwarg_only:
                positional.append(hosts[place] if given[place] else argument.default_value)
            elif given[place]:
                named[argument.name] = hosts[place]
        # A number that C++ has wrapped as a tensor comes here as a number: the overload for numbers takes it.
        is_number = any(type(values[place]) in _NUMBERS for place in self.tensors)
        try:
            return (self.op.overloadpacket if is_number else self.op)(*positional, **named)
        except NotImplementedError as error:
            raise PretendedCudaError(f"no CPU kernel stands in for {self.op}: {str(error).splitlines()[0]}") from error

    def _fresh_outs(self, values: Sequence[Any], hosts: list[Any]) -> list[tuple[Tensor, Tensor]]:
        """Outputs that an operator may resize are computed beside them: an alias cannot grow."""
        fresh = []
        for place, is_written in enumerate(self.is_written):
            if is_written and isinstance(values[place], Tensor):
                hosts[place] = torch.empty(0, dtype=values[place].dtype)
                fresh.append((values[place], hosts[place]))
        return fresh

    def _results(self, found: Any, values: Sequence[Any], device: int) -> Any:
        if len(self.returns) > 1:
            pairs = zip(found, self.returns, strict=True)
            return tuple(self._result(part, place, values, device) for part, place in pairs)
        return self._result(found, self.returns[0], values, device) if self.returns else None

    @staticmethod
    def _result(found: Any, place: int | None, values: Sequence[Any], device: int) -> Any:
        if place is not None:
            return values[place]
        if isinstance(found, list | tuple):
            return [on_device(part, device) if isinstance(part, Tensor) else part for part in found]
        return on_device(found, device) if isinstance(found, Tensor) else found

    # -- figures

    def _count(self, values: Sequence[Any], results: Any, site: str) -> None:
        key = site, self.label
        MACHINE.kernels[key] += 1
        parts = [part for value in (*values, results) for part in _tensors(value) if part.is_cuda]
        most = _numbers_touched(self.name, values, results)
        MACHINE.bytes[key] += sum(min(part.numel(), most) * part.element_size() for part in parts)
        if self.name in _PRODUCTS:
            MACHINE.flops[key] += _flops(self.name, values, results)
        if MACHINE.streams > 1:
            self._launch(values, results, site)

    def _launch(self, values: Sequence[Any], results: Any, site: str) -> None:
        read, written = set[int](), set[int]()
        for place, value in enumerate([*values, results]):
            is_out = place == len(values) or self.is_written[place]
            pointers = (part.untyped_storage().data_ptr() for part in _tensors(value) if part.is_cuda)
            (written if is_out else read).update(pointers)
        launch(read, written, f"{self.label} at {site}")


def _numbers_touched(name: str, values: Sequence[Any], results: Any) -> int:
    """Most numbers of one tensor that an operator touches."""
    if name in _READ_BY_INDEX:
        return int(results.numel())
    return int(values[3].numel()) if name in _WRITTEN_BY_INDEX else sys.maxsize


def _is_written(argument: Any) -> bool:
    return bool(argument.alias_info and argument.alias_info.is_write)


def _tensors(value: Any) -> Sequence[Tensor]:
    if isinstance(value, Tensor):
        return (value,)
    return [part for part in value if isinstance(part, Tensor)] if isinstance(value, list | tuple) else ()


def _alias(value: Any, aliases: dict[int, Tensor]) -> Any:
    """The CPU's alias of an argument; of a tensor that is given twice, the same one."""
    if isinstance(value, Tensor):
        if value.is_cuda and id(value) not in aliases:
            aliases[id(value)] = on_host(value)
        return aliases[id(value)] if value.is_cuda else value
    if isinstance(value, list | tuple) and any(isinstance(part, Tensor) for part in value):
        return [_alias(part, aliases) for part in value]
    return value


def _flops(name: str, values: Sequence[Any], results: Any) -> int:
    """Of matrix products and convolutions; the others are bound by memory."""
    if name == "convolution":
        return int(2 * results.numel() * values[1][0].numel())
    first = values[1] if name in {"addmm", "baddbmm"} else values[0]
    return int(2 * results.numel() * first.shape[-1] * (4 if results.is_complex() else 1))
