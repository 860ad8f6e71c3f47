"""Particle stacks: read from star files, cryoSPARC tables or bare stacks, written with every column kept."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from cryoeq.domain.optics import CtfParameters
from cryoeq.domain.particles import ParticleTable
from cryoeq.domain.pose import Poses
from cryoeq.errors import ParticleFileError
from cryoeq.io.aberrations import aberration_notes
from cryoeq.io.compressed import without_compression_suffix
from cryoeq.io.cryosparc import CS_SUFFIX, read_cs
from cryoeq.io.euler import relion_euler_deg, rotations_from_euler_deg
from cryoeq.io.images import STACK_SUFFIXES, LazyImages, locate_images, open_bare_stack, require_images
from cryoeq.io.labels import JUNK_PROBABILITY
from cryoeq.io.optics import read_ctf, read_optics, star_pixel_size, used_optics, with_optics_block
from cryoeq.io.optics_checks import ctf_notes, pixel_size_notes, with_flag_of_optimiser
from cryoeq.io.positions import micrograph_numbers
from cryoeq.io.star import Numbers, StarTable, decimals, read_star, write_star
from cryoeq.io.star_text import Text, text_column

_EULER = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
ORIGIN_ANGSTROM = ("rlnOriginXAngst", "rlnOriginYAngst")
_DEFOCUS = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
ORIGIN_PX = ("rlnOriginX", "rlnOriginY")
# Beyond these are no angles and no boxes, but columns in another order, or damage.
_LARGEST_ANGLE_DEG, _LARGEST_ORIGIN_ANGSTROM = 1e4, 1e4


@dataclass(frozen=True)
class ParticleStack:
    """A particle file that was opened: all that is known of it, its pixels on the disk.

    Args:
        table: particles without their pixels.
        star: every column of the input as text, in RELION's 3.1 layout, for ``write_particle_star``.
        images: pixels on the disk, read on demand.
        notes: findings about the input for the user, one sentence each.
    """

    table: ParticleTable
    star: StarTable
    images: LazyImages
    notes: tuple[str, ...]

    def rows(self, rows: Int[Tensor, " rows"]) -> "ParticleStack":
        """Some of the particles, in the given order."""
        images = replace(
            self.images, stack_index=self.images.stack_index[rows], slice_index=self.images.slice_index[rows]
        )
        return replace(self, table=self.table.rows(rows), star=self.star.rows(rows.tolist()), images=images)


def read_particles(
    path: Path,
    *,
    angpix: float | None = None,
    datadir: Path | None = None,
    with_poses: bool = False,
    ignore_ctf: bool = False,
) -> ParticleStack:
    """Open a RELION star file (3.0, 3.1 or later), cryoSPARC's ``.cs``, or a bare ``.mrcs`` stack. No pixel is read.

    Args:
        path: star file, table or stack.
        angpix: pixel size in Angstrom; fills in or overrides that of the file.
        datadir: folder that is searched first for the stacks that the star file names.
        with_poses: whether Euler angles, origins and half sets are read too; inference leaves them unread.
        ignore_ctf: whether the CTF is left unread; a bare stack has none in any case.

    Raises:
        ParticleFileError: anything that is wrong with the input, with the column, row or file concerned.
    """
    if Path(without_compression_suffix(path.name)).suffix.lower() in STACK_SUFFIXES:
        images, notes = open_bare_stack(path)
        star = _star_of_bare_stack(path, len(images))
        angpix = images.stacks[0].require_pixel_size() if angpix is None else angpix
        ignore_ctf, notes = True, (*notes, f"{path.name} comes without a star file, so without CTF.")
    else:
        star, table_notes = _read_table(path)
        images, notes = locate_images(star, datadir)
        notes = (*table_notes, *notes)
    box = images.box_size_px
    star = with_optics_block(star, angpix=angpix, box_size_px=box, ignore_ctf=ignore_ctf)
    star = with_flag_of_optimiser(star)
    used, index = used_optics(star)
    require_images(used)
    _check_stated_box(used, box)
    pixel_size = star_pixel_size(used)
    optics = read_optics(used, pixel_size)
    ctf = None if ignore_ctf else read_ctf(used, optics, index)
    notes = (*notes, *pixel_size_notes(used, box, pixel_size), *aberration_notes(used, index))
    notes = notes if ctf is None else (*notes, *ctf_notes(used, ctf))
    notes = (*notes, *pose_notes(used)) if with_poses else notes
    poses = star_poses(used) if with_poses else None
    notes = notes if poses is None else (*notes, *_origin_notes(used, poses, box * pixel_size))
    table = ParticleTable(
        stack_paths=tuple(stack.path for stack in images.stacks),
        stack_index=images.stack_index,
        slice_index=images.slice_index,
        box_size_px=box,
        pixel_size_angstrom=pixel_size,
        optics=optics,
        optics_index=index,
        ctf=ctf,
        poses=poses,
        half_set=star_half_set(star) if with_poses else None,
        micrograph_index=micrograph_numbers(star),
    )
    return ParticleStack(table, star, images, notes)


def read_table(path: Path) -> StarTable:
    """The particles of a star file or of cryoSPARC's ``.cs``; the images need not be there."""
    return _read_table(path)[0]


