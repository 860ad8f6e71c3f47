"""MRC maps and particle stacks."""

import math
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Shaped
from torch import Tensor

from cryoeq.domain.volume import Volume
from cryoeq.errors import CryoEqError, MapFileError, OutputError, ParticleFileError
from cryoeq.io.atomic import atomic_path
from cryoeq.io.compressed import open_compressed, unpacked_chunks
from cryoeq.io.mrc_header import (
    HEADER_BYTES,
    MrcHeader,
    ValueStatistics,
    build_header,
    read_header,
    require_all_data,
    with_origin,
)
from cryoeq.io.scratch import mapped_file

LARGEST_DENSITY = 1e15


def header_notes(path: Path) -> tuple[str, ...]:
    """Oddities of the header of a readable map, one sentence each; empty for an ordinary one."""
    header = read_header(path, MapFileError)
    cubic = f"{path.name}: {_voxel_sizes_text(header)} by its header; they are taken as cubic."
    return (*header.notes, *header.pixel_size_notes, *(() if header.has_cubic_voxels else (cubic,)))


def read_map_pixel_size(path: Path) -> float | None:
    """Pixel size in Angstrom of a map by its header; None where it is missing, implausible, or differs by axis."""
    header = read_header(path, MapFileError)
    return header.pixel_size_angstrom if header.has_cubic_voxels else None


def read_map(path: Path, *, angpix: float | None = None) -> Volume:
    """Read a cubic map as float32, axes (z, y, x) whatever their order in the file.

    Args:
        path: an MRC file of mode 0, 1, 2, 6 or 12, plain or packed by gzip or bzip2.
        angpix: pixel size in Angstrom; overrides that of the header.

    Raises:
        MapFileError: not an MRC file, truncated, not cubic, axes that are not orthogonal, NaN voxels, or no pixel size.
    """
    header = read_header(path, MapFileError)
    _require_cube(path, header)
    if angpix is None and not header.has_cubic_voxels:
        raise MapFileError(
            f"{path}: {_voxel_sizes_text(header)}",
            "cryoeq needs cubic voxels",
            "Resample the map, or give the true pixel size with --angpix where the header is wrong",
        )
    pixel_size = _pixel_size(path, header, angpix)
    stored = _read_values(path, header).reshape(header.shape)
    order = [header.axes.index(axis) for axis in (3, 2, 1)]
    values = np.ascontiguousarray(stored.transpose(order), dtype=np.float32)
    if bad := int(values.size - np.isfinite(values).sum()):
        raise MapFileError(
            f"{path}: {bad} voxels are NaN or infinite", "cryoeq needs finite densities", "Make the map again"
        )
    if (largest := float(np.abs(values).max(initial=0.0))) >= LARGEST_DENSITY:
        raise MapFileError(
            f"{path}: its largest density is {largest:.3g}",
            f"cryoeq adds up squares in single precision and needs densities up to {LARGEST_DENSITY:g}",
            "Scale the map, or look for a damaged voxel",
        )
    return Volume(torch.from_numpy(values), pixel_size)


def _require_cube(path: Path, header: MrcHeader) -> None:
    if len(set(header.shape)) != 1:
        found = f"{path} is {' x '.join(map(str, header.shape))} voxels"
        raise MapFileError(found, "cryoeq reads cubic maps", "Pad or crop it to a cube")
    if not header.has_right_angles:
        alpha, beta, gamma = header.angles_deg
        raise MapFileError(
            f"{path}: the angles of its cell (CELLB) are {alpha:g}, {beta:g} and {gamma:g}°",
            "cryoeq needs orthogonal axes",
            "Resample the map onto an orthogonal grid, or set the angles to 90 where the header is wrong",
        )


def _voxel_sizes_text(header: MrcHeader) -> str:
    x, y, z = (f"{size:.6g}" if size else "unknown" for size in header.voxel_size_angstrom)
    return f"the voxels are {x} Å along x, {y} Å along y and {z} Å along z"


