"""The 1024 bytes in front of an MRC file (MRC2014, and the older headers still found in archives)."""

import math
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.utils import dtype_from_mode, machine_stamp_from_byte_order

from cryoeq import __version__
from cryoeq.errors import CryoEqError
from cryoeq.io.compressed import is_compressed, open_compressed
from cryoeq.io.foreign import recognise

HEADER_BYTES = 1024
_MODES = {0: "int8", 1: "int16", 2: "float32", 6: "uint16", 12: "float16"}
_OTHER_MODES = {
    3: "complex int16, a Fourier transform",
    4: "complex float32, a Fourier transform",
    16: "RGB",
    101: "4 bits a pixel, packed as movies are",
}
_LARGEST_SIDE_PX = 2**20
_IMOD_STAMP = (
    1146047817  # of imodStamp, at byte 152; bit 0 of imodFlags, at byte 156, then says whether bytes are signed
)
_PLAUSIBLE_PIXEL_ANGSTROM = (0.05, 100.0)
_SAME_VOXEL_SIZE, _RIGHT_ANGLE_TOLERANCE_DEG = 5e-3, 0.1
_AXES = "xyz"


@dataclass(frozen=True)
class MrcHeader:
    """Fields of an MRC header that cryoeq reads.

    Args:
        shape: (sections, rows, columns), as stored.
        dtype: type of the stored values, with their byte order.
        extended_bytes: size of the extended header (NSYMBT); 0 where the field is negative.
        voxel_size_angstrom: (x, y, z): CELLA / MX, or over the number of voxels where MX is not set; 0 where CELLA is
            not set, and in files without the MAP stamp.
        angles_deg: CELLB, (alpha, beta, gamma), 90 where they are not set.
        axes: axis (x = 1, y = 2, z = 3) along sections, rows and columns.
        start_px: number of the first voxel along x, y and z (NXSTART and its like).
        origin_angstrom: ORIGIN, (x, y, z); zero in most files, and in those without the MAP stamp.
        space_group: ISPG, 0 for images and 1 for a map by the format's rules; 0 in files without the MAP stamp.
        sections_per_volume: MZ, 1 for images by the format's rules; the sections in files without the MAP stamp.
        is_compressed: whether gzip or bzip2 has packed the file.
        notes: oddities of the header, one sentence each.
        pixel_size_notes: how the pixel size was found, where that is doubtful.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    extended_bytes: int
    voxel_size_angstrom: tuple[float, float, float]
    angles_deg: tuple[float, float, float]
    axes: tuple[int, int, int]
    start_px: tuple[int, int, int]
    origin_angstrom: tuple[float, float, float]
    space_group: int
    sections_per_volume: int
    is_compressed: bool = False
    notes: tuple[str, ...] = ()
    pixel_size_notes: tuple[str, ...] = ()

    @property
    def data_offset(self) -> int:
        """Bytes before the first value."""
        return HEADER_BYTES + self.extended_bytes

    @property
    def data_bytes(self) -> int:
        """Bytes that the values take."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def pixel_size_angstrom(self) -> float | None:
        """Voxel size along x; None where it is not set or cannot be true (``pixel_size_fault``)."""
        return None if self.pixel_size_fault else self.voxel_size_angstrom[0]

    @property
    def pixel_size_fault(self) -> str:
        """Why the header gives no pixel size of images; empty where it gives one."""
        x, y, _ = self.voxel_size_angstrom
        low, high = _PLAUSIBLE_PIXEL_ANGSTROM
        if x == 0:
            return "pixel size missing or zero"
        if not low <= x <= high:
            return f"the header gives a pixel size of {x:.6g} Å, beyond {low:g} to {high:g} Å"
        if y and not math.isclose(x, y, rel_tol=_SAME_VOXEL_SIZE):
            return f"the header gives pixels of {x:.6g} Å along x and {y:.6g} Å along y"
        return ""

    @property
    def has_cubic_voxels(self) -> bool:
        """Whether the voxel sizes that are set agree within 0.5 %; of a single image, those along x and y."""
        sizes = [size for size in self.voxel_size_angstrom[: 2 if self.shape[0] == 1 else 3] if size]
        return not sizes or math.isclose(min(sizes), max(sizes), rel_tol=_SAME_VOXEL_SIZE)

    @property
    def has_right_angles(self) -> bool:
        """Whether the axes of the cell are orthogonal."""
        return all(abs(angle - 90) <= _RIGHT_ANGLE_TOLERANCE_DEG for angle in self.angles_deg)


