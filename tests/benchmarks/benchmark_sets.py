"""The particle sets of the benchmarks, each prepared once in a folder of its own, as ``cryoeq simulate`` leaves it.

``base`` is simulated from one molecule; the others change one thing of it. The rest are files of the reference data
folder (``CRYOEQ_REFERENCE_DATA``). A prepared ``particles.star`` holds no pose, shift or half set.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from recorded_runs import CRYOEQ, measure

from cryoeq.data.half_sets import split_half_sets
from cryoeq.domain.pose import Poses
from cryoeq.io.model import read_atoms
from cryoeq.io.mrc import read_map
from cryoeq.io.optics import star_pixel_size, with_optics_block
from cryoeq.io.particles import star_half_set, star_poses, write_particle_star
from cryoeq.io.star import StarTable, read_star, write_star
from cryoeq.simulation.field_of_view import FieldOfView

DATA = Path(os.environ.get("CRYOEQ_REFERENCE_DATA", Path(__file__).parents[3] / "shared" / "data"))
SIMULATION_SEED = 1000
_ANSWERS = ("rlnAngle", "rlnOrigin", "rlnRandomSubset")


@dataclass(frozen=True)
class Simulated:
    """What to simulate; the molecule fills the box as ``cryoeq simulate`` chooses, defocus is 1 to 2.5 um.

    Args:
        model: file in the folder of models.
        symmetry: its point group.
        box_px: side of the images.
        count: how many.
        snr: variance of the signal over that of the noise.
        shift_of_box: spread of the shifts per axis, as a fraction of the box.
        views: uniform or preferred.
        options: of ``cryoeq reconstruct``: what the user knows of the data.
        simulation: more options of ``cryoeq simulate``.
        seed: of the simulation.
    """

    model: str = "1wcm.pdb"
    symmetry: str = "C1"
    box_px: int = 32
    count: int = 2000
    snr: float = 0.1
    shift_of_box: float = 0.05
    views: str = "uniform"
    options: tuple[str, ...] = ()
    simulation: tuple[str, ...] = ()
    seed: int = SIMULATION_SEED


@dataclass(frozen=True)
class Given:
    """Files of the reference data folder.

    Args:
        folder: of them.
        truth_map: the true map, relative to that folder.
        options: of ``cryoeq reconstruct``: what the user knows of the data.
        stack: star file with the images.
        poses: star file, or archive of rotation matrices and shifts in pixels, with the true poses.
        angpix: pixel size that the star file does not give.
    """

    folder: str
    truth_map: str
    options: tuple[str, ...] = ()
    stack: str = "particles.star"
    poses: str = "truth.star"
    angpix: float | None = None
    symmetry: str = "C1"


_CENTRED = ("--shift-sigma", "0")
_BASE = Simulated()
SETS: Mapping[str, Simulated | Given] = {
    "base": _BASE,
    "6msm": replace(_BASE, model="6msm.pdb"),
    "5me2": replace(_BASE, model="5me2.pdb", symmetry="C2"),
    "7l2i": replace(_BASE, model="7l2i.cif", symmetry="C4"),
    "8bk7": replace(_BASE, model="8bk7.cif", symmetry="D2"),
    "7ez0": replace(_BASE, model="7ez0.pdb"),
    "snr1": replace(_BASE, snr=1.0),
    "snr003": replace(_BASE, snr=0.03),
    "n10000": replace(_BASE, count=10_000),
    "box64": replace(_BASE, box_px=64),
    "no_shifts": replace(_BASE, shift_of_box=0.0, options=_CENTRED),
    "preferred": replace(_BASE, views="preferred"),
    "relion_1wcm": Given("relion_1wcm", "truth_1WCM_64p_3.75A.mrc", poses="particles.star"),
    "toy_cryodrgn": Given(
        "toy_cryodrgn", "toymodel_small_nocenter.mrc", (*_CENTRED, "--no-ctf"),
        stack="toy_projections.star", poses="truth.npz", angpix=6.0,
    ),
    "s1": Given("bench_6msm/s1", "../truth.mrc", _CENTRED),
    "s01": Given("bench_6msm/s01", "../truth.mrc", _CENTRED),
    "s01sh": Given("bench_6msm/s01sh", "../truth.mrc"),
}  # fmt: skip


def prepare(name: str, work: Path, recipe: Simulated | Given | None = None) -> Path:
    """The folder of a set: ``particles.star``, its stack, ``truth.star`` and ``truth_volume.mrc``; made if need be.

    Args:
        name: of the set.
        work: folder of all sets.
        recipe: of the set; None for the one of that name in ``SETS``.

    Raises:
        FileNotFoundError: the model or the reference data are not there.
        RuntimeError: the simulation failed.
    """
    folder, recipe = work / name, recipe or SETS[name]
    source = DATA / "models" / recipe.model if isinstance(recipe, Simulated) else DATA / recipe.folder
    if not source.exists():
        raise FileNotFoundError(f"{source} is missing; CRYOEQ_REFERENCE_DATA names the folder of reference data")
    if (folder / "particles.star").is_file():  # written last
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    if isinstance(recipe, Simulated):
        work.mkdir(parents=True, exist_ok=True)
        log = folder.with_suffix(".log")
        if measure(_simulation(recipe, source, folder), log=log).exit_code != 0:
            raise RuntimeError(f"the simulation of {name} failed; see {log}")
    else:
        folder.mkdir(parents=True)
        _copy_given(recipe, source, folder)
    return folder


def _simulation(recipe: Simulated, model: Path, folder: Path) -> list[str]:
    field = FieldOfView.around_molecule(2 * read_atoms(model).centred().radius_angstrom, recipe.box_px, None)
    options = {
        "-o": folder, "--box": recipe.box_px, "-n": recipe.count, "--snr": recipe.snr,
        "--shift-sigma": round(recipe.shift_of_box * field.side_angstrom, 3), "--views": recipe.views,
        "--defocus-min": 1.0, "--defocus-max": 2.5, "--astigmatism": 300, "--seed": recipe.seed,
    }  # fmt: skip
    words = [str(word) for option in options.items() for word in option]
    return [CRYOEQ, "simulate", str(model), *words, *recipe.simulation]


def _copy_given(recipe: Given, source: Path, folder: Path) -> None:
    """Links to stack and map; star files without and with the answers, half sets drawn where there are none."""
    for stack in source.glob("*.mrcs"):
        (folder / stack.name).symlink_to(stack.resolve())
    volume = (source / recipe.truth_map).resolve()
    (folder / "truth_volume.mrc").symlink_to(volume)
    box = read_map(volume).box_size_px
    ignore_ctf = "--no-ctf" in recipe.options
    star = with_optics_block(
        read_star(source / recipe.stack), angpix=recipe.angpix, box_size_px=box, ignore_ctf=ignore_ctf
    )
    poses = given_poses(source / recipe.poses, star_pixel_size(star))
    half_set = star_half_set(star)
    if half_set is None:
        half_set = split_half_sets(len(star), torch.Generator().manual_seed(SIMULATION_SEED))
    write_particle_star(folder / "truth.star", star, poses, half_set=half_set)
    questions = {name: values for name, values in star.particles.items() if not name.startswith(_ANSWERS)}
    write_star(folder / "particles.star", StarTable(star.optics, questions))


def given_poses(path: Path, pixel_size_angstrom: float) -> Poses:
    """True poses of a star file, or of an archive of rotation matrices and shifts in pixels.

    Args:
        path: the file.
        pixel_size_angstrom: of the images.
    """
    if path.suffix == ".star":
        return star_poses(read_star(path))
    archive = np.load(path)
    shifts_px = torch.from_numpy(archive["shifts_px"]).float()
    return Poses(torch.from_numpy(archive["rotations"]).float(), shifts_px * pixel_size_angstrom)