def _pixel_size(path: Path, header: MrcHeader, angpix: float | None, error: type[CryoEqError] = MapFileError) -> float:
    pixel_size = header.pixel_size_angstrom if angpix is None else angpix
    if pixel_size is None or not (math.isfinite(pixel_size) and pixel_size > 0):
        fault = header.pixel_size_fault if angpix is None else "pixel size missing or zero"
        raise error(f"{path}: {fault}", "cryoeq needs the side of a pixel", "Give it with --angpix")
    return float(pixel_size)


def _read_values(path: Path, header: MrcHeader) -> Shaped[np.ndarray, " values"]:
    """All values of a map, in the file's order and type."""
    if not header.is_compressed:
        return np.fromfile(path, header.dtype, count=math.prod(header.shape), offset=header.data_offset)
    values = bytearray()
    with open_compressed(path, MapFileError) as unpacked:
        for chunk in unpacked_chunks(unpacked, header.data_offset, header.data_bytes):
            values += chunk
    require_all_data(path, header, header.data_offset + len(values), MapFileError)
    return np.frombuffer(values, header.dtype)


def write_map(
    path: Path, volume: Volume, *, label: str = "", origin_angstrom: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> None:
    """Write a map: float32, ISPG 1, statistics filled.

    Args:
        path: the ``.mrc`` file to create or replace.
        volume: the map.
        label: title in the header, for example the command that made the map; cut at 80 characters with version and
            date.
        origin_angstrom: coordinates (x, y, z) of the first voxel, for viewers.

    Raises:
        OutputError: the disk is full or the path cannot be written.
    """
    tensor = volume.values.detach().cpu().to(torch.float32).contiguous()
    # Plane by plane, without the copies that numpy would make of a large map, and several times as fast.
    mean = float(tensor.mean(dim=(1, 2)).double().mean())
    sigma = math.sqrt(sum(float((plane - mean).norm()) ** 2 for plane in tensor) / tensor.numel())
    lowest, highest = tensor.aminmax()
    statistics = ValueStatistics(float(lowest), float(highest), mean, sigma)
    values = tensor.numpy()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        header = build_header(values.shape, volume.pixel_size_angstrom, statistics, is_stack=False, label=label)
        file.write(with_origin(header, origin_angstrom))
        file.write(values.data)


def read_micrograph(path: Path, *, angpix: float | None = None) -> tuple[Float[Tensor, "ny nx"], float]:
    """Read a file of one image, square or not.

    Args:
        path: an MRC file of mode 0, 1, 2, 6 or 12, plain or packed by gzip or bzip2.
        angpix: pixel size in Angstrom; overrides that of the header.

    Returns:
        (grey values (y, x) as float32, pixel size in Angstrom).

    Raises:
        MapFileError: not an MRC file, truncated, several images, NaN pixels, or no pixel size.
    """
    header = read_header(path, MapFileError)
    if header.shape[0] != 1:
        found = f"{path} holds {header.shape[0]} images"
        raise MapFileError(found, "One image was expected", "Sum or average a movie, or take one image out")
    pixel_size = _pixel_size(path, header, angpix)
    values = _read_values(path, header).reshape(header.shape[1:]).astype(np.float32)
    if not np.isfinite(values).all():
        raise MapFileError(f"{path}: pixels are NaN or infinite", "cryoeq needs finite pixels", "Make the image again")
    return torch.from_numpy(values), pixel_size


def write_image(path: Path, values: Float[Tensor, "ny nx"], pixel_size_angstrom: float, *, label: str = "") -> None:
    """Write one image: float32, ISPG 0, statistics filled.

    Args:
        path: the ``.mrc`` file to create or replace.
        values: grey values (y, x).
        pixel_size_angstrom: pixel size of the image.
        label: title in the header.

    Raises:
        OutputError: the disk is full or the path cannot be written.
    """
    image = values.detach().cpu().to(torch.float32)[None].contiguous()
    sigma, mean = torch.std_mean(image.double(), correction=0)
    statistics = ValueStatistics(float(image.min()), float(image.max()), float(mean), float(sigma))
    header = build_header((1, *values.shape), pixel_size_angstrom, statistics, is_stack=True, label=label)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(header)
        file.write(image.numpy().data)


@dataclass(frozen=True)
class MrcStack:
    """The images of one file, read on demand.

    No file stays open between reads: a data set has thousands of stacks, more than a process may hold open.

    Args:
        path: the ``.mrcs`` or ``.mrc`` file.
        header: its header.
        unpacked: all images, on the disk of temporary files, where the file is packed by gzip or bzip2; else None.
    """

    path: Path
    header: MrcHeader
    unpacked: np.memmap[Any, np.dtype[Any]] | None = None

    @classmethod
    def open(cls, path: Path) -> "MrcStack":
        """Read the header; the pixels stay on the disk.

        A file that is packed by gzip or bzip2 is unpacked as a whole, on the disk of temporary files (TMPDIR).

        Raises:
            ParticleFileError: not an MRC file, truncated, or its images are not square.
            OutputError: there is no room to unpack it.
        """
        header = read_header(path, ParticleFileError)
        if header.shape[1] != header.shape[2]:
            found = f"{path} holds images of {header.shape[2]} x {header.shape[1]} pixels"
            raise ParticleFileError(
                found, "cryoeq reads square particle images", "Extract the particles in square boxes"
            )
        return cls(path, header, _unpacked_images(path, header) if header.is_compressed else None)

    def __len__(self) -> int:
        return self.header.shape[0]

    @property
    def box_size_px(self) -> int:
        """Side of the images."""
        return self.header.shape[2]

    def require_pixel_size(self) -> float:
        """Pixel size of the header.

        Raises:
            ParticleFileError: the header has none; the message says why.
        """
        return _pixel_size(self.path, self.header, None, ParticleFileError)

    @property
    def notes(self) -> tuple[str, ...]:
        """Oddities of the file, one sentence each."""
        found = list(self.header.notes)
        if self.header.axes != (3, 2, 1):
            columns, rows = self.header.axes[2], self.header.axes[1]
            found.append(
                f"{self.path.name}: MAPC and MAPR are {columns} and {rows}, where 1 and 2 are usual; as in RELION, "
                "the columns of its images are taken for x and the rows for y."
            )
        if self.unpacked is not None:
            found.append(
                f"{self.path.name} is compressed: it was unpacked into {tempfile.gettempdir()} "
                f"({self.header.data_bytes / 2**20:.3g} MiB) for as long as the run lasts."
            )
        return tuple(found)

    def read(self, slices: Int[np.ndarray, " slices"]) -> Float32[np.ndarray, "slices n n"]:
        """Images, by number from 0, as float32 whatever their type in the file; neighbours in one go.

        Read, not mapped: a map of a file that is cut short, or whose server is gone, kills the process (SIGBUS).

        Raises:
            ParticleFileError: an image is not there any more; the message names file and image.
        """
        if self.unpacked is not None:
            return np.asarray(self.unpacked[slices], dtype=np.float32)
        images = np.empty((len(slices), *self.header.shape[1:]), self.header.dtype)
        image_bytes = math.prod(self.header.shape[1:]) * self.header.dtype.itemsize
        breaks = (np.flatnonzero(np.diff(slices) != 1) + 1).tolist()
        number = 0
        try:
            with self.path.open("rb") as file:
                for start, stop in pairwise(sorted({0, *breaks, len(slices)})):
                    number = int(slices[start])
                    file.seek(self.header.data_offset + number * image_bytes)
                    read = file.readinto(images[start:stop].view(np.uint8).data)
                    if read < (stop - start) * image_bytes:
                        number += read // image_bytes
                        raise OSError(0, "the file ends before it")
        except OSError as error:
            found = f"{self.path}: image {number + 1} cannot be read ({error.strerror})"
            advice = "Put the stack back as it was and go on with --resume, or remove its particles from the star file"
            raise ParticleFileError(found, "Stacks must stay as they are during a run", advice) from error
        if images.dtype == np.float16:  # ten times as fast as NumPy
            return torch.from_numpy(images).float().numpy()
        return np.asarray(images, dtype=np.float32)


def _unpacked_images(path: Path, header: MrcHeader) -> np.memmap[Any, np.dtype[Any]]:
    """All images of a packed stack, in a file without a name."""
    size = header.data_offset

    def counted(chunks: Iterator[bytes]) -> Iterator[bytes]:
        nonlocal size
        for chunk in chunks:
            size += len(chunk)
            yield chunk
        require_all_data(path, header, size, ParticleFileError)

    with open_compressed(path, ParticleFileError) as unpacked:
        try:
            pieces = counted(unpacked_chunks(unpacked, header.data_offset, header.data_bytes))
            return mapped_file(pieces, header.dtype, header.shape)
        except OSError as error:
            if error.errno is None:
                raise
            raise OutputError(
                f"{path} cannot be unpacked into {tempfile.gettempdir()}: {error.strerror}",
                f"Its images take {header.data_bytes / 2**30:.3g} GiB",
                "Set TMPDIR to a folder with room, or unpack the file yourself with gunzip or bunzip2",
            ) from error


class StackWriter:
    """Writes images one batch after the other into a stack that appears only when it is complete: float32, ISPG 0.

    Use it as a context manager. The file is written by plain appends, not through a memory map: on a full disk a map
    kills the process (SIGBUS) where a write can be reported.

    Args:
        path: the ``.mrcs`` file to create or replace.
        count: images that will be appended.
        box_size_px: their side.
        pixel_size_angstrom: pixel size of the images.
        label: title in the header.
    """

    def __init__(
        self, path: Path, count: int, box_size_px: int, pixel_size_angstrom: float, *, label: str = ""
    ) -> None:
        self._path = path
        self._shape = (count, box_size_px, box_size_px)
        self._pixel_size_angstrom = pixel_size_angstrom
        self._label = label
        self._written = 0
        self._minimum, self._maximum = math.inf, -math.inf
        self._sum, self._sum_of_squares = 0.0, 0.0

    def __enter__(self) -> "StackWriter":
        """Open the temporary file."""
        with ExitStack() as opened:
            temporary = opened.enter_context(atomic_path(self._path))
            self._file = opened.enter_context(temporary.open("wb"))
            self._file.write(bytes(HEADER_BYTES))
            self._opened = opened.pop_all()
        return self

    def append(self, images: Float[Tensor, "batch n n"]) -> None:
        """Add images behind those already written."""
        if images.shape[1:] != self._shape[1:] or self._written + len(images) > self._shape[0]:
            raise ValueError(
                f"{tuple(images.shape)} images do not fit behind {self._written} in a stack of {self._shape}"
            )
        values = images.detach().cpu().to(torch.float32).contiguous().numpy()
        self._file.write(values.data)
        self._written += len(values)
        self._minimum, self._maximum = min(self._minimum, float(values.min())), max(self._maximum, float(values.max()))
        self._sum += float(values.sum(dtype=np.float64))
        self._sum_of_squares += float(np.square(values, dtype=np.float64).sum())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Fill in the header and move the file into place, or remove it after an error."""
        # Raised again inside, so that atomic_path removes the file and turns a full disk into an OutputError.
        with self._opened:
            if error is not None:
                raise error
            self._write_header()

    def _write_header(self) -> None:
        if self._written != self._shape[0]:
            raise ValueError(f"{self._written} of {self._shape[0]} images were appended to {self._path}")
        mean = self._sum / math.prod(self._shape)
        variance = max(self._sum_of_squares / math.prod(self._shape) - mean**2, 0.0)
        statistics = ValueStatistics(self._minimum, self._maximum, mean, math.sqrt(variance))
        self._file.seek(0)
        self._file.write(
            build_header(self._shape, self._pixel_size_angstrom, statistics, is_stack=True, label=self._label)
        )