@dataclass(frozen=True)
class ValueStatistics:
    """Minimum, maximum, mean and standard deviation of the values of a file, for its header."""

    minimum: float
    maximum: float
    mean: float
    standard_deviation: float


def read_header(path: Path, error: type[CryoEqError]) -> MrcHeader:
    """Read the header and compare the size that it promises with that of the file; the data are not touched.

    The size of what gzip or bzip2 has packed is known only once it is unpacked: there the reader of the data compares.

    Args:
        path: the file, plain or packed by gzip or bzip2.
        error: the class to raise, since a bad map and a bad particle stack are different errors to the user.

    Raises:
        CryoEqError: of the given class: no such file, another format, a mode that holds no densities, or fewer bytes
            than the header promises.
    """
    try:
        with path.open("rb") as file:
            start = file.read(HEADER_BYTES)
        if is_compressed(start):
            with open_compressed(path, error) as unpacked:
                return replace(_parse(path, unpacked.read(HEADER_BYTES), error), is_compressed=True)
        header = _parse(path, start, error)
        size = path.stat().st_size
    except FileNotFoundError as missing:
        raise error(f"{path} does not exist", "", "Check the path") from missing
    except OSError as unreadable:
        raise error(
            f"{path} cannot be read: {unreadable.strerror}", "", "Check the path and its permissions"
        ) from unreadable
    require_all_data(path, header, size, error)
    left = size - header.data_offset - header.data_bytes
    if left < header.data_bytes // header.shape[0]:
        return header
    note = f"{path.name}: {left} bytes lie behind the {header.shape[0]} images of its header, and are not read."
    return replace(header, notes=(*header.notes, note))


def require_all_data(path: Path, header: MrcHeader, size: int, error: type[CryoEqError]) -> None:
    """Refuse a file that is shorter than its header promises.

    Args:
        path: the file.
        header: its header.
        size: bytes of the file, unpacked.
        error: class of the error.
    """
    present = size - header.data_offset
    if present >= header.data_bytes:
        return
    advice = "Copy or export the file again"
    if header.extended_bytes and size - HEADER_BYTES >= header.data_bytes:
        found = f"{path}: NSYMBT promises {header.extended_bytes} bytes of extended header and the other fields "
        found += f"{header.data_bytes} bytes of data, but {size - HEADER_BYTES} bytes follow the header"
        if size - HEADER_BYTES == header.data_bytes:
            advice = "Where the extended header was lost, set NSYMBT (bytes 93 to 96) to 0; else copy the file again"
        raise error(found, "They must add up", advice)
    whole = max(present, 0) // (header.data_bytes // header.shape[0])
    found = f"{path} is truncated: its header promises {header.shape[0]} images, {whole} are there whole"
    raise error(found, "", advice)


def _parse(path: Path, raw: bytes, error: type[CryoEqError]) -> MrcHeader:
    is_stamped = raw[208:211] == b"MAP"
    if not is_stamped and (kind := recognise(raw)):
        raise error(f"{path} is not an MRC file but {kind.name}", "", kind.advice)
    try:
        header, byte_order = _in_plausible_order(path, raw)
        mode = _mode(path, header, is_stamped=is_stamped)
    except ValueError as bad:
        raise error(str(bad), "cryoeq reads MRC files", "Copy or export the file again") from bad
    shape = max(int(header["nz"]), 1), int(header["ny"]), int(header["nx"])
    axes = (int(header["maps"]), int(header["mapr"]), int(header["mapc"]))
    axes = axes if sorted(axes) == [1, 2, 3] else (3, 2, 1)
    sides = [shape[axes.index(axis)] for axis in (1, 2, 3)]
    starts = [int(header[name]) if is_stamped else 0 for name in ("nzstart", "nystart", "nxstart")]  # as axes
    origin = [float(header["origin"][axis]) if is_stamped else 0.0 for axis in _AXES]
    # Without the stamp the later fields are whatever an old writer left there: its pixel size is no measurement.
    sizes = _voxel_sizes(header, sides) if is_stamped else (0.0, 0.0, 0.0)
    flags = _imod_flags(raw, byte_order)
    # Only IMOD says whether bytes are 0 to 255; those of other programs are signed (MRC2014).
    is_unsigned = mode == 0 and flags is not None and not flags & 1
    notes = _range_notes(path, header) if mode == 0 and flags is None else ()
    note = f"{path.name}: the MRC header has no MAP stamp; it was read all the same, but for its pixel size."
    size_note = (
        f"{path.name}: MX is {int(header['mx'])}; its pixel size, {sizes[0]:.6g} Å, is CELLA over the number of voxels."
    )
    return MrcHeader(
        shape=shape,
        dtype=np.dtype(np.uint8) if is_unsigned else dtype_from_mode(mode).newbyteorder(byte_order),
        extended_bytes=max(int(header["nsymbt"]), 0),
        voxel_size_angstrom=sizes,
        angles_deg=_angles(header) if is_stamped else (90.0, 90.0, 90.0),
        axes=axes,
        start_px=(starts[axes.index(1)], starts[axes.index(2)], starts[axes.index(3)]),
        origin_angstrom=(origin[0], origin[1], origin[2]),
        space_group=int(header["ispg"]) if is_stamped else 0,
        sections_per_volume=int(header["mz"] if is_stamped else header["nz"]),
        notes=notes if is_stamped else (note,),
        pixel_size_notes=(size_note,) if sizes[0] and int(header["mx"]) <= 0 else (),
    )