def _read_table(path: Path) -> tuple[StarTable, tuple[str, ...]]:
    if path.suffix == CS_SUFFIX:
        return read_cs(path)
    if path.suffix == f"{CS_SUFFIX}g":
        found = f"{path} is cryoSPARC's list of the files of a group"
        raise ParticleFileError(found, "cryoeq reads the tables themselves", "Give the .cs file that it names for blob")
    return read_star(path), ()


def _star_of_bare_stack(path: Path, count: int) -> StarTable:
    names = text_column([f"{number:06d}@{path.as_posix()}" for number in range(1, count + 1)])
    return StarTable(None, {"rlnImageName": names}, path)


def _check_stated_box(star: StarTable, box_size_px: int) -> None:
    stated = star.optics_floats("rlnImageSize", default=float(box_size_px))
    if (stated != box_size_px).any():
        sizes = ", ".join(f"{size:g}" for size in np.unique(stated))
        found = f"{star.path}: rlnImageSize of the optics groups is {sizes} px, the images are {box_size_px} px"
        raise ParticleFileError(
            found, "Both must agree, and be the same for all", "Export or extract the particles again"
        )


def star_poses(star: StarTable, *, angpix: float | None = None) -> Poses:
    """Orientations and shifts of a star file; the images need not be there.

    Args:
        star: star file of any RELION version; origins are read in Angstrom, else (3.0) in pixels, else taken as zero.
        angpix: pixel size in Angstrom for origins in pixels; overrides that of the file.

    Raises:
        ParticleFileError: an Euler angle is missing or not a number, the pixel size is missing and needed, or a value
            is beyond all angles or boxes.
    """
    euler = star_euler_deg(star)
    if any(column in star.particles for column in ORIGIN_ANGSTROM):
        columns, unit = ORIGIN_ANGSTROM, 1.0
    elif any(column in star.particles for column in ORIGIN_PX):
        columns, unit = ORIGIN_PX, star_pixel_size(star, angpix=angpix)
    else:
        columns, unit = ORIGIN_ANGSTROM, 0.0
    largest = _LARGEST_ORIGIN_ANGSTROM / (unit or 1.0)
    origins = [_within(star, column, star.floats(column, default=0.0), largest) for column in columns]
    shifts = np.stack(origins, 1) * unit
    return Poses(rotations_from_euler_deg(euler).float(), torch.from_numpy(shifts).float())


def star_euler_deg(star: StarTable) -> Float[Tensor, "particles 3"]:
    """rlnAngleRot, rlnAngleTilt and rlnAnglePsi in degrees, in float64.

    Raises:
        ParticleFileError: a column is missing, a value is not a number, or beyond 10,000 degrees.
    """
    advice = "Give a star file with orientations, or let cryoeq infer them"
    angles = [_within(star, column, star.floats(column, advice=advice), _LARGEST_ANGLE_DEG) for column in _EULER]
    return torch.from_numpy(np.stack(angles, 1))


def _within(star: StarTable, column: str, values: Numbers, largest: float) -> Numbers:
    """The values of a column, none of which may be larger."""
    if (bad := np.flatnonzero(np.abs(values) > largest)).size:
        row = int(bad[0])
        found = f"{star.where}, row {row + 1}: {star.name(column)} is {values[row]:g}"
        raise ParticleFileError(found, f"Expected {largest:g} at most", "Correct the value or remove the particle")
    return values


def _origin_notes(star: StarTable, poses: Poses, side_angstrom: float) -> tuple[str, ...]:
    """A warning of origins that leave a particle's centre outside of its image."""
    beyond = (poses.shifts_angstrom.abs() > side_angstrom / 2).any(1).nonzero()
    if not len(beyond):
        return ()
    row = int(beyond[0])
    x, y = poses.shifts_angstrom[row].tolist()
    what = f"the origins of {len(beyond)} particles are beyond half the box, the first is row {row + 1}"
    return (f"{star.where}: {what} ({x:.6g}, {y:.6g} Å): their centres lie outside of their images.",)


def pose_notes(star: StarTable) -> tuple[str, ...]:
    """A warning where the poses of a table are those of a 2D classification: in-plane angles, without a view.

    Args:
        star: table, with Euler angles or without.
    """
    view = _EULER[:2]
    if len(star) < 2 or not star.particles.keys() >= {*view} or any(star.floats(column).any() for column in view):
        return ()
    what = f"{star.name(_EULER[0])} and {star.name(_EULER[1])} are 0 for all {len(star)} particles"
    return (f"{star.where}: {what}, as a 2D classification leaves them: in-plane angles, no orientations in 3D.",)


def star_ctf(star: StarTable) -> CtfParameters | None:
    """The CTF of each particle of a star file; the images need not be there. None where there is no defocus.

    Raises:
        ParticleFileError: optics groups or values of the CTF that make no sense.
    """
    if "rlnDefocusU" not in star.particles:
        return None
    used, index = used_optics(with_optics_block(star))
    return read_ctf(used, read_optics(used, star_pixel_size(used)), index)


