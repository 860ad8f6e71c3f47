"""cryoSPARC's particle tables (``.cs``): read as a table in RELION's layout, and written back with poses.

Poses are rotation vectors of the transposed matrix A; shifts are in pixels of ``alignments3D/psize_A``; angles of the
CTF are in radians; images, groups, classes and half sets are counted from 0.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from cryoeq.domain.pose import Poses
from cryoeq.errors import ParticleFileError
from cryoeq.geometry.so3 import rotation_from_vector, rotation_vector
from cryoeq.io.aberrations import cs_aberration_notes
from cryoeq.io.atomic import atomic_path
from cryoeq.io.euler import relion_euler_deg
from cryoeq.io.star import StarTable, Text, decimals, text_column

Fields = Shaped[np.ndarray, " particles"]

CS_SUFFIX = ".cs"
_STREAM = b"\x94CSDAT"  # the compressed form of cryosparc-tools
_OPTICS = {
    "blob/psize_A": "rlnImagePixelSize",
    "ctf/accel_kv": "rlnVoltage",
    "ctf/cs_mm": "rlnSphericalAberration",
    "ctf/amp_contrast": "rlnAmplitudeContrast",
}
_CTF = {  # RELION's label and unit over theirs
    "ctf/df1_A": ("rlnDefocusU", 1.0),
    "ctf/df2_A": ("rlnDefocusV", 1.0),
    "ctf/df_angle_rad": ("rlnDefocusAngle", 180 / math.pi),
    "ctf/phase_shift_rad": ("rlnPhaseShift", 180 / math.pi),
    "ctf/bfactor": ("rlnCtfBfactor", 1.0),
}
_POSE, _SHIFT, _PIXEL, _SPLIT = (f"alignments3D/{name}" for name in ("pose", "shift", "psize_A", "split"))
_GROUP, _CLASS, _SIGN = "ctf/exp_group_id", "alignments3D/class", "blob/sign"


def read_cs(path: Path) -> tuple[StarTable, tuple[str, ...]]:
    """A table of cryoSPARC in the layout of RELION 3.1, and notes on it.

    Args:
        path: the ``.cs`` file of a particle output. Poses are those of ``alignments3D``, half sets its splits where
            there are two.

    Raises:
        ParticleFileError: not such a file, or without image names.
    """
    fields = _load(path)
    names = fields.dtype.names or ()
    if lost := [name for name in ("blob/path", "blob/idx", "blob/psize_A") if name not in names]:
        raise ParticleFileError(
            f"{path}: field {lost[0]} is missing",
            "cryoeq needs the images' names and pixel size",
            "Export the particles from cryoSPARC, which joins them with what their job passed through",
        )
    optics, group = _optics(fields)
    stacks = np.char.lstrip(fields["blob/path"].astype(np.str_), ">").tolist()
    numbers = (fields["blob/idx"].astype(np.int64) + 1).tolist()
    particles: dict[str, Text] = {
        "rlnImageName": text_column([f"{number:06d}@{stack}" for number, stack in zip(numbers, stacks, strict=True)]),
        "rlnOpticsGroup": (group + 1).astype(np.str_),
    }
    particles |= {
        label: decimals(fields[name] * np.float64(unit)) for name, (label, unit) in _CTF.items() if name in names
    }
    particles |= _alignments(fields)
    box = (
        np.full(len(optics["rlnOpticsGroup"]), str(int(fields["blob/shape"][0, 0]))) if "blob/shape" in names else None
    )
    optics |= {} if box is None else {"rlnImageSize": box}
    return StarTable(optics, particles, path), (*_contrast_note(path, fields), *cs_aberration_notes(path, fields))


def cs_field(label: str) -> str:
    """The field of cryoSPARC that RELION's label stands for, or the label itself where there is none."""
    labels = {label: field for field, label in _OPTICS.items()} | {label: field for field, (label, _) in _CTF.items()}
    return labels.get(label, label)