def _mode(path: Path, header: Any, *, is_stamped: bool) -> int:
    mode = int(header["mode"])
    if mode in _MODES:
        return mode
    known = ", ".join(f"{number} ({name})" for number, name in _MODES.items())
    what = "has MRC mode" if is_stamped else "is not an MRC file: it has no MAP stamp and mode"
    named = f"{mode} ({_OTHER_MODES[mode]})" if mode in _OTHER_MODES else f"{mode}"
    raise ValueError(f"{path} {what} {named}, where cryoeq reads {known}")


def _imod_flags(raw: bytes, byte_order: str) -> int | None:
    """The field imodFlags of a file that IMOD wrote; None where another program did."""
    stamp, flags = np.frombuffer(raw[152:160], f"{byte_order}i4").tolist()
    return int(flags) if stamp == _IMOD_STAMP else None


def _range_notes(path: Path, header: Any) -> tuple[str, ...]:
    """A sentence where DMIN and DMAX tell of values that signed bytes cannot hold."""
    lowest, highest = float(header["dmin"]), float(header["dmax"])
    if not -math.inf < lowest < highest < math.inf or (lowest >= -128 and highest <= 127):
        return ()
    return (
        f"{path.name}: its bytes are read as signed (-128 to 127), but its header tells of values from {lowest:g} to "
        f"{highest:g} (DMIN, DMAX); if its writer meant 0 to 255, convert it to mode 1 or 2.",
    )


def _voxel_sizes(header: Any, sides: list[int]) -> tuple[float, float, float]:
    """CELLA over the sampling, along x, y and z; 0 where CELLA is not set."""
    samplings = [int(header[f"m{axis}"]) for axis in _AXES]
    cell = [float(header["cella"][axis]) for axis in _AXES]
    x, y, z = (
        length / (sampling if sampling > 0 else side) if math.isfinite(length) and length > 0 else 0.0
        for length, sampling, side in zip(cell, samplings, sides, strict=True)
    )
    return x, y, z


def _angles(header: Any) -> tuple[float, float, float]:
    """Angles of the cell; 90 where a field holds no angle, as zero in many files."""
    alpha, beta, gamma = (float(header["cellb"][name]) for name in ("alpha", "beta", "gamma"))
    a, b, c = (angle if 1 < angle < 179 else 90.0 for angle in (alpha, beta, gamma))
    return a, b, c


def _in_plausible_order(path: Path, raw: bytes) -> tuple[Any, str]:
    """The header in the byte order that makes sense of it: the machine stamp is wrong or missing in too many files."""
    if len(raw) < HEADER_BYTES:
        raise ValueError(f"{path} is {len(raw)} bytes long, shorter than an MRC header ({HEADER_BYTES} bytes)")
    for order in ("<", ">"):
        header = np.frombuffer(raw, HEADER_DTYPE.newbyteorder(order))[0]
        sides_fit = all(0 < int(header[side]) < _LARGEST_SIDE_PX for side in ("nx", "ny"))
        if sides_fit and int(header["nz"]) >= 0 and 0 <= int(header["mode"]) < 128:
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
