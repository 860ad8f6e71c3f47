"""A project of RELION and an export of cryoSPARC with the same simulated particles, as users have them.

Micrographs in which protein is dark, picks that miss the particles by some pixels, and particles extracted around the
picks into a smaller box, bright and normalised: what RELION's Extract job and cryoSPARC's export leave.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.cli.main import run
from cryoeq.geometry.fourier import fourier_crop_images
from cryoeq.io.mrc import StackWriter, read_micrograph, write_image
from cryoeq.io.particles import read_particles
from cryoeq.io.star import StarTable, decimals, read_star
from cryoeq.io.star_text import read_blocks, text_column, write_blocks

EXTRACTED = "Extract/job005"
MICROGRAPHS = "MotionCorr/job002/Micrographs"
EXPORT = "exports/groups/J12_particles"
EXPORTED = "J12_particles_exported"


@dataclass(frozen=True)
class Simulation:
    """What is simulated.

    Args:
        model: molecule or map.
        second: another one and its share of the particles, as ``cryoeq simulate --model`` takes it; empty for none.
        angpix: pixel size of the micrographs in Angstrom.
        box_px: box in the micrographs, and half the spacing of particles that do not touch.
        extracted_px: box that particles are extracted into.
        per_micrograph: particles of one, a square number.
        n_micrographs: micrographs.
        snr: of a particle in its box.
        miss_px: standard deviation of the picks per axis, in pixels of the micrographs.
        seed: of all random numbers.
    """

    model: Path
    second: str = ""
    angpix: float = 3.875
    box_px: int = 64
    extracted_px: int = 32
    per_micrograph: int = 36
    n_micrographs: int = 10
    snr: float = 0.3
    miss_px: float = 2.0
    seed: int = 100


@dataclass(frozen=True)
class Project:
    """Where the project is, and where its particles truly are.

    Args:
        folder: of the project; ``truth.star`` there has the particles' names with true poses, offsets and classes.
        simulation: what is simulated.
        centres_px: true places (x, y) of the particles in their micrographs, in pixels, in the order of the star file.
    """

    folder: Path
    simulation: Simulation
    centres_px: Float[np.ndarray, "particles 2"]

    def extract_again(self, star: Path, job: str) -> None:
        """What RELION's Extract job does with the coordinates of a star file: in the box of the micrographs.

        Args:
            star: particles with coordinates in their micrographs.
            job: folder of the job, relative to the project.
        """
        blocks, s = read_blocks(star), self.simulation
        particles = blocks["particles"]
        micrographs = np.array(particles["rlnMicrographName"].tolist())
        places = np.stack([particles[f"rlnCoordinate{axis}"].astype(np.float64) for axis in "XY"], 1)
        names = np.empty(len(micrographs), dtype=object)
        for name in sorted(set(micrographs)):
            rows, stack = np.flatnonzero(micrographs == name), f"{job}/Micrographs/{Path(name).stem}.mrcs"
            micrograph, _ = read_micrograph(self.folder / name)
            images = _extract(micrograph, torch.from_numpy(places[rows]).round().long(), s, s.box_px)
            with StackWriter(_made(self.folder / stack), len(rows), s.box_px, s.angpix) as writer:
                writer.append(images)
            names[rows] = [f"{slot:06d}@{stack}" for slot in range(1, len(rows) + 1)]
        blocks["particles"] = {**particles, "rlnImageName": text_column(names.tolist())}
        size = {"rlnImagePixelSize": [f"{s.angpix:.6f}"], "rlnImageSize": [f"{s.box_px}"]}
        blocks["optics"] = {**blocks["optics"], **{label: text_column(values) for label, values in size.items()}}
        write_blocks(self.folder / job / "particles.star", blocks)


def make_project(folder: Path, simulation: Simulation) -> Project:
    """Simulate micrographs, and the particles that were picked and extracted there.

    Args:
        folder: of the project, created.
        simulation: what is simulated.
    """
    s, source = simulation, folder / "simulated"
    count = s.per_micrograph * s.n_micrographs
    words = ["-n", count, "--box", s.box_px, "--angpix", s.angpix, "--snr", "inf", "--n-micrographs", s.n_micrographs]
    more = ["--model", s.second] if s.second else []
    said = ["simulate", s.model, "-o", source, *words, *more, "--seed", s.seed, "--device", "cpu"]
    assert run([str(word) for word in said]) == 0
    images, table = read_particles(source / "truth.star").images, read_star(source / "truth.star")
    every = images.read(torch.arange(count))
    generator = torch.Generator().manual_seed(s.seed)
    # Micrograph by micrograph: their particles are of equal number.
    order = np.argsort(np.array(table.particles["rlnMicrographName"].tolist()), kind="stable")
    table, every = table.rows(order.tolist()), every[order]
    centres, picks = np.zeros((count, 2)), np.zeros((count, 2))
    for number, rows in enumerate(np.array_split(np.arange(count), s.n_micrographs), 1):
        micrograph, places = _micrograph(every[rows], s, generator)
        write_image(_made(folder / MICROGRAPHS / f"mic{number:03d}.mrc"), micrograph, s.angpix)
        missed = places + (s.miss_px * torch.randn(places.shape, generator=generator)).round().long()
        centres[rows], picks[rows] = places.numpy(), missed.numpy()
        with StackWriter(_made(folder / _stack(number)), len(rows), s.extracted_px, _pixel(s)) as writer:
            writer.append(_extract(micrograph, missed, s, s.extracted_px))
    _write_relion(folder, s, table, picks, centres)
    write_export(folder, read_star(folder / EXTRACTED / "particles.star"), s.angpix, (_side(s), _side(s)))
    return Project(folder, s, centres)


def _pixel(s: Simulation) -> float:
    return s.angpix * s.box_px / s.extracted_px


def _stack(number: int) -> str:
    return f"{EXTRACTED}/Micrographs/mic{number:03d}.mrcs"


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _side(s: Simulation) -> int:
    return (math.isqrt(s.per_micrograph) + 1) * s.box_px


def _micrograph(
    images: Float[Tensor, "particles n n"], s: Simulation, generator: torch.Generator
) -> tuple[Float[Tensor, "ny nx"], Int[Tensor, "particles 2"]]:
    """Dark particles of variance 1 in noise, side by side, and their places (x, y)."""
    along, side, half = math.isqrt(s.per_micrograph), _side(s), s.box_px // 2
    micrograph = 40 + s.snr**-0.5 * torch.randn(side, side, generator=generator)
    places = torch.tensor([[x, y] for y in range(along) for x in range(along)]) * s.box_px + s.box_px
    for image, (x, y) in zip(images, places.tolist(), strict=True):
        micrograph[y - half : y + half, x - half : x + half] -= image
    return micrograph, places


def _extract(
    micrograph: Float[Tensor, "ny nx"], places: Int[Tensor, "particles 2"], s: Simulation, n: int
) -> Float[Tensor, "particles m m"]:
    """Windows around whole pixels, bright, of n px, their background of mean 0 and deviation 1."""
    half = s.box_px // 2
    windows = torch.stack([micrograph[y - half : y + half, x - half : x + half] for x, y in places.tolist()])
    images = fourier_crop_images(-windows, n)
    grid = torch.arange(n) - n // 2
    background = images[:, (grid[:, None].square() + grid.square()).sqrt() > 0.45 * n]
    return (images - background.mean(1)[:, None, None]) / background.std(1)[:, None, None]


def _write_relion(
    folder: Path,
    s: Simulation,
    truth: StarTable,
    picks: Float[np.ndarray, "particles 2"],
    centres: Float[np.ndarray, "particles 2"],
) -> None:
    """The star files of the Extract job and of the truth, and that by which RELION's program extracts again."""
    assert truth.optics is not None
    numbers = [n for n in range(1, s.n_micrographs + 1) for _ in range(s.per_micrograph)]
    slots = np.tile(np.arange(1, s.per_micrograph + 1), s.n_micrographs)
    group = {
        "rlnOpticsGroupName": "opticsGroup1",
        "rlnOpticsGroup": "1",
        "rlnMicrographOriginalPixelSize": f"{s.angpix}",
    }
    for name in ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"):
        group[name] = str(truth.optics[name][0])
    ctf = {name: truth.particles[name] for name in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift")}
    micrographs = text_column([f"{MICROGRAPHS}/mic{number:03d}.mrc" for number in numbers])
    groups = text_column(["1"] * len(numbers))
    images = text_column([f"{slot:06d}@{_stack(number)}" for slot, number in zip(slots, numbers, strict=True)])
    particles = {
        "rlnCoordinateX": decimals(picks[:, 0]),
        "rlnCoordinateY": decimals(picks[:, 1]),
        "rlnImageName": images,
    }
    particles |= {"rlnMicrographName": micrographs, "rlnOpticsGroup": groups, **ctf}
    image = {
        "rlnImagePixelSize": f"{_pixel(s):.6f}",
        "rlnImageSize": f"{s.extracted_px}",
        "rlnImageDimensionality": "2",
    }
    optics = {name: text_column([value]) for name, value in (group | image).items()}
    write_blocks(_made(folder / EXTRACTED / "particles.star"), {"optics": optics, "particles": particles})
    kept = [
        name for name in truth.particles if name.startswith("rlnAngle") or name in {"rlnClassNumber", "rlnRandomSubset"}
    ]
    true = {name: truth.particles[name] for name in kept}
    # What moves the image by as much as the pick lies beside the particle.
    offsets = (picks - centres) * s.angpix
    true |= {"rlnOriginXAngst": decimals(offsets[:, 0]), "rlnOriginYAngst": decimals(offsets[:, 1])}
    write_blocks(folder / "truth.star", {"optics": optics, "particles": particles | true})
    first = slots == 1
    columns = {"rlnMicrographName": micrographs, "rlnOpticsGroup": groups, **ctf}
    group["rlnMicrographPixelSize"] = f"{s.angpix}"
    blocks = {
        "optics": {name: text_column([value]) for name, value in group.items()},
        "micrographs": {name: values[first] for name, values in columns.items()},
    }
    write_blocks(_made(folder / "CtfFind/job003/micrographs_ctf.star"), blocks)


def write_export(folder: Path, star: StarTable, micrograph_angpix: float, shape: tuple[int, int]) -> None:
    """An export of cryoSPARC with the particles of a star file, without poses; images are links to its stacks.

    Args:
        folder: of the project, from which the star file names its stacks.
        star: particles with coordinates, of one optics group.
        micrograph_angpix: pixel size of the micrographs in Angstrom.
        shape: rows and columns of each micrograph.
    """
    assert star.optics is not None
    kinds: list[Any] = [
        ("uid", "<u8"), ("blob/path", "S64"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)), ("blob/psize_A", "<f4"),
        ("blob/sign", "<f4"), ("ctf/type", "S9"), ("ctf/exp_group_id", "<u4"), ("ctf/accel_kv", "<f4"),
        ("ctf/cs_mm", "<f4"), ("ctf/amp_contrast", "<f4"), ("ctf/df1_A", "<f4"), ("ctf/df2_A", "<f4"),
        ("ctf/df_angle_rad", "<f4"), ("ctf/phase_shift_rad", "<f4"), ("ctf/bfactor", "<f4"),
        ("location/micrograph_uid", "<u8"), ("location/micrograph_path", "S64"),
        ("location/micrograph_shape", "<u4", (2,)), ("location/micrograph_psize_A", "<f4"),
        ("location/center_x_frac", "<f4"), ("location/center_y_frac", "<f4"),
    ]  # fmt: skip
    names = [name.partition("@") for name in star.particles["rlnImageName"].tolist()]
    micrographs = star.particles["rlnMicrographName"].tolist()
    links = {stack: f"J5/extract/{number}_particles.mrc" for number, stack in enumerate(sorted({s for *_, s in names}))}
    table = np.zeros(len(names), kinds)
    table["uid"] = np.random.default_rng(0).integers(2**62, 2**63, len(names), dtype=np.uint64) * np.uint64(2)
    table["blob/path"] = [f">{links[stack]}".encode() for *_, stack in names]
    table["blob/idx"] = [int(number) - 1 for number, *_ in names]
    table["blob/shape"], table["blob/psize_A"] = (
        int(star.optics["rlnImageSize"][0]),
        float(star.optics["rlnImagePixelSize"][0]),
    )
    table["blob/sign"], table["ctf/type"] = 1.0, b"ctffind4"
    microscope = {"accel_kv": "rlnVoltage", "cs_mm": "rlnSphericalAberration", "amp_contrast": "rlnAmplitudeContrast"}
    for field, label in microscope.items():
        table[f"ctf/{field}"] = float(star.optics[label][0])
    table["ctf/df1_A"], table["ctf/df2_A"] = star.floats("rlnDefocusU"), star.floats("rlnDefocusV")
    table["ctf/df_angle_rad"] = np.deg2rad(star.floats("rlnDefocusAngle"))
    table["location/micrograph_uid"] = np.unique(micrographs, return_inverse=True)[1] + 1
    table["location/micrograph_path"] = [f"J2/{Path(name).name}".encode() for name in micrographs]
    table["location/micrograph_shape"], table["location/micrograph_psize_A"] = shape, micrograph_angpix
    table["location/center_x_frac"] = star.floats("rlnCoordinateX") / shape[1]
    table["location/center_y_frac"] = star.floats("rlnCoordinateY") / shape[0]
    with _made(folder / EXPORT / f"{EXPORTED}.cs").open("wb") as file:
        np.save(file, table)
    for stack, link in links.items():
        _made(folder / EXPORT / link).symlink_to((folder / stack).resolve())
