"""cryoSPARC's particle tables (``.cs``): read as a table in RELION's layout, and written back with poses.

Poses are rotation vectors of the transposed matrix A; shifts are in pixels of ``alignments3D/psize_A``; angles of the
CTF are in radians; images, groups, classes and half sets are counted from 0.
"""

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from cryoeq.domain.events import Remark
from cryoeq.domain.optics import CtfParameters
from cryoeq.domain.pose import Poses
from cryoeq.errors import ParticleFileError
from cryoeq.geometry.so3 import rotation_from_vector, rotation_vector
from cryoeq.io.aberrations import cs_aberration_notes
from cryoeq.io.atomic import atomic_path
from cryoeq.io.euler import relion_euler_deg
from cryoeq.io.foreign import recognise
from cryoeq.io.labels import MICROGRAPH_NAME
from cryoeq.io.star import StarTable, Wording, decimals
from cryoeq.io.star_text import Text, text_column

Fields = Shaped[np.ndarray, "particles ..."]

CS_SUFFIX = ".cs"
_NUMPY = b"\x93NUMPY"
_PEEKED = 1024
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
_DEFOCUS = ("ctf/df1_A", "ctf/df2_A", "ctf/df_angle_rad")
_POSE, _SHIFT, _PIXEL, _SPLIT = (f"alignments3D/{name}" for name in ("pose", "shift", "psize_A", "split"))
_LARGEST_ROTATION = 30.0  # radians: some programs add whole turns
_UID, _MICROGRAPH, _NO_MICROGRAPH = "uid", "location/micrograph_path", "unknown"
_PASSED_THROUGH = "*passthrough_particles*.cs"  # beside the table of a job: the fields that it did not change
_GROUP, _CLASS, _SIGN, _SHAPE = "ctf/exp_group_id", "alignments3D/class", "blob/sign", "blob/shape"
_OF_CLASSES = "alignments3D/class_posterior", "alignments3D/class_ess"
_OTHER_TABLES = {  # by a field that only they have
    "map/path": "volumes",
    "location/center_x_frac": "picked particles that were not extracted",
    "micrograph_blob/path": "micrographs",
    "movie_blob/path": "movies",
}
_EXPORT = "Export the particles from cryoSPARC again"


def read_cs(path: Path) -> tuple[StarTable, tuple[str, ...]]:
    """A table of cryoSPARC in the layout of RELION 3.1, and notes on it.

    Args:
        path: the ``.cs`` file of a particle output. Poses are those of ``alignments3D``, half sets its splits where
            there are two, micrographs those of ``location`` in it or in the passthrough file beside it.

    Raises:
        ParticleFileError: not such a file, without image names, or a field is not of the kind that cryoSPARC writes.
    """
    table = _CsTable(path, _load(path))
    if lost := [name for name in ("blob/path", "blob/idx", "blob/psize_A") if name not in table.names]:
        other = next((what for field, what in _OTHER_TABLES.items() if field in table.names), None)
        raise ParticleFileError(
            f"{path}{f' is a table of {other}' if other else ''}: field {lost[0]} is missing",
            "cryoeq needs the images' names and pixel size",
            "Export the particles from cryoSPARC, which joins them with what their job passed through",
        )
    optics, group = _optics(table)
    stacks = table.text("blob/path")
    numbers = (table.numbers("blob/idx").astype(np.int64) + 1).tolist()
    particles: dict[str, Text] = {
        "rlnImageName": text_column([f"{number:06d}@{stack}" for number, stack in zip(numbers, stacks, strict=True)]),
        "rlnOpticsGroup": (group + 1).astype(np.str_),
    }
    particles |= {
        label: decimals(table.numbers(name) * np.float64(unit))
        for name, (label, unit) in _CTF.items()
        if name in table.names
    }
    if names := _micrographs(table):
        particles[MICROGRAPH_NAME] = text_column([name or _NO_MICROGRAPH for name in names])
    alignments, notes = _alignments(table)
    notes = (*_contrast_note(table), *notes, *cs_aberration_notes(path, table.fields))
    return StarTable(optics, particles | alignments, path, wording=_wording(table)), notes


