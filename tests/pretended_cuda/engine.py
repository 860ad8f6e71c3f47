"""Devices that are there and in use, each with its default stream, for torch's C++ code.

torch's autograd engine asks CUDA's hooks and its device guard, in C++, how many devices there are, whether they are in
use, and for their streams. There is no way to answer from Python but through the object's own table of virtual
functions, whose places are read from torch's headers, which come with its wheel (Itanium C++ ABI). Where torch is
built for the CPU alone there is no guard: the CPU's, with other answers, takes its place.
"""

import atexit
import ctypes
import mmap
import platform
import re
from pathlib import Path
from typing import Any

import torch

from pretended_cuda.machine import MACHINE

_HOOKS = "ATen/detail/AcceleratorHooksInterface.h"
_GUARD = "c10/core/impl/DeviceGuardImplInterface.h"
_MOST_DEVICES = 8
_CUDA = 1  # c10::DeviceType
_POINTER = ctypes.sizeof(ctypes.c_void_p)
_kept: list[object] = []  # C++ holds them until the process ends


class _Table:
    """The table of virtual functions of one of torch's C++ objects, of which some are replaced.

    Args:
        place: address of the object.
        header: file that declares them.
        most: number of functions to copy, no fewer than the object has.
    """

    def __init__(self, place: int, header: str, most: int) -> None:
        self.slots = _slots(header)
        self.place, self.old = place, ctypes.c_void_p.from_address(place).value or 0
        kind = ctypes.c_void_p * (most + 2)  # two entries before the first function
        self.table = kind.from_buffer_copy(kind.from_address(self.old - 2 * _POINTER))
        _kept.append(self)

    def answer(self, name: str, function: Any) -> None:
        """Let a C function answer."""
        _kept.append(function)
        self.table[self.slots[name] + 2] = ctypes.cast(function, ctypes.c_void_p).value

    def set(self) -> None:
        """Use it until Python ends: C++ outlives it, and must not call it then."""
        ctypes.c_void_p.from_address(self.place).value = ctypes.addressof(self.table) + 2 * _POINTER
        atexit.register(self.unset)

    def unset(self) -> None:
        """Give the object its own table back."""
        ctypes.c_void_p.from_address(self.place).value = self.old


def _slots(header: str) -> dict[str, int]:
    """Numbers of the virtual functions of the interface that a header declares."""
    text = (Path(torch.__file__).parent / "include" / header).read_text(encoding="utf-8")
    text = re.sub(r"//.*", "", text)
    start = re.search(r"struct [A-Z0-9_]+ \w+Interface\b", text)
    if start is None:
        raise RuntimeError(f"{header} of torch {torch.__version__} declares no interface")
    body = text[start.start() :].partition("\n};")[0]
    slots: dict[str, int] = {}
    number = 0
    for match in re.finditer(r"\bvirtual\s+([^;{]*?)(~?\w+)\s*\(", body):
        slots.setdefault(match[2], number)
        number += 2 if match[2].startswith("~") else 1
    return slots


def _machine_code() -> tuple[int, int]:
    """Addresses of two functions that return their argument: as a stream with number 0, and as given.

    A ``c10::Stream`` is its device and its number, in two registers, which ctypes cannot return.
    """
    code = {
        "x86_64": (bytes.fromhex("4889f031d2c3"), bytes.fromhex("4889f0c3")),  # mov rax, rsi; xor edx, edx; ret
        "aarch64": (bytes.fromhex("e00301aa010080d2c0035fd6"), bytes.fromhex("e00301aae10302aac0035fd6")),
    }[platform.machine()]
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page[: len(code[0])] = code[0]
    page[64 : 64 + len(code[1])] = code[1]
    _kept.append(page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return start, start + 64


def install_engine() -> None:
    """Let torch's C++ code see devices."""
    folder = Path(torch.__file__).parent / "lib"
    hooks = ctypes.CDLL(str(folder / "libtorch_cpu.so"))._ZN2at6detail12getCUDAHooksEv
    hooks.restype = ctypes.c_void_p
    count = ctypes.CFUNCTYPE(ctypes.c_int8, ctypes.c_void_p)(lambda *_: _MOST_DEVICES)
    yes = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int8)(lambda *_: True)
    table = _Table(hooks(), _HOOKS, 160)
    for name in ("hasPrimaryContext", "isBuilt", "isAvailable"):
        table.answer(name, yes)
    table.answer("deviceCount", count)
    table.set()
    registry = ctypes.CDLL(str(folder / "libc10.so"))
    first = ctypes.c_void_p.in_dll(registry, "_ZN3c104impl26device_guard_impl_registryE")
    _install_guard(ctypes.addressof(first), count)


# A c10::Device is two bytes: kind, then number.


def _current(_: object) -> int:
    return _CUDA | MACHINE.thread.device << 8


def _set(_: object, device: int) -> None:
    if device >> 8 >= 0:
        MACHINE.thread.device = device >> 8


def _exchange(_: object, device: int) -> int:
    before = _current(_)
    _set(_, device)
    return before


def _install_guard(registry: int, count: Any) -> None:
    """The guard of CUDA devices.

    Args:
        registry: address of the guards of all kinds of devices, in the order of their numbers.
        count: function that tells how many devices there are.
    """
    own = ctypes.c_void_p.from_address(registry + _CUDA * _POINTER)
    if own.value is None:
        of_cpu = ctypes.c_void_p.from_address(ctypes.c_void_p.from_address(registry).value or 0)
        _kept.append(guard := (ctypes.c_void_p * 2)(of_cpu.value, None))
        own.value = ctypes.addressof(guard)
    table = _Table(own.value or 0, _GUARD, 40)
    table.answer("type", ctypes.CFUNCTYPE(ctypes.c_int8, ctypes.c_void_p)(lambda *_: _CUDA))
    table.answer("exchangeDevice", ctypes.CFUNCTYPE(ctypes.c_int16, ctypes.c_void_p, ctypes.c_int16)(_exchange))
    table.answer("getDevice", ctypes.CFUNCTYPE(ctypes.c_int16, ctypes.c_void_p)(_current))
    for name in ("setDevice", "uncheckedSetDevice"):
        table.answer(name, ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int16)(_set))
    table.answer("deviceCount", count)
    numbered, same = _machine_code()
    for name in ("getStream", "getDefaultStream"):
        table.answer(name, ctypes.c_void_p(numbered))
    table.answer("exchangeStream", ctypes.c_void_p(same))
    table.set()