def star_half_set(star: StarTable) -> Int[Tensor, " particles"] | None:
    """rlnRandomSubset, 1 or 2 for each particle; None where there is no such column.

    Raises:
        ParticleFileError: a value is neither 1 nor 2.
    """
    if "rlnRandomSubset" not in star.particles:
        return None
    half_set = star.floats("rlnRandomSubset")
    if (bad := np.flatnonzero((half_set != 1) & (half_set != 2))).size:
        row = int(bad[0])
        found = f"{star.path or 'star'}, row {row + 1}: rlnRandomSubset is {half_set[row]:g}"
        raise ParticleFileError(found, "1 or 2 was expected", "Remove the column or split the particles again")
    return torch.from_numpy(half_set).long()


def star_junk_probability(star: StarTable, *, advice: str = "") -> Float[Tensor, " particles"]:
    """CryoeqJunkProbability of each particle.

    Args:
        star: the particles.
        advice: advice to the user where the column is missing.

    Raises:
        ParticleFileError: there is no such column, or a value is no probability.
    """
    probability = star.floats(JUNK_PROBABILITY, advice=advice)
    if (bad := np.flatnonzero((probability < 0) | (probability > 1))).size:
        found = f"{star.where}, row {bad[0] + 1}: {JUNK_PROBABILITY} is {probability[bad[0]]:g}"
        raise ParticleFileError(found, "A probability of 0 to 1 was expected", "Correct the value")
    return torch.from_numpy(probability)


def write_particle_star(
    path: Path,
    star: StarTable,
    poses: Poses | None,
    *,
    half_set: Int[Tensor, " particles"] | None = None,
    confidence: Float[Tensor, " particles"] | None = None,
    figure_of_merit: Float[Tensor, " particles"] | None = None,
    junk_probability: Float[Tensor, " particles"] | None = None,
    ctf: CtfParameters | None = None,
    extra_columns: Mapping[str, Shaped[np.ndarray, " particles"]] | None = None,
    outdated: Collection[str] = (),
) -> None:
    """Write particles as RELION 3.1 and later read them, input columns and the row order kept.

    Args:
        path: star file to create or replace.
        star: particles, of any RELION version; ``ParticleStack.star`` knows a pixel size that the file does not.
        poses: poses, set as rlnAngleRot/Tilt/Psi and rlnOriginX/YAngst (and in pixels where the input has such columns,
            lest an old origin outlive its angles); None leaves the columns unchanged.
        half_set: half sets, set as rlnRandomSubset.
        confidence: probability of the pose, set as rlnMaxValueProbDistribution.
        figure_of_merit: figure of merit between 0 and 1, set as rlnParticleFigureOfMerit.
        junk_probability: probability of being junk, set as cryoeqJunkProbability.
        ctf: refined parameters, of which both defocus values and the angle are set; None leaves the columns unchanged.
        extra_columns: further columns by name, one value per particle.
        outdated: input columns that are left out where they are not set.

    Raises:
        OutputError: the disk is full or the path cannot be written.
    """
    star = with_optics_block(star, ignore_ctf=True)
    columns: dict[str, Text] = {label: text for label, text in star.particles.items() if label not in outdated}
    if poses is not None:
        euler, shifts = relion_euler_deg(poses.rotations.double().cpu()), poses.shifts_angstrom.double().cpu()
        columns |= {name: decimals(euler[:, axis].numpy()) for axis, name in enumerate(_EULER)}
        columns |= {name: decimals(shifts[:, axis].numpy()) for axis, name in enumerate(ORIGIN_ANGSTROM)}
        in_px = [(axis, name) for axis, name in enumerate(ORIGIN_PX) if name in columns]
        columns |= {name: decimals(shifts[:, axis].numpy() / star_pixel_size(star)) for axis, name in in_px}
    if half_set is not None:
        columns["rlnRandomSubset"] = half_set.cpu().numpy().astype(np.uint8).astype(np.str_)
    numbers = {
        "rlnMaxValueProbDistribution": confidence,
        "rlnParticleFigureOfMerit": figure_of_merit,
        JUNK_PROBABILITY: junk_probability,
    }
    columns |= {name: decimals(values.cpu().numpy()) for name, values in numbers.items() if values is not None}
    if ctf is not None:
        defocus = (ctf.defocus_u_angstrom, ctf.defocus_v_angstrom, ctf.defocus_angle_rad.rad2deg())
        columns |= {
            name: decimals(values.double().cpu().numpy()) for name, values in zip(_DEFOCUS, defocus, strict=True)
        }
    columns |= {name: np.asarray(values) for name, values in (extra_columns or {}).items()}
    if wrong := [name for name, values in columns.items() if len(values) != len(star)]:
        raise ValueError(f"{len(columns[wrong[0]])} values of {wrong[0]} for {len(star)} particles")
    write_star(path, StarTable(star.optics, columns))