def write_cs(
    path: Path,
    source: Path,
    poses: Poses,
    *,
    half_set: Int[Tensor, " particles"] | None = None,
    class_number: Int[Tensor, " particles"] | None = None,
    ctf: CtfParameters | None = None,
) -> None:
    """Write a table of cryoSPARC again, with poses: every field and row kept, ``alignments3D`` set.

    Where classes are given, those of an earlier classification do not outlive them: its probability of the class and
    its effective number of classes, where the table has them, become 1, as of a refinement of one structure.

    Args:
        path: the ``.cs`` file to create or replace.
        source: table that the particles came from.
        poses: poses, one per row of the table.
        half_set: half set of each row, 1 or 2; None leaves the splits unchanged.
        class_number: class of each row, from 1; None leaves classes unchanged.
        ctf: refined parameters, of which both defocus values and the angle are set; None leaves them unchanged.

    Raises:
        OutputError: the disk is full or the path cannot be written.
    """
    fields = _load(source)
    pixel = _CsTable(source, fields).numbers("blob/psize_A").astype(np.float64)
    vectors = rotation_vector(poses.rotations.double().mT).cpu().numpy()
    values: dict[str, Fields] = {
        _POSE: vectors.astype("<f4"),
        _SHIFT: (poses.shifts_angstrom.double().cpu().numpy() / pixel[:, None]).astype("<f4"),
        _PIXEL: fields["blob/psize_A"],
    }
    if half_set is not None:
        values[_SPLIT] = (half_set.cpu().numpy() - 1).astype("<u4")
    if class_number is not None:
        values[_CLASS] = (class_number.cpu().numpy() - 1).astype("<u4")
        present = [name for name in _OF_CLASSES if name in (fields.dtype.names or ())]
        values |= {name: np.ones(len(fields), "<f4") for name in present}
    if ctf is not None:
        defocus = (ctf.defocus_u_angstrom, ctf.defocus_v_angstrom, ctf.defocus_angle_rad)
        values |= {name: each.cpu().numpy().astype("<f4") for name, each in zip(_DEFOCUS, defocus, strict=True)}
    kept = [name for name in fields.dtype.names or () if name not in values]
    types: list[Any] = [(name, fields.dtype[name]) for name in kept]
    types += [(name, column.dtype, column.shape[1:]) for name, column in values.items()]
    table = np.empty(len(fields), types)
    for name in kept:
        table[name] = fields[name]
    for name, column in values.items():
        table[name] = column
    write_cs_fields(path, table)


def write_cs_rows(path: Path, source: Path, is_kept: Bool[np.ndarray, " particles"]) -> None:
    """Write some rows of a table of cryoSPARC, every field unchanged.

    Args:
        path: the ``.cs`` file to create or replace.
        source: the table.
        is_kept: for each of its rows, whether it is written.

    Raises:
        ParticleFileError: the table has another number of rows.
        OutputError: the disk is full or the path cannot be written.
    """
    write_cs_fields(path, read_cs_rows(source, is_kept))


def read_cs_rows(source: Path, is_kept: Bool[np.ndarray, " rows"]) -> Fields:
    """Some rows of a table of cryoSPARC, with all fields.

    Args:
        source: the table.
        is_kept: for each of its rows, whether it is wanted.

    Raises:
        ParticleFileError: the table has another number of rows.
    """
    fields = _load(source)
    if len(fields) != len(is_kept):
        found = f"{source} has {len(fields)} rows"
        raise ParticleFileError(found, f"The same {len(is_kept)} particles were expected", "Give a star file or a .cs")
    return fields[is_kept]


