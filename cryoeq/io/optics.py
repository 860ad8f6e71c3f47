"""Optics groups, pixel size and CTF of a star file, whatever the RELION version that wrote it.

Everything is first brought into the 3.1 layout (``with_optics_block``); the rest of cryoeq reads, and writes, that one.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from cryoeq.domain.optics import CtfParameters, Optics
from cryoeq.errors import ParticleFileError
from cryoeq.io.optics_checks import PHASE_FLIPPED, PREMULTIPLIED, check_ctf, ctf_flag
from cryoeq.io.star import Numbers, StarTable
from cryoeq.io.star_text import Text

_NO_CTF = "Run CTF estimation again, or pass --no-ctf"
# RELION reads no star without these; they stand in where the user works without a CTF, and nothing comes of them.
_PLACEHOLDERS = {"rlnVoltage": 300.0, "rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1}
_SAME_PIXEL_SIZE = 1e-3
_SMALLEST_PIXEL_ANGSTROM, _LARGEST_PIXEL_ANGSTROM = 0.01, 1000.0  # as of --angpix


def with_optics_block(
    star: StarTable, *, angpix: float | None = None, box_size_px: int | None = None, ignore_ctf: bool = False
) -> StarTable:
    """A star file in the layout of RELION 3.1, with all columns that RELION requires.

    Columns of the file stay verbatim, but for a pixel size that ``angpix`` overrides; those that RELION requires are
    added.

    Args:
        star: star file of RELION 3.0 (voltage, Cs and amplitude contrast per particle, no optics block) or later.
        angpix: pixel size in Angstrom; overrides that of the file.
        box_size_px: side of the images; None if unknown.
        ignore_ctf: whether microscope parameters may be missing.

    Raises:
        ParticleFileError: a column is missing or the pixel size is.
    """
    if star.optics is None:
        star = _from_relion30(star, star_pixel_size(star, angpix=angpix), ignore_ctf=ignore_ctf)
    optics = dict(star.optics or {})
    n_groups = len(next(iter(optics.values())))
    if angpix is not None or "rlnImagePixelSize" not in optics:
        optics["rlnImagePixelSize"] = np.full(n_groups, f"{star_pixel_size(star, angpix=angpix):.6f}")
    numbers = [str(number + 1) for number in range(n_groups)]
    optics.setdefault("rlnOpticsGroup", np.array(numbers))
    optics.setdefault("rlnOpticsGroupName", np.array([f"opticsGroup{number}" for number in numbers]))
    if ignore_ctf:
        for column, value in _PLACEHOLDERS.items():
            optics.setdefault(column, np.full(n_groups, f"{value:.6f}"))
    if box_size_px is not None:
        optics.setdefault("rlnImageSize", np.full(n_groups, str(box_size_px)))
    optics.setdefault("rlnImageDimensionality", np.full(n_groups, "2"))
    particles = dict(star.particles)
    if "rlnOpticsGroup" not in particles and n_groups == 1:
        particles["rlnOpticsGroup"] = np.full(len(star), optics["rlnOpticsGroup"][0])
    return replace(star, optics=optics, particles=particles)


def _from_relion30(star: StarTable, pixel_size_angstrom: float, *, ignore_ctf: bool) -> StarTable:
    """One optics group for each combination of microscope parameters, in the order of their first particle."""
    default = _PLACEHOLDERS if ignore_ctf else {}
    columns = [star.floats(column, default=default.get(column), advice=_NO_CTF) for column in _PLACEHOLDERS]
    groups, first, index = np.unique(np.stack(columns, 1), axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    numbers = [str(number + 1) for number in range(len(groups))]
    optics: dict[str, Text] = {
        "rlnOpticsGroup": np.array(numbers),
        "rlnOpticsGroupName": np.array([f"opticsGroup{number}" for number in numbers]),
        **{column: np.array([f"{value:.6f}" for value in groups[order, i]]) for i, column in enumerate(_PLACEHOLDERS)},
        "rlnImagePixelSize": np.full(len(groups), f"{pixel_size_angstrom:.6f}"),
    }
    group_number = np.argsort(order)[index.reshape(-1)] + 1
    particles = {**star.particles, "rlnOpticsGroup": group_number.astype(np.str_)}
    return replace(star, optics=optics, particles=particles)


def star_pixel_size(star: StarTable, *, angpix: float | None = None) -> float:
    """The one pixel size of all images of a star file, in Angstrom.

    Args:
        star: star file of any RELION version.
        angpix: pixel size in Angstrom; overrides that of the file.

    Raises:
        ParticleFileError: it is missing, zero, or differs between particles.
    """
    sizes = np.array([angpix], dtype=np.float64) if angpix is not None else _pixel_sizes(star)
    is_sound = (sizes >= _SMALLEST_PIXEL_ANGSTROM) & (sizes <= _LARGEST_PIXEL_ANGSTROM)
    if not is_sound.all():
        found = f"{star.where}: pixel size is {float(sizes[~is_sound][0]):g}"
        expected = f"Expected {_SMALLEST_PIXEL_ANGSTROM:g} to {_LARGEST_PIXEL_ANGSTROM:g} Å"
        raise ParticleFileError(found, expected, "Give it with --angpix")
    if sizes.max() > sizes.min() * (1 + _SAME_PIXEL_SIZE):
        listed = ", ".join(f"{size:g}" for size in np.unique(sizes))
        expected = "cryoeq reconstructs from images of one pixel size"
        raise ParticleFileError(
            f"{star.where}: pixel sizes differ ({listed} Å)", expected, "Rescale the particles to one of them"
        )
    return float(sizes[0])


def star_box_angstrom(star: StarTable) -> float | None:
    """Side of the images of the first optics group in use, in Angstrom; None where the file does not state it."""
    if star.optics is None or not {"rlnImageSize", "rlnImagePixelSize"} <= star.optics.keys():
        return None
    used = used_optics(star)[0] if "rlnOpticsGroup" in star.particles else star
    return float(used.optics_floats("rlnImageSize")[0] * used.optics_floats("rlnImagePixelSize")[0])


def _pixel_sizes(star: StarTable) -> Numbers:
    """Pixel size of each optics group in use, or of each particle (3.0)."""
    if star.optics is not None and "rlnImagePixelSize" in star.optics:
        return used_optics(star)[0].optics_floats("rlnImagePixelSize")
    if {"rlnDetectorPixelSize", "rlnMagnification"} <= star.particles.keys():
        magnification = star.floats("rlnMagnification")
        # Detector pixels are in micrometres; a magnification of 0 makes a pixel size of 0, which is reported as such.
        is_magnified = magnification > 0
        sizes: Numbers = (
            star.floats("rlnDetectorPixelSize") * is_magnified * 1e4 / np.where(is_magnified, magnification, 1)
        )
        return sizes
    for column in ("rlnImagePixelSize", "rlnPixelSize"):
        if column in star.particles:
            return star.floats(column)
    expected = (
        "cryoeq needs rlnImagePixelSize, rlnDetectorPixelSize with rlnMagnification, or the header of a bare stack"
    )
    raise ParticleFileError(f"{star.where}: pixel size missing", expected, "Give it with --angpix")


def used_optics(star: StarTable) -> tuple[StarTable, Int[Tensor, " particles"]]:
    """A table with those of its optics groups that particles belong to, and the row of each particle's group there.

    A selection of particles keeps the groups of all, some of them without sense for those that are left.

    Raises:
        ParticleFileError: a particle names a group that does not exist, or names none where there are several.
    """
    index = _optics_index(star)
    used, of_used = torch.unique(index, return_inverse=True)
    optics = {name: column[used.numpy()] for name, column in (star.optics or {}).items()}
    return replace(star, optics=optics), of_used


def _optics_index(star: StarTable) -> Int[Tensor, " particles"]:
    """Row of the optics table that each particle belongs to; the group numbers may be any, in any order.

    Raises:
        ParticleFileError: a particle names a group that does not exist or exists twice, or names none where there are
            several.
    """
    optics = star.optics or {}
    if len(next(iter(optics.values()), ())) == 1 and "rlnOpticsGroup" not in star.particles:
        return torch.zeros(len(star), dtype=torch.long)
    groups = star.optics_floats("rlnOpticsGroup")
    group_numbers = star.floats("rlnOpticsGroup")
    if (unknown := np.flatnonzero(~np.isin(group_numbers, groups))).size:
        row = int(unknown[0])
        group = star.particles["rlnOpticsGroup"][row]
        found = f"{star.where}, row {row + 1}: optics group {group} is not in the optics block"
        raise ParticleFileError(found, "Every particle needs its optics group", star.wording.repair)
    order = np.argsort(groups, kind="stable")
    index = order[np.searchsorted(groups[order], group_numbers)]
    for first in np.unique(index).tolist():
        if len(rows := np.flatnonzero(groups == groups[first]) + 1) > 1:
            found = f"{star.where}: optics group {groups[first]:g} is in rows {rows[0]} and {rows[1]} of data_optics"
            advice = "Number the groups anew, in the particles too, as RELION does where it joins star files"
            raise ParticleFileError(found, "Each optics group has a number of its own", advice)
    return torch.from_numpy(index)


def read_optics(star: StarTable, pixel_size_angstrom: float) -> tuple[Optics, ...]:
    """The optics groups of a table in the 3.1 layout, in its order."""
    names = (star.optics or {})["rlnOpticsGroupName"].tolist()
    columns = [star.optics_floats(column).tolist() for column in _PLACEHOLDERS]
    index = _optics_index(star)
    flagged = set(index[ctf_flag(star, PREMULTIPLIED, index) > 0].tolist())
    rows = enumerate(zip(names, *columns, strict=True))
    return tuple(Optics(name, pixel_size_angstrom, kv, cs, q0, i in flagged) for i, (name, kv, cs, q0) in rows)


def read_ctf(star: StarTable, optics: tuple[Optics, ...], index: Int[Tensor, " particles"]) -> CtfParameters:
    """The CTF of each particle.

    Raises:
        ParticleFileError: a defocus column is missing (named), or a value is not a number or none that a microscope
            has (row or optics group named).
    """

    def per_particle(column: str, default: float | None = None) -> Tensor:
        return torch.from_numpy(star.floats(column, default=default, advice=_NO_CTF)).float()

    def per_group(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32)[index]

    ctf = CtfParameters(
        defocus_u_angstrom=per_particle("rlnDefocusU"),
        defocus_v_angstrom=per_particle("rlnDefocusV"),
        defocus_angle_rad=per_particle("rlnDefocusAngle") * (math.pi / 180),
        phase_shift_rad=per_particle("rlnPhaseShift", 0.0) * (math.pi / 180),
        bfactor_angstrom2=per_particle("rlnCtfBfactor", 0.0),
        scale=per_particle("rlnCtfScalefactor", 1.0),
        voltage_kv=per_group([group.voltage_kv for group in optics]),
        spherical_aberration_mm=per_group([group.spherical_aberration_mm for group in optics]),
        amplitude_contrast=per_group([group.amplitude_contrast for group in optics]),
        is_premultiplied=ctf_flag(star, PREMULTIPLIED, index),
        is_phase_flipped=ctf_flag(star, PHASE_FLIPPED, index),
    )
    check_ctf(star, ctf, index)
    return ctf
