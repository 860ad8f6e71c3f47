"""Changes of MRC files: of header fields that mean nothing, of those that mean something, and of pixels."""

import random
import struct

import numpy as np

from faults.fuzzing.cases import Change, Scenario, mutation

# Byte of each field of four bytes.
_INTEGERS = {
    "nx": 0, "ny": 4, "nz": 8, "mode": 12, "nxstart": 16, "nystart": 20, "nzstart": 24, "mx": 28, "my": 32, "mz": 36,
    "mapc": 64, "mapr": 68, "maps": 72, "ispg": 88, "nsymbt": 92, "nlabl": 220,
}  # fmt: skip
_REALS = {
    "cella.x": 40, "cella.y": 44, "cella.z": 48, "alpha": 52, "beta": 56, "gamma": 60, "dmin": 76, "dmax": 80,
    "dmean": 84, "origin.x": 196, "origin.y": 200, "origin.z": 204, "rms": 216,
}  # fmt: skip
_ODD_INTEGERS = (0, -1, 1, 2, 3, 5, 7, 12, 23, 25, 48, 101, 255, 2**15, 2**20, 2**31 - 1, -(2**31))
_ODD_REALS = (0.0, -1.0, 1e-30, 1e30, 1e9, float("nan"), float("inf"), 119.0, 121.0, 60.0, 240.0)
_NAMES = ("pixel", "voxel", "images", "header")
_MEASURING = ("reconstruct", "fsc", "simulate", "lattice")  # others show a map, whatever it is
_COMPARING = ("reconstruct", "fsc")
_FLAT = ("constant", "no signal", "no density", "zero", "empty", "flat", "same value", "image", "mask")
_FRAME = ("origin", "nxstart", "start", "frame", "corner", "apart", "shift")


def _put(content: bytes, at: int, raw: bytes) -> bytes:
    return content[:at] + raw + content[at + len(raw) :]


def _values(content: bytes) -> np.ndarray | None:
    """The values of an untouched file of ours; None where it is no longer one."""
    if len(content) < 1024 or struct.unpack_from("<i", content, 12)[0] != 2 or (len(content) - 1024) % 4:
        return None
    nx, ny, nz = struct.unpack_from("<3i", content, 0)
    if min(nx, ny, nz) < 1 or nx * ny * nz * 4 != len(content) - 1024:
        return None
    return np.frombuffer(content, "<f4", offset=1024).reshape(nz, ny, nx).copy()


def _with_values(content: bytes, values: np.ndarray) -> bytes:
    return content[:1024] + values.astype("<f4").tobytes()