def write_cs(path: Path, source: Path, poses: Poses, *, half_set: Int[Tensor, " particles"] | None = None) -> None:
    """Write a table of cryoSPARC again, with poses: every field and row kept, ``alignments3D`` set.

    Args:
        path: the ``.cs`` file to create or replace.
        source: table that the particles came from.
        poses: poses, one per row of the table.
        half_set: half set of each row, 1 or 2; None leaves the splits unchanged.

    Raises:
        OutputError: the disk is full or the path cannot be written.
    """
    fields = _load(source)
    vectors = rotation_vector(poses.rotations.double().mT).cpu().numpy()
    pixel = fields["blob/psize_A"].astype(np.float64)
    values: dict[str, Fields] = {
        _POSE: vectors.astype("<f4"),
        _SHIFT: (poses.shifts_angstrom.double().cpu().numpy() / pixel[:, None]).astype("<f4"),
        _PIXEL: fields["blob/psize_A"],
    }
    if half_set is not None:
        values[_SPLIT] = (half_set.cpu().numpy() - 1).astype("<u4")
    kept = [name for name in fields.dtype.names or () if name not in values]
    types: list[Any] = [(name, fields.dtype[name]) for name in kept]
    types += [(name, column.dtype, column.shape[1:]) for name, column in values.items()]
    table = np.empty(len(fields), types)
    for name in kept:
        table[name] = fields[name]
    for name, column in values.items():
        table[name] = column
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, table, allow_pickle=False)


def _load(path: Path) -> Fields:
    advice = "Export the particles from cryoSPARC again"
    try:
        with path.open("rb") as file:
            if file.read(len(_STREAM)) == _STREAM:
                advice = "Write it as NumPy with cryosparc-tools: Dataset.load(FILE).save(FILE, format=1)"
                raise ParticleFileError(f"{path} is compressed", "cryoeq reads .cs files in NumPy's format", advice)
            file.seek(0)
            fields: Fields = np.load(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise ParticleFileError(f"{path} does not exist", "", "Check the path") from error
    except (OSError, ValueError, EOFError) as error:
        raise ParticleFileError(f"{path} cannot be read ({error})", "cryoeq reads .cs files", advice) from error
    if fields.dtype.names is None or fields.ndim != 1 or not len(fields):
        raise ParticleFileError(f"{path} holds no table of particles", "cryoeq reads .cs files", advice)
    return fields


def _optics(fields: Fields) -> tuple[dict[str, Text], Shaped[np.ndarray, " particles"]]:
    """The optics block, and each particle's row of it: one group per exposure group and setting of the microscope."""
    known = [name for name in _OPTICS if name in (fields.dtype.names or ())]
    exposure = fields[_GROUP] if _GROUP in (fields.dtype.names or ()) else np.zeros(len(fields))
    columns = np.stack([exposure.astype(np.float64), *(fields[name].astype(np.float64) for name in known)], 1)
    groups, index = np.unique(columns, axis=0, return_inverse=True)
    block: dict[str, Text] = {
        "rlnOpticsGroup": np.arange(1, len(groups) + 1).astype(np.str_),
        "rlnOpticsGroupName": np.array([f"exposureGroup{int(number)}" for number in groups[:, 0]]),
    }
    block |= {_OPTICS[name]: decimals(groups[:, column]) for column, name in enumerate(known, 1)}
    return block, index.reshape(-1)


def _alignments(fields: Fields) -> dict[str, Text]:
    names = fields.dtype.names or ()
    columns: dict[str, Text] = {}
    if {_POSE, _SHIFT, _PIXEL} <= set(names):
        vectors = torch.from_numpy(fields[_POSE].astype(np.float64))
        euler = relion_euler_deg(rotation_from_vector(vectors).mT).numpy()
        columns |= {f"rlnAngle{name}": decimals(euler[:, axis]) for axis, name in enumerate(("Rot", "Tilt", "Psi"))}
        shifts = fields[_SHIFT] * fields[_PIXEL].astype(np.float64)[:, None]
        columns |= {f"rlnOrigin{name}Angst": decimals(shifts[:, axis]) for axis, name in enumerate("XY")}
    if _CLASS in names:
        columns["rlnClassNumber"] = (fields[_CLASS].astype(np.int64) + 1).astype(np.str_)
    if _SPLIT in names and len(np.unique(fields[_SPLIT])) == 2:
        columns["rlnRandomSubset"] = (fields[_SPLIT].astype(np.int64) + 1).astype(np.str_)
    return columns


def _contrast_note(path: Path, fields: Fields) -> tuple[str, ...]:
    if _SIGN not in (fields.dtype.names or ()):
        return ()
    shade = {-1.0: "dark", 1.0: "bright"}.get(float(fields[_SIGN][0]))
    return () if shade is None else (f"{path.name}: cryoSPARC takes the protein to be {shade} in the stored images.",)