def write_cs_fields(path: Path, fields: Fields) -> None:
    """Write a table of cryoSPARC.

    Args:
        path: the ``.cs`` file to create or replace.
        fields: its rows, with a name for each field.

    Raises:
        OutputError: the disk is full or the path cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, fields, allow_pickle=False)


def read_cs_types(path: Path) -> tuple[np.dtype[Any], int]:
    """The fields of a table of cryoSPARC with their types, and its number of rows."""
    fields = _load(path)
    return fields.dtype, len(fields)


def cs_numbers(path: Path) -> dict[str, Fields]:
    """The fields of a table of cryoSPARC that hold one number of each particle, by name."""
    fields = _load(path)
    kinds = {name: fields.dtype[name] for name in fields.dtype.names or ()}
    return {name: fields[name] for name, kind in kinds.items() if kind.kind in "fiu" and not kind.shape}


def _load(path: Path) -> Fields:
    try:
        with path.open("rb") as file:
            start = file.peek(_PEEKED)[:_PEEKED]
            if start.startswith(_STREAM):
                advice = "Write it as NumPy with cryosparc-tools: Dataset.load(FILE).save(FILE, format=1)"
                raise ParticleFileError(f"{path} is compressed", "cryoeq reads .cs files in NumPy's format", advice)
            if not start.startswith(_NUMPY):
                other = recognise(start)
                raise ParticleFileError(
                    f"{path} is {other.name if other else 'no table'}" if start else f"{path} is empty",
                    "cryoeq reads the tables of cryoSPARC, in NumPy's format",
                    other.advice if other else _EXPORT,
                )
            fields: Fields = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise ParticleFileError(f"{path} does not exist", "", "Check the path") from error
    except OSError as error:
        raise ParticleFileError(
            f"{path} cannot be read: {error.strerror}", "", "Check the path and its permissions"
        ) from error
    except (ValueError, TypeError, EOFError, SyntaxError, TokenError, MemoryError) as error:
        if "Object arrays" in str(error):
            found, expected = f"{path} holds Python objects", "cryoeq reads numbers and texts of a fixed length"
            raise ParticleFileError(found, f"{expected}: loading objects could run any program", _EXPORT) from error
        raise ParticleFileError(f"{path} is damaged ({error})", "cryoeq reads .cs files", _EXPORT) from error
    if fields.dtype.names is None or fields.ndim != 1 or not len(fields):
        raise ParticleFileError(f"{path} holds no table of particles", "cryoeq reads .cs files", _EXPORT)
    return fields


@dataclass(frozen=True)
class _CsTable:
    """The fields of a file, each checked as it is read."""

    path: Path
    fields: Fields

    @property
    def names(self) -> tuple[str, ...]:
        return self.fields.dtype.names or ()

    def numbers(self, name: str, shape: tuple[int, ...] = ()) -> Fields:
        """Numbers of a field, as many of each particle as the shape says."""
        column = self.fields[name]
        if column.dtype.kind not in "fiu" or column.shape[1:] != shape:
            expected = f"{math.prod(shape)} number{'s' if shape else ''} of each particle were expected"
            raise ParticleFileError(f"{self.path}: field {name} is of type {self._type(name)}", expected, _EXPORT)
        return column

    def text(self, name: str) -> list[str]:
        """Paths of a field, without the mark of those relative to the project."""
        column = self.fields[name]
        if column.dtype.kind not in "SU" or column.ndim != 1:
            found = f"{self.path}: field {name} is of type {self._type(name)}"
            raise ParticleFileError(found, "A text of each particle was expected", _EXPORT)
        if column.dtype.kind == "S":
            column = np.strings.decode(column, "utf-8", "surrogateescape")
        return np.strings.lstrip(column, ">").tolist()

    def _type(self, name: str) -> str:
        return str(self.fields.dtype[name])


def _optics(table: _CsTable) -> tuple[dict[str, Text], Shaped[np.ndarray, " particles"]]:
    """The optics block, and each particle's row of it: one group per exposure group and setting of the microscope."""
    known = [name for name in _OPTICS if name in table.names]
    exposure = table.numbers(_GROUP) if _GROUP in table.names else np.zeros(len(table.fields))
    columns = np.stack([exposure, *map(table.numbers, known)], 1, dtype=np.float64, casting="unsafe")
    groups, index = np.unique(columns, axis=0, return_inverse=True)
    block: dict[str, Text] = {
        "rlnOpticsGroup": np.arange(1, len(groups) + 1).astype(np.str_),
        "rlnOpticsGroupName": np.array([f"exposureGroup{number:.0f}" for number in groups[:, 0]]),
    }
    block |= {_OPTICS[name]: decimals(groups[:, column]) for column, name in enumerate(known, 1)}
    if _SHAPE in table.names:
        sides = table.numbers(_SHAPE, (2,) if table.fields[_SHAPE].ndim > 1 else ())
        block["rlnImageSize"] = np.full(len(groups), str(int(sides.flat[0])))
    return block, index.reshape(-1)