@mutation("mrc", "harmless")
def fields_that_nobody_reads(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if _values(content) is None:
        return None
    name = chance.choice(("dmin", "dmax", "dmean", "rms", "label", "nlabl", "exttyp", "nversion", "stamp"))
    if name in _REALS:
        raw, at = struct.pack("<f", chance.choice(_ODD_REALS)), _REALS[name]
    else:
        at, size = {"label": (224, 80), "nlabl": (220, 4), "exttyp": (104, 4), "nversion": (108, 4), "stamp": (212, 4)}[
            name
        ]
        raw = chance.choice((bytes(size), b"\xff" * size, chance.randbytes(size)))
    return Change(_put(content, at, raw), f"{name} overwritten")


@mutation("mrc", "harmless")
def other_byte_order(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (values := _values(content)) is None:
        return None
    words = np.frombuffer(content[:1024], "<i4").byteswap().tobytes()
    header = bytearray(words)
    for start, end in ((104, 108), (208, 212), (224, 1024)):  # text
        header[start:end] = content[start:end]
    header[212:216] = b"\x11\x11\x00\x00"
    return Change(bytes(header) + values.astype(">f4").tobytes(), "big-endian")


@mutation("mrc", "harmless")
def extended_header(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if _values(content) is None:
        return None
    size = chance.choice((80, 1024, 1000, 131072))
    header = _put(content[:1024], 92, struct.pack("<i", size))
    return Change(header + chance.randbytes(size) + content[1024:], f"an extended header of {size} bytes")


@mutation("mrc", "harmless")
def axes_in_another_order(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (values := _values(content)) is None or _is_stack(content) or len(set(values.shape)) > 1:
        return None
    if struct.unpack_from("<3i", content, 64) != (1, 2, 3):  # they are in another order already
        return None
    order = chance.choice(((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)))  # sections, rows and columns
    header = _put(content[:1024], 64, struct.pack("<3i", *(3 - axis for axis in order[::-1])))
    return Change(header + values.transpose(order).astype("<f4").tobytes(), f"axes in the order {order}")


@mutation("mrc", "broken", only=_MEASURING)
def size_that_is_not_there(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if _values(content) is None:
        return None
    name = chance.choice(("nx", "ny", "nz", "nsymbt"))
    value = chance.choice((-1, 2**31 - 1, -(2**31), 2**20, 25, 4096, 65536))
    return Change(
        _put(content, _INTEGERS[name], struct.pack("<i", value)), f"{name} is {value}", (name.upper(), *_NAMES)
    )


@mutation("mrc", "broken", only=_MEASURING)
def mode_that_is_not_read(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if _values(content) is None:
        return None
    value = chance.choice((3, 4, 5, 7, 16, 101, -1, 2**31 - 1))
    return Change(_put(content, 12, struct.pack("<i", value)), f"mode is {value}")


@mutation("mrc", "any")
def integer_of_the_header(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    name, value = chance.choice(sorted(_INTEGERS)), chance.choice(_ODD_INTEGERS)
    return Change(_put(content, _INTEGERS[name], struct.pack("<i", value)), f"{name} is {value}", _NAMES)


@mutation("mrc", "any")
def real_of_the_header(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    name, value = chance.choice(sorted(_REALS)), chance.choice(_ODD_REALS)
    return Change(_put(content, _REALS[name], struct.pack("<f", value)), f"{name} is {value}", _NAMES)


@mutation("mrc", "broken", only=_MEASURING)
def cell_that_is_no_cube(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if _values(content) is None:
        return None
    name = chance.choice(("cella.x", "cella.y", "cella.z", "alpha", "beta", "gamma"))
    factor = chance.choice((0.5, 1.1, 2.0))
    value = struct.unpack_from("<f", content, _REALS[name])[0] * factor
    words = ("cell", "voxel", "pixel", "angle", "axes")
    return Change(_put(content, _REALS[name], struct.pack("<f", value)), f"{name} times {factor}", words)


@mutation("mrc", "broken", only=_MEASURING)
def pixel_size_that_is_none(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if _values(content) is None:
        return None
    value = chance.choice((0.0, -120.0, float("nan"), float("inf"), 1e-20, 1e20))
    return Change(_put(content, 40, struct.pack("<3f", value, value, value)), f"the cell is {value}", ("pixel",))


@mutation("mrc", "broken", only=_COMPARING)
def pixel_size_of_another_map(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (values := _values(content)) is None or "model.pdb" in scenario.files:  # which lies where the map's header says
        return None
    side = struct.unpack_from("<f", content, 40)[0] * chance.choice((0.5, 0.98, 1.05, 2.0, 4.0))
    return Change(
        _put(content, 40, struct.pack("<3f", side, side, side)), f"a cell of {side:g} Å for {values.shape}", ("pixel",)
    )


@mutation("mrc", "broken", only=_COMPARING)
def another_place(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if _values(content) is None or "model.pdb" in scenario.files:
        return None
    if chance.random() < 0.5:
        raw, at = struct.pack("<3f", *(chance.choice((0.0, 10.0, -60.0)) for _ in range(3))), 196
    else:
        raw, at = struct.pack("<3i", *(chance.choice((0, 2, -12)) for _ in range(3))), 16
    return Change(_put(content, at, raw), f"its place: {raw.hex()} at {at}", _FRAME)


@mutation("mrc", "broken", only=_MEASURING)
def values_that_are_no_numbers(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (values := _values(content)) is None:
        return None
    flat = values.reshape(-1)
    value = chance.choice((np.nan, np.inf, -np.inf))
    for _ in range(chance.choice((1, 1, 20, len(flat)))):
        flat[chance.randrange(len(flat))] = value
    return Change(_with_values(content, values), f"values are {value}", _NAMES)


@mutation("mrc", "broken", only=_MEASURING)
def hot_pixel(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    return _with_hot_value(chance, content) if _is_stack(content) else None


@mutation("mrc", "any")
def hot_voxel(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    return None if _is_stack(content) else _with_hot_value(chance, content)


def _is_stack(content: bytes) -> bool:
    return content[88:92] == bytes(4)


def _with_hot_value(chance: random.Random, content: bytes) -> Change | None:
    if (values := _values(content)) is None:
        return None
    value = chance.choice((1e4, -1e4, 1e6, 1e12, 1e30, -3e38)) * float(values.std())
    value = float(np.clip(value, -3.4e38, 3.4e38))
    values.reshape(-1)[chance.randrange(values.size)] = value
    words = ("pixel", "voxel", "value", "outlier", "image")
    return Change(_with_values(content, values), f"one value is {value:g}", words)


@mutation("mrc", "broken", only=_MEASURING)
def constant_images(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (values := _values(content)) is None or not _is_stack(content):
        return None
    values[chance.randrange(len(values))] = chance.choice((0.0, 0.0, 3.0, -1e30))
    return Change(_with_values(content, values), "an image is constant", _FLAT)


@mutation("mrc", "broken", only=_MEASURING)
def constant_values(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (values := _values(content)) is None:
        return None
    values[:] = chance.choice((0.0, 0.0, 3.0, -1e30))
    return Change(_with_values(content, values), "all values are the same", _FLAT)


@mutation("mrc", "any")
def values_scaled(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (values := _values(content)) is None:
        return None
    factor, offset = chance.choice((-1.0, 1e-30, 1e-8, 1e8, 1e30, 0.0, 1.0)), chance.choice((0.0, 0.0, 1e3, 1e6, -1e6))
    return Change(
        _with_values(content, values * np.float32(factor) + np.float32(offset)), f"times {factor}, plus {offset}"
    )


@mutation("mrc", "any")
def values_of_another_type(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (values := _values(content)) is None:
        return None
    mode, kind = chance.choice(((0, "i1"), (1, "<i2"), (6, "<u2"), (12, "<f2"), (4, "<c8")))
    scaled = values if kind in {"<f2", "<c8"} else np.clip(values / (abs(values).max() or 1) * 100, -100, 100)
    stored = (scaled - scaled.min() if kind == "<u2" else scaled).astype(kind)
    return Change(_put(content[:1024], 12, struct.pack("<i", mode)) + stored.tobytes(), f"mode {mode}")


@mutation("mrc", "any")
def another_shape(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (values := _values(content)) is None:
        return None
    shaped = chance.choice((
        values[: chance.randrange(1, len(values) + 1)], values[:, :-1], values[:, :, :-2],
        values[:, :-2, :-2], np.pad(values, ((0, 0), (2, 2), (2, 2))), np.pad(values, 1), values[:1], values[:, :1, :1],
        values[:, :-1, :-1],
    ))  # fmt: skip
    sides = struct.pack("<3i", *shaped.shape[::-1])
    header = _put(_put(content[:1024], 0, sides), 28, sides)
    return Change(header + np.ascontiguousarray(shaped, "<f4").tobytes(), f"shape {shaped.shape}", _NAMES)


@mutation("mrc", "any")
def turned_or_mirrored(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    if (values := _values(content)) is None:
        return None
    changed = chance.choice((values[::-1], values[:, ::-1], values.transpose(0, 2, 1), np.roll(values, 5, 2)))
    return Change(_with_values(content, np.ascontiguousarray(changed)), "turned, mirrored or moved")


@mutation("mrc", "any")
def bytes_behind(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    count = chance.choice((1, 512, 2304))
    return Change(content + chance.randbytes(count), f"{count} bytes more than the header says")
