"""Optics and CTF beyond their values: how the images were stored, and values that no microscope has."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoeq.domain.events import Remark
from cryoeq.domain.optics import CtfParameters
from cryoeq.errors import ParticleFileError
from cryoeq.io.star import StarTable

PREMULTIPLIED, PHASE_FLIPPED = "rlnCtfDataAreCtfPremultiplied", "rlnCtfDataArePhaseFlipped"
_DATA, _OPTIMISER = "_data.star", "_optimiser.star"  # RELION writes these of one iteration side by side

_MICROMETRES = 25.0  # in Angstrom: no fit is so close to focus, while a defocus in micrometres is always below
_SMALL_DEFOCUS, _LARGE_DEFOCUS, _LARGEST_DEFOCUS = 1e3, 1e5, 1e6  # Angstrom
_LARGE_AMPLITUDE_CONTRAST = 0.5
_SMALL_BOX, _LARGE_BOX = 30.0, 10_000.0  # Angstrom: no particle has room in the one, none needs the other


class _Limits(NamedTuple):
    """The range of a parameter outside of which there is no microscope, and units that are mistaken for its own.

    Args:
        column: RELION's label.
        low: smallest value.
        high: largest value.
        unit: its unit.
        expected: the range in words.
        mistaken: units with what one of them is in the right unit.
    """

    column: str
    low: float
    high: float
    unit: str
    expected: str
    mistaken: tuple[tuple[str, float], ...]


# Cs-corrected microscopes can have a Cs slightly below 0, phase plates were once described by an amplitude contrast up
# to 1; typical values are 0 to 2.7 mm and 0.07 to 0.1.
_LIMITS = {
    "voltage_kv": _Limits("rlnVoltage", 60, 1500, "kV", "60 to 1500 kV", (("V", 1e-3), ("MV", 1e3))),
    "spherical_aberration_mm": _Limits(
        "rlnSphericalAberration", -1, 10, "mm", "0 to 10 mm", (("µm", 1e-3), ("nm", 1e-6), ("Å", 1e-7))
    ),
    "amplitude_contrast": _Limits("rlnAmplitudeContrast", 0, 1, "", "a fraction of 0 to 1", (("percent", 0.01),)),
    "defocus_u_angstrom": _Limits("rlnDefocusU", -_LARGEST_DEFOCUS, _LARGEST_DEFOCUS, "Å", "up to 1,000,000 Å", ()),
    "defocus_v_angstrom": _Limits("rlnDefocusV", -_LARGEST_DEFOCUS, _LARGEST_DEFOCUS, "Å", "up to 1,000,000 Å", ()),
    "bfactor_angstrom2": _Limits("rlnCtfBfactor", -1e4, 1e5, "Å²", "-10,000 to 100,000 Å²", ()),
    "scale": _Limits("rlnCtfScalefactor", -1e3, 1e3, "", "about 1", ()),
}


def ctf_flag(star: StarTable, column: str, index: Int[Tensor, " particles"]) -> Float[Tensor, " particles"]:
    """A flag on how the images were stored, 1 or 0 for each particle.

    Args:
        star: table in the 3.1 layout.
        column: label of the flag, of the particles (RELION 3.0) or else of the optics groups; 0 where there is none.
        index: row of the optics table of each particle.

    Raises:
        ParticleFileError: a value is not a number.
    """
    if column in star.particles:
        return torch.from_numpy(star.floats(column) != 0).float()
    if column not in (star.optics or {}):
        return torch.zeros(len(star))
    return torch.from_numpy(star.optics_floats(column) != 0).float()[index]


def with_flag_of_optimiser(star: StarTable) -> StarTable:
    """The table with the flag of phase-flipped images that RELION keeps in its optimiser star, not in the data star.

    Args:
        star: table in the 3.1 layout; changed where it is ``NAME_data.star``, has no such flag itself, and the
            ``NAME_optimiser.star`` beside it says that the images are phase-flipped.
    """
    path, optics = star.path, star.optics or {}
    if path is None or not path.name.endswith(_DATA) or PHASE_FLIPPED in optics or PHASE_FLIPPED in star.particles:
        return star
    if not _says_flipped(path.with_name(path.name.removesuffix(_DATA) + _OPTIMISER)):
        return star
    flag = np.full(len(next(iter(optics.values()))), "1")
    return replace(star, optics={**optics, PHASE_FLIPPED: flag})


def _says_flipped(optimiser: Path) -> bool:
    try:
        words = optimiser.read_text(errors="replace").split()
    except OSError:
        return False
    return any(pair == (f"_{PHASE_FLIPPED}", "1") for pair in pairwise(words))


def check_ctf(star: StarTable, ctf: CtfParameters, index: Int[Tensor, " particles"]) -> None:
    """Refuse values that no microscope has, most of which are in another unit.

    Args:
        star: table in the 3.1 layout, for the message.
        ctf: what was read of it; optics groups that no particle uses are not in it.
        index: row of the optics table of each particle.

    Raises:
        ParticleFileError: the message names the row or optics group, the column, the value and the likely unit.
    """
    for field, limits in _LIMITS.items():
        values = getattr(ctf, field)
        if (outside := (values < limits.low) | (values > limits.high)).any():
            row = int(outside.nonzero()[0])
            raise ParticleFileError(
                f"{_place(star, limits.column, row, index)} is {_stated(star, limits.column, row, index)}",
                f"{limits.expected} {'were' if limits.unit else 'was'} expected",
                _likely_unit(float(values[row]), limits),
            )
    _refuse_micrometres(star, ctf, index)


def _likely_unit(value: float, limits: _Limits) -> str:
    for unit, factor in limits.mistaken:
        if limits.low <= value * factor <= limits.high:
            return f"If it is in {unit}, write {f'{value * factor:g} {limits.unit}'.strip()}"
    return "Correct the value, or pass --no-ctf to work without a CTF"


def _refuse_micrometres(star: StarTable, ctf: CtfParameters, index: Int[Tensor, " particles"]) -> None:
    """Whole optics groups in micrometres; single values may be particles that are in focus."""
    size = torch.maximum(ctf.defocus_u_angstrom.abs(), ctf.defocus_v_angstrom.abs())
    largest = torch.zeros(int(index.max()) + 1).scatter_reduce(0, index, size, "amax")
    if ((largest > 0) & (largest < _MICROMETRES)).any():
        row = int(((largest > 0) & (largest < _MICROMETRES))[index].nonzero()[0])
        value = float(ctf.defocus_u_angstrom[row])
        raise ParticleFileError(
            f"{_place(star, 'rlnDefocusU', row, index)} is {_stated(star, 'rlnDefocusU', row, index)}, and no defocus "
            f"of its optics group is above {float(largest[index[row]]):g}",
            "Defocus is in Å, 1,000 to 100,000 as a rule",
            f"If it is in µm, write {value * 1e4:g} Å",
        )


def _place(star: StarTable, column: str, row: int, index: Int[Tensor, " particles"]) -> str:
    """File, row or optics group, and column of a value."""
    where, name = star.where, star.name(column)
    if column in star.particles or name != column:  # tables of cryoSPARC have all fields in every row
        return f"{where}, row {row + 1}: {name}"
    return f"{where}, optics group {(star.optics or {})['rlnOpticsGroup'][int(index[row])]}: {name}"


def _stated(star: StarTable, column: str, row: int, index: Int[Tensor, " particles"]) -> str:
    """The value as it stands in the file."""
    if column in star.particles:
        return str(star.particles[column][row])
    return str((star.optics or {})[column][int(index[row])])


def ctf_notes(star: StarTable, ctf: CtfParameters) -> tuple[str, ...]:
    """Notes for the user on how the images were stored, and on values that are doubtful.

    Args:
        star: table that the CTF was read from.
        ctf: parameters of the particles.
    """
    notes: list[str] = []
    if bool(ctf.is_premultiplied.any()):
        notes.append(Remark(f"The images were multiplied by their CTF already ({PREMULTIPLIED})."))
    if bool(ctf.is_phase_flipped.any()):
        few = "" if bool(ctf.is_phase_flipped.all()) else f"{int(ctf.is_phase_flipped.sum())} of "
        notes.append(
            Remark(
                f"The phases of {few}the images were flipped already ({PHASE_FLIPPED}): the absolute value of the CTF "
                "is used for them."
            )
        )
    u, v = ctf.defocus_u_angstrom, ctf.defocus_v_angstrom
    smallest, largest = torch.minimum(u, v), torch.maximum(u, v)
    degrees = torch.rad2deg(ctf.phase_shift_rad)
    defocus = f"{star.name('rlnDefocusU')} or {star.name('rlnDefocusV')}"
    doubts = (
        (
            smallest < _SMALL_DEFOCUS,
            smallest,
            f"{defocus} is below 1,000 Å or negative",
            "phase plate, overfocus, or nm?",
        ),
        (largest > _LARGE_DEFOCUS, largest, f"{defocus} is above 100,000 Å", "check it"),
        (
            ctf.amplitude_contrast > _LARGE_AMPLITUDE_CONTRAST,
            ctf.amplitude_contrast,
            f"{star.name('rlnAmplitudeContrast')} is above 0.5",
            f"0.07 to 0.1 is usual; a phase plate belongs into {star.name('rlnPhaseShift')}",
        ),
        (
            (degrees < -180.01) | (degrees > 360.01),
            degrees,
            f"{star.name('rlnPhaseShift')} is no angle of -180 to 360 degrees",
            "",
        ),
        (ctf.scale <= 0, ctf.scale, "rlnCtfScalefactor is zero or negative", "such images count for nothing, or less"),
    )
    return (*notes, *(_doubt(star, *doubt) for doubt in doubts if bool(doubt[0].any())))


def pixel_size_notes(star: StarTable, box_size_px: int, pixel_size_angstrom: float) -> tuple[str, ...]:
    """A note for the user on a pixel size that may be in another unit.

    Args:
        star: table that it was read from.
        box_size_px: side of the images.
        pixel_size_angstrom: pixel size of the images.
    """
    side = box_size_px * pixel_size_angstrom
    if _SMALL_BOX <= side <= _LARGE_BOX:
        return ()
    unit, factor = ("nm", 10) if side < _SMALL_BOX else ("pm", 0.01)
    return (
        f"{star.path or 'star'}: images of {box_size_px} px of {pixel_size_angstrom:g} Å are {side:.3g} Å across: is "
        f"the pixel size in {unit}? Then give --angpix {pixel_size_angstrom * factor:g}.",
    )


def _doubt(star: StarTable, where: Bool[Tensor, " particles"], values: Tensor, what: str, hint: str) -> str:
    row, count = int(where.nonzero()[0]), int(where.sum())
    text = f"{star.path or 'star'}: {what} in {count} of {len(where)} rows, first in row {row + 1} "
    return f"{text}({float(values[row]):g}){f': {hint}' if hint else ''}{'' if hint.endswith('?') else '.'}"
