"""Where the headers of maps place them."""

import math
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.volume import MapFrame
from cryoeq.errors import MapFileError
from cryoeq.io.mrc import read_map_pixel_size
from cryoeq.io.mrc_header import MrcHeader, read_header

_SAME_PLACE_PX = 0.1


def read_map_corner(path: Path, pixel_size_angstrom: float) -> Float[Tensor, " 3"]:
    """Coordinates (x, y, z) of a map's first voxel in the frame of its atomic model, in Angstrom.

    ORIGIN counts where it is not zero, as in ChimeraX; else NXSTART and its like, in voxels, as in CCP4.

    Args:
        path: an MRC file.
        pixel_size_angstrom: pixel size of the map.
    """
    header = read_header(path, MapFileError)
    if _has_origin(header):
        return torch.tensor(header.origin_angstrom)
    return torch.tensor(header.start_px) * pixel_size_angstrom


def read_map_frame(path: Path, *, angpix: float | None = None) -> MapFrame:
    """Place and sampling of a map, for ``frame_differences``.

    Args:
        path: an MRC file.
        angpix: pixel size in Angstrom; overrides that of the header.
    """
    pixel_size = read_map_pixel_size(path) if angpix is None else angpix
    x, y, z = read_map_corner(path, pixel_size or 1.0).tolist()
    return MapFrame(path.name, pixel_size, (x, y, z))


def origin_notes(path: Path, pixel_size_angstrom: float) -> tuple[str, ...]:
    """A sentence where ORIGIN and NXSTART of a map are both set and place it differently, by 0.1 pixels or more.

    Args:
        path: an MRC file.
        pixel_size_angstrom: pixel size of the map.
    """
    header = read_header(path, MapFileError)
    starts = [start * pixel_size_angstrom for start in header.start_px]
    apart = max(abs(ours - theirs) for ours, theirs in zip(header.origin_angstrom, starts, strict=True))
    if not (any(header.start_px) and _has_origin(header)) or apart <= _SAME_PLACE_PX * pixel_size_angstrom:
        return ()
    origin, start = (", ".join(f"{value:.6g}" for value in place) for place in (header.origin_angstrom, starts))
    return (f"{path.name}: ORIGIN places its first voxel at ({origin}) Å, NXSTART at ({start}) Å; ORIGIN is taken.",)


def _has_origin(header: MrcHeader) -> bool:
    return any(header.origin_angstrom) and all(map(math.isfinite, header.origin_angstrom))