def _micrographs(table: _CsTable) -> list[str]:
    """Path of each particle's micrograph: of the table, else of what its job passed through; empty without."""
    if _MICROGRAPH in table.names:
        names = table.text(_MICROGRAPH)
        return names if any(names) else []
    if _UID not in table.names:
        return []
    ours = table.fields[_UID]
    for path in sorted(table.path.parent.glob(_PASSED_THROUGH)):
        with suppress(ParticleFileError):  # it is no table that was asked for
            beside = _CsTable(path, _load(path))
            if not {_UID, _MICROGRAPH} <= set(beside.names):
                continue
            named = dict(zip(beside.fields[_UID].tolist(), beside.text(_MICROGRAPH), strict=True))
            if all(uid in named for uid in ours.tolist()):
                return [named[uid] for uid in ours.tolist()]
    return []


def _alignments(table: _CsTable) -> tuple[dict[str, Text], tuple[str, ...]]:
    """Poses, class and half set as RELION has them, and a note where the splits are no half sets."""
    columns: dict[str, Text] = {}
    if {_POSE, _SHIFT, _PIXEL} <= set(table.names):
        vectors = torch.from_numpy(table.numbers(_POSE, (3,)).astype(np.float64))
        if len(vectors) and (largest := float(vectors.abs().max())) > _LARGEST_ROTATION:
            expected = "Rotation vectors in radians, of pi at most, were expected"
            raise ParticleFileError(f"{table.path}: a value of {_POSE} is {largest:g}", expected, _EXPORT)
        euler = relion_euler_deg(rotation_from_vector(vectors).mT).numpy()
        columns |= {f"rlnAngle{name}": decimals(euler[:, axis]) for axis, name in enumerate(("Rot", "Tilt", "Psi"))}
        pixel = table.numbers(_PIXEL).astype(np.float64)
        if not (pixel > 0).all():  # NaN neither
            bad = float(pixel[~(pixel > 0)][0])
            raise ParticleFileError(
                f"{table.path}: {_PIXEL} is {bad:g}", "A positive pixel size of the shifts was expected", _EXPORT
            )
        shifts = table.numbers(_SHIFT, (2,)) * pixel[:, None]
        columns |= {f"rlnOrigin{name}Angst": decimals(shifts[:, axis]) for axis, name in enumerate("XY")}
    if _CLASS in table.names:
        columns["rlnClassNumber"] = (table.numbers(_CLASS).astype(np.int64) + 1).astype(np.str_)
    if _SPLIT not in table.names:
        return columns, ()
    split = table.numbers(_SPLIT).astype(np.int64)
    if len(values := np.unique(split).tolist()) != 2:
        what = f"{values[0]} for all particles" if len(values) == 1 else f"one of {len(values)} numbers"
        return columns, (f"{table.path.name}: {_SPLIT} is {what}: these are no half sets.",)
    return columns | {"rlnRandomSubset": (split + 1).astype(np.str_)}, ()


def _wording(table: _CsTable) -> Wording:
    """The fields of what RELION's labels stand for, with advice for those that are not in the table."""
    names = {label: name for name, label in _OPTICS.items()} | {label: name for name, (label, _) in _CTF.items()}
    no_ctf = "Export the particles from cryoSPARC with the CTF that their job passed through, or pass --no-ctf"
    advice = dict.fromkeys(names, no_ctf)
    needed = next((name for name in (_POSE, _SHIFT, _PIXEL) if name not in table.names), _POSE)
    names |= dict.fromkeys(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), needed)
    names |= dict.fromkeys(("rlnOriginXAngst", "rlnOriginYAngst"), _SHIFT)
    names |= {MICROGRAPH_NAME: _MICROGRAPH}
    names |= {"rlnRandomSubset": _SPLIT, "rlnClassNumber": _CLASS, "rlnImageSize": _SHAPE, "rlnOpticsGroup": _GROUP}
    poses = "Export the particles of a refinement, or let cryoeq infer the poses"
    if others := sorted(name for name in table.names if re.fullmatch(r"alignments(?!3D/).*/pose", name)):
        poses = f"There is {', '.join(others)}, of a classification, which cryoeq does not read. {poses}"
    return Wording("field", names, _EXPORT, advice | {"rlnAngleRot": poses})


def _contrast_note(table: _CsTable) -> tuple[str, ...]:
    if _SIGN not in table.names:
        return ()
    shade = {-1.0: "dark", 1.0: "bright"}.get(float(table.numbers(_SIGN)[0]))
    name = table.path.name
    said = f"{name}: cryoSPARC takes the protein to be {shade} in the stored images."
    return () if shade is None else (Remark(said),)
