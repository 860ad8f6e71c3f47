"""Random number generators: one of the device draws other numbers than the CPU's of the same seed, as a GPU's does."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pretended_cuda.machine import MACHINE

_MASK = 0x5DEECE66D  # other numbers from the same seed
_Base = torch._C.Generator
_DRAWING_FUNCTIONS = (
    "rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli", "poisson", "rand_like", "randn_like",
    "randint_like",
)  # fmt: skip
_DRAWING_METHODS = (
    "normal_", "uniform_", "random_", "bernoulli_", "exponential_", "cauchy_", "log_normal_", "geometric_",
)  # fmt: skip


class _GeneratorKind(type(torch.Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _Base)


class Generator(_Base, metaclass=_GeneratorKind):
    """torch.Generator."""

    _place: torch.device
    _mask: int

    def __new__(cls, device: object = "cpu") -> "Generator":
        self = _Base.__new__(cls, "cpu")  # type: ignore[call-arg]
        place = torch.device(device)  # type: ignore[call-overload]
        self._place = torch.device("cuda", MACHINE.index(place)) if place.type == "cuda" else place
        self._mask = _MASK if place.type == "cuda" else 0
        if self._mask:
            self.manual_seed(_Base.initial_seed(self))
        return self

    def __init__(self, device: object = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._place

    def manual_seed(self, seed: int) -> "Generator":
        super().manual_seed(seed ^ self._mask)
        if self._mask:
            MACHINE.cuda_seeds.add(super().initial_seed())
        return self

    def initial_seed(self) -> int:
        return super().initial_seed() ^ self._mask


def check_generator(generator: torch.Generator, device: str) -> None:
    """Refuse a generator of another kind of device, in torch's words.

    Raises:
        RuntimeError: it is one.
    """
    if type(generator) is Generator:
        found = generator.device.type
    else:  # torch hands a kernel another Python object for the same generator: it is known by its seed
        found = "cuda" if generator.initial_seed() in MACHINE.cuda_seeds else "cpu"
    if found != device:
        raise RuntimeError(f"Expected a '{device}' device type for generator but found '{found}'")


def install_generators() -> None:
    """A default generator for each device; the CPU's functions refuse a generator of a device."""
    torch.Generator = Generator  # type: ignore[misc]
    for index in range(8):
        MACHINE.generators.append(Generator(torch.device("cuda", index)).manual_seed(0))
    torch.cuda.default_generators = tuple(MACHINE.generators)  # type: ignore[assignment]
    for name in _DRAWING_FUNCTIONS:
        setattr(torch, name, _guarded(getattr(torch, name)))
    for name in _DRAWING_METHODS:
        setattr(Tensor, name, _guarded(getattr(Tensor, name)))


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("generator") is not None:
            given = kwargs.get("out") if kwargs.get("out") is not None else next(iter(args), None)
            place = given.device if isinstance(given, Tensor) else kwargs.get("device") or torch.get_default_device()
            check_generator(kwargs["generator"], torch.device(kwargs.get("device") or place).type)
        return function(*args, **kwargs)

    return call
