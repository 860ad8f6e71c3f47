"""The 1024 bytes in front of an MRC file (MRC2014, and the older headers still found in archives)."""

import math
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.utils import dtype_from_mode, machine_stamp_from_byte_order

from cryoeq import __version__
from cryoeq.errors import CryoEqError

HEADER_BYTES = 1024
_MODES = {0: "int8", 1: "int16", 2: "float32", 6: "uint16", 12: "float16"}
_LARGEST_SIDE_PX = 2**20


@dataclass(frozen=True)
class MrcHeader:
    """Fields of an MRC header that cryoeq reads.

    Args:
        shape: (sections, rows, columns), as stored.
        dtype: type of the stored values, with their byte order.
        data_offset: bytes before the first value.
        pixel_size_angstrom: CELLA.X / MX; None where it is zero or cannot be trusted.
        axes: axis (x = 1, y = 2, z = 3) along sections, rows and columns.
        start_px: number of the first voxel along x, y and z (NXSTART and its like).
        origin_angstrom: ORIGIN, (x, y, z); zero in most files, and in those without the MAP stamp.
        notes: oddities of the header, one sentence each.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    data_offset: int
    pixel_size_angstrom: float | None
    axes: tuple[int, int, int]
    start_px: tuple[int, int, int]
    origin_angstrom: tuple[float, float, float]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ValueStatistics:
    """Minimum, maximum, mean and standard deviation of the values of a file, for its header."""

    minimum: float
    maximum: float
    mean: float
    standard_deviation: float


def read_header(path: Path, error: type[CryoEqError]) -> MrcHeader:
    """Read the header and compare the size that it promises with that of the file; the data are not touched.

    Args:
        path: the file.
        error: the class to raise, since a bad map and a bad particle stack are different errors to the user.
    """
    advice = "Copy or export the file again"
    try:
        with path.open("rb") as file:
            header = _parse(path, file.read(HEADER_BYTES))
        present = path.stat().st_size - header.data_offset
    except FileNotFoundError as missing:
        raise error(f"{path} does not exist", "", "Check the path") from missing
    except OSError as unreadable:
        raise error(
            f"{path} cannot be read: {unreadable.strerror}", "", "Check the path and its permissions"
        ) from unreadable
    except ValueError as bad:
        raise error(str(bad), "cryoeq reads MRC files", advice) from bad
    section = header.shape[1] * header.shape[2] * header.dtype.itemsize
    if present < section * header.shape[0]:
        whole = max(present, 0) // section
        raise error(
            f"{path} is truncated: its header promises {header.shape[0]} images, {whole} are there whole", "", advice
        )
    return header


def _parse(path: Path, raw: bytes) -> MrcHeader:
    if len(raw) < HEADER_BYTES:
        raise ValueError(f"{path} is {len(raw)} bytes long, shorter than an MRC header ({HEADER_BYTES} bytes)")
    is_stamped = raw[208:211] == b"MAP"
    header, byte_order = _in_plausible_order(path, raw)
    mode = int(header["mode"])
    if mode not in _MODES:
        known = ", ".join(f"{number} ({name})" for number, name in _MODES.items())
        what = "has MRC mode" if is_stamped else "is not an MRC file: it has no MAP stamp and mode"
        raise ValueError(f"{path} {what} {mode}, where cryoeq reads {known}")
    # Without the stamp the later fields are whatever an old writer left there: its pixel size is no measurement.
    pixel_size = float(header["cella"]["x"]) / max(int(header["mx"]), 1) if is_stamped else 0.0
    axes = (int(header["maps"]), int(header["mapr"]), int(header["mapc"]))
    axes = axes if sorted(axes) == [1, 2, 3] else (3, 2, 1)
    starts = [int(header[name]) if is_stamped else 0 for name in ("nzstart", "nystart", "nxstart")]  # as axes
    origin = [float(header["origin"][axis]) if is_stamped else 0.0 for axis in "xyz"]
    note = f"{path.name}: the MRC header has no MAP stamp; it was read all the same, but for its pixel size."
    return MrcHeader(
        shape=(max(int(header["nz"]), 1), int(header["ny"]), int(header["nx"])),
        dtype=dtype_from_mode(mode).newbyteorder(byte_order),
        data_offset=HEADER_BYTES + max(int(header["nsymbt"]), 0),
        pixel_size_angstrom=pixel_size if math.isfinite(pixel_size) and pixel_size > 0 else None,
        axes=axes,
        start_px=(starts[axes.index(1)], starts[axes.index(2)], starts[axes.index(3)]),
        origin_angstrom=(origin[0], origin[1], origin[2]),
        notes=() if is_stamped else (note,),
    )


def _in_plausible_order(path: Path, raw: bytes) -> tuple[Any, str]:
    """The header in the byte order that makes sense of it: the machine stamp is wrong or missing in too many files."""
    for order in ("<", ">"):
        header = np.frombuffer(raw, HEADER_DTYPE.newbyteorder(order))[0]
        sides_fit = all(0 < int(header[side]) < _LARGEST_SIDE_PX for side in ("nx", "ny"))
        if sides_fit and 0 <= int(header["mode"]) < 128:
            return header, order
    raise ValueError(f"{path} is not an MRC file: its header makes no sense")


def build_header(
    shape: tuple[int, int, int], pixel_size_angstrom: float, statistics: ValueStatistics, *, is_stack: bool, label: str
) -> bytes:
    """A header for native float32 values, as RELION, ChimeraX and ``mrcfile.validate`` want it.

    Args:
        shape: (sections, rows, columns).
        pixel_size_angstrom: pixel size along all axes.
        statistics: statistics of the values.
        is_stack: images (ISPG 0, MZ 1) rather than a map (ISPG 1, MZ = NZ).
        label: written after the version and the date, cut at 80 characters in all.
    """
    header = np.zeros((), HEADER_DTYPE)
    sections, rows, columns = shape
    header["nz"], header["ny"], header["nx"] = shape
    header["mz"], header["my"], header["mx"] = (1 if is_stack else sections), rows, columns
    header["mode"], header["ispg"], header["nversion"], header["nlabl"] = 2, 0 if is_stack else 1, 20140, 1
    for axis in "xyz":
        header["cella"][axis] = pixel_size_angstrom * int(header[f"m{axis}"])
    header["cellb"]["alpha"], header["cellb"]["beta"], header["cellb"]["gamma"] = 90.0, 90.0, 90.0
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["dmin"], header["dmax"] = statistics.minimum, statistics.maximum
    header["dmean"], header["rms"] = statistics.mean, statistics.standard_deviation
    header["map"] = b"MAP "
    header["machst"] = machine_stamp_from_byte_order("<" if sys.byteorder == "little" else ">")
    full_label = f"cryoeq {__version__}  {datetime.now(UTC):%Y-%m-%d %H:%M:%S}  {label}".strip()
    header["label"][0] = full_label.encode("ascii", "replace")[:80]
    return header.tobytes()


def with_origin(raw: bytes, origin_angstrom: tuple[float, float, float]) -> bytes:
    """A header with ORIGIN set to coordinates (x, y, z)."""
    header = np.frombuffer(raw, HEADER_DTYPE).copy()
    for axis, coordinate in zip("xyz", origin_angstrom, strict=True):
        header["origin"][axis] = coordinate
    return header.tobytes()
