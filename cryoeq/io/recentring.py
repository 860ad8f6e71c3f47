"""Coordinates of particles moved to the centres that were found, for another extraction.

A particle is extracted around whole pixels of its micrograph. Its coordinates move by as many of them as its offset
has, and what is left stays its offset, as in RELION's re-extraction: the image that is extracted there is centred
within half a pixel. A positive offset moves the observed image to the right, so that the particle lies to the left of
the old centre (the conventions page, "Shift").
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from cryoeq.errors import ConfigError, ParticleFileError
from cryoeq.io.cryosparc import read_cs_rows, write_cs_fields
from cryoeq.io.labels import COORDINATES
from cryoeq.io.optics import star_pixel_size
from cryoeq.io.particles import ORIGIN_ANGSTROM, ORIGIN_PX
from cryoeq.io.star import StarTable, decimals
from cryoeq.io.star_text import read_blocks, write_blocks

_PIXEL = "rlnMicrographPixelSize"
_CENTRE = ("location/center_x_frac", "location/center_y_frac")
_CS_SHAPE, _CS_MICROGRAPH_PIXEL = "location/micrograph_shape", "location/micrograph_psize_A"
_CS_SHIFT, _CS_PIXEL = "alignments3D/shift", "alignments3D/psize_A"
_NO_PIXEL = "Give the pixel size of the micrographs, in which coordinates are counted, by --micrograph-angpix"


@dataclass(frozen=True)
class Moves:
    """How far particles were moved.

    Args:
        pixels: of each particle along x and y, whole pixels of the micrograph.
        outside: particles whose new centre lies outside of their micrograph; None where its size is not known.
    """

    pixels: Float[Tensor, "particles 2"]
    outside: int | None


def write_recentred_star(
    path: Path, table: StarTable, is_kept: Bool[np.ndarray, " particles"], micrograph_pixel_angstrom: float | None
) -> Moves:
    """Write rows of a star file with their coordinates moved; other tables and columns stay, comments do not.

    Args:
        path: the file to create or replace.
        table: particles with coordinates and origins, as read from a file.
        is_kept: for each of its rows, whether it is written.
        micrograph_pixel_angstrom: pixel size of the micrographs; None takes ``rlnMicrographPixelSize``.

    Raises:
        ParticleFileError: coordinates or origins are missing, or not numbers.
        ConfigError: the pixel size of the micrographs is not known.
        OutputError: the disk is full or the path cannot be written.
    """
    pixel = _star_micrograph_pixel(table) if micrograph_pixel_angstrom is None else micrograph_pixel_angstrom
    columns = dict(table.particles)
    moves = []
    for axis, label in enumerate(COORDINATES):
        units = _origins(table, axis)
        name, unit = next(iter(units.items()))
        offset_px = table.floats(name) * unit / pixel
        move = np.round(offset_px)
        columns[label] = decimals(table.floats(label, advice="Give particles that were picked on micrographs") - move)
        columns |= {each: decimals((offset_px - move) * pixel / unit) for each, unit in units.items()}
        moves.append(-move[is_kept])
    blocks = read_blocks(table.path) if table.path is not None else {}
    blocks[table.block] = {name: column[is_kept] for name, column in columns.items()}
    write_blocks(path, blocks)
    return Moves(torch.from_numpy(np.stack(moves, 1)), None)


def write_recentred_cs(
    path: Path, source: Path, is_kept: Bool[np.ndarray, " particles"], micrograph_pixel_angstrom: float | None
) -> Moves:
    """Write rows of a table of cryoSPARC with ``location/center_*`` moved, and ``alignments3D/shift`` with it.

    Args:
        path: the ``.cs`` file to create or replace.
        source: the table.
        is_kept: for each of its rows, whether it is written.
        micrograph_pixel_angstrom: pixel size of the micrographs; None takes ``location/micrograph_psize_A``.

    Raises:
        ParticleFileError: locations or alignments are missing.
        ConfigError: the pixel size of the micrographs is not known.
        OutputError: the disk is full or the path cannot be written.
    """
    fields = read_cs_rows(source, is_kept)
    needed = [*_CENTRE, _CS_SHAPE, _CS_SHIFT, _CS_PIXEL]
    if missing := [name for name in needed if name not in (fields.dtype.names or ())]:
        raise ParticleFileError(
            f"{source}: field {missing[0]} is missing", "Coordinates are moved by location/* and alignments3D/*",
            "Export the particles from cryoSPARC, which joins them with what their job passed through",
        )  # fmt: skip
    pixel: float | Shaped[np.ndarray, " particles"]
    if micrograph_pixel_angstrom is not None:
        pixel = micrograph_pixel_angstrom
    elif _CS_MICROGRAPH_PIXEL in (fields.dtype.names or ()):
        pixel = fields[_CS_MICROGRAPH_PIXEL].astype(np.float64)
    else:
        raise ConfigError(f"{source}: field {_CS_MICROGRAPH_PIXEL} is missing", "", _NO_PIXEL)
    shape = fields[_CS_SHAPE].astype(np.float64)[:, ::-1]  # rows, then columns
    moves, is_outside = [], np.zeros(len(fields), dtype=bool)
    for axis, name in enumerate(_CENTRE):
        offset_px = fields[_CS_SHIFT][:, axis].astype(np.float64) * fields[_CS_PIXEL] / pixel
        move = np.round(offset_px)
        centre = fields[name].astype(np.float64) - move / shape[:, axis]
        is_outside |= (centre < 0) | (centre > 1)
        fields[name] = centre
        fields[_CS_SHIFT][:, axis] = (offset_px - move) * pixel / fields[_CS_PIXEL]
        moves.append(-move)
    write_cs_fields(path, fields)
    return Moves(torch.from_numpy(np.stack(moves, 1)), int(is_outside.sum()))


def _origins(table: StarTable, axis: int) -> dict[str, float]:
    """The columns of an origin, of which the first is read, and their units in Angstrom."""
    units = {ORIGIN_ANGSTROM[axis]: 1.0} if ORIGIN_ANGSTROM[axis] in table.particles else {}
    if ORIGIN_PX[axis] in table.particles:
        units[ORIGIN_PX[axis]] = star_pixel_size(table)
    if units:
        return units
    raise ParticleFileError(
        f"{table.where}: column {ORIGIN_ANGSTROM[axis]} is missing",
        "Coordinates are moved by the offsets that were found",
        "Give run_data.star of a reconstruction or refinement",
    )


def _star_micrograph_pixel(table: StarTable) -> Shaped[np.ndarray, " particles"]:
    """Pixel size of each particle's micrograph, from the optics groups."""
    if _PIXEL not in (table.optics or {}):
        raise ConfigError(f"{table.where}: the optics groups have no {_PIXEL}", "", _NO_PIXEL)
    sizes = table.optics_floats(_PIXEL)
    groups = dict(zip((table.optics or {})["rlnOpticsGroup"].tolist(), sizes.tolist(), strict=True))
    return np.array([groups[group] for group in table.require("rlnOpticsGroup").tolist()])
