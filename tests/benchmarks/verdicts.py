"""Verdicts of ``cryoeq reconstruct`` on single molecules, mixtures and round particles.

    python tests/benchmarks/verdicts.py --work DIR                       every set
    python tests/benchmarks/verdicts.py --work DIR --sets ribosome,7ez0  some of them

Each run is a ``cryoeq reconstruct`` of its own; answer, reasons and the measured shares are appended to
``verdicts.json`` beside this file when it ends, and a run that is recorded there is not done again. A mixture is two
stacks of ``cryoeq simulate`` at one pixel size, each at its share of the SNR, joined at random. ``settled`` sets
decided the tests of the verdict, ``report`` sets did not. Needs the reference data folder (``CRYOEQ_REFERENCE_DATA``).
"""

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import benchmark_sets
import numpy as np
import torch
from benchmark_sets import DATA
from recorded_runs import CRYOEQ, Record, append_record, cost_record, find_record, measure, read_records

from cryoeq.evaluation.poses import compare_poses
from cryoeq.io.images import LazyImages
from cryoeq.io.mrc import StackWriter
from cryoeq.io.particles import read_particles, star_poses
from cryoeq.io.star import StarTable, read_star, write_star
from cryoeq.io.text import read_json

RESULTS = Path(__file__).with_suffix(".json")
_ANSWERS = ("rlnAngle", "rlnOrigin", "rlnRandomSubset")
_CLASS = "rlnClassNumber"


@dataclass(frozen=True)
class Mixture:
    """Molecules in one stack.

    Args:
        parts: file of each model, number of its particles, and its SNR.
        box_px: side of the images.
        pixel_angstrom: their pixel size.
        noise: white or coloured.
        seed: of the simulation.
    """

    parts: tuple[tuple[str, int, float], ...]
    box_px: int
    pixel_angstrom: float
    noise: str
    seed: int


@dataclass(frozen=True)
class Given:
    """A particle file of the reference data.

    Args:
        file: relative to the folder of reference data.
        options: of ``cryoeq reconstruct``.
    """

    file: str
    options: tuple[str, ...] = ()


_BENCHMARKS = ("base", "5me2", "7ez0", "snr1", "preferred", "toy_cryodrgn", "s1", "s01", "s01sh", "relion_1wcm")
_SETTLED = ("5me2", "preferred", "toy_cryodrgn")
Recipe = Mixture | Given | benchmark_sets.Simulated | benchmark_sets.Given
SETS: Mapping[str, tuple[str, Recipe]] = {
    "ribosome": ("settled", Given("real_spa/ribosome80s_10028/particles.star")),
    "betagal": ("settled", Given("real_spa/betagal_10204/particles.star")),
    "apoferritin": ("settled", Given("real_spa/apoferritin_10146/particles.star", ("--sym", "O"))),
    "two_molecules": ("settled", Given("mixtures/two_molecules/particles.star")),
    "two_conformations": ("settled", Given("mixtures/two_conformations/particles.star")),
    "6msm": ("settled", Mixture((("6msm.pdb", 2000, 0.2),), 48, 4.5, "white", 7)),
    "1wcm_low": ("settled", Mixture((("1wcm.pdb", 1500, 0.05),), 48, 5.0, "white", 8)),
    "7ez0_5me2": ("settled", Mixture((("7ez0.pdb", 1000, 0.2), ("5me2.pdb", 1000, 0.11)), 48, 4.5, "white", 1)),
    "1wcm_6msm": ("settled", Mixture((("1wcm.pdb", 1600, 0.2), ("6msm.pdb", 400, 0.06)), 48, 5.3, "coloured", 5)),
    **{
        f"bench_{name}": ("settled" if name in _SETTLED else "report", benchmark_sets.SETS[name])
        for name in _BENCHMARKS
    },
    "7l2i": ("report", Mixture((("7l2i.cif", 1500, 0.1),), 48, 5.0, "coloured", 21)),
    "6vxx": ("report", Mixture((("6vxx.pdb", 1500, 0.1),), 48, 5.0, "coloured", 22)),
    "1hzh": ("report", Mixture((("1hzh.pdb", 1500, 0.2),), 48, 4.5, "white", 23)),
    "7l2i_7ez0": ("settled", Mixture((("7l2i.cif", 900, 0.2), ("7ez0.pdb", 900, 0.12)), 48, 4.8, "coloured", 24)),
    "6vxx_1wcm": ("settled", Mixture((("6vxx.pdb", 1000, 0.15), ("1wcm.pdb", 1000, 0.2)), 48, 5.2, "white", 25)),
    "8bk7_6msm": ("report", Mixture((("8bk7.cif", 1200, 0.2), ("6msm.pdb", 800, 0.08)), 48, 5.3, "coloured", 26)),
    "1hzh_6msm": ("report", Mixture((("1hzh.pdb", 1000, 0.2), ("6msm.pdb", 1000, 0.2)), 48, 4.5, "white", 27)),
    "6vxx_open": ("report", Mixture((("6vxx.pdb", 1000, 0.2), ("6vxx_open.pdb", 1000, 0.2)), 48, 4.5, "white", 28)),
}


def prepare(name: str, work: Path, recipe: Mixture) -> Path:
    """Particle file of a mixture, made where it is missing, beside a ``truth.star`` with a class number in each row.

    Raises:
        RuntimeError: a simulation failed.
    """
    folder = work / "sets" / name
    if (folder / "particles.star").is_file():
        return folder / "particles.star"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    stars, images = [], []
    shift_sigma = 0.03 * recipe.box_px * recipe.pixel_angstrom
    for number, (model, count, snr) in enumerate(recipe.parts, 1):
        part = folder / f"part{number}"
        command = [
            CRYOEQ, "simulate", str(DATA / "models" / model), "-o", str(part), "--box", str(recipe.box_px),
            "--angpix", str(recipe.pixel_angstrom), "-n", str(count), "--snr", str(snr), "--noise", recipe.noise,
            "--shift-sigma", str(shift_sigma), "--seed", str(10 * recipe.seed + number),
        ]  # fmt: skip
        if measure(command, log=folder / f"part{number}.log").exit_code != 0:
            raise RuntimeError(f"the simulation of {model} failed; see {folder / f'part{number}.log'}")
        stack = read_particles(part / "truth.star")
        stars.append(stack.star)
        images.append(_all_pixels(stack.images))
    _join(folder, stars, torch.cat(images), recipe)
    return folder / "particles.star"


def _all_pixels(images: LazyImages) -> torch.Tensor:
    return images.read(torch.arange(len(images)))


def _join(folder: Path, stars: list[StarTable], images: torch.Tensor, recipe: Mixture) -> None:
    """One stack in random order, its star file, and its truth."""
    order = np.random.default_rng(recipe.seed).permutation(len(images))
    columns = {name: np.concatenate([star.particles[name] for star in stars])[order] for name in stars[0].particles}
    columns[_CLASS] = np.repeat([str(n + 1) for n in range(len(stars))], [len(star) for star in stars])[order]
    columns["rlnImageName"] = np.array([f"{number:06d}@particles.mrcs" for number in range(1, len(order) + 1)])
    with StackWriter(folder / "particles.mrcs", len(order), recipe.box_px, recipe.pixel_angstrom) as writer:
        writer.append(images[torch.from_numpy(order)])
    write_star(folder / "truth.star", StarTable(stars[0].optics, columns))
    hidden = {name: values for name, values in columns.items() if not name.startswith((*_ANSWERS, _CLASS))}
    write_star(folder / "particles.star", StarTable(stars[0].optics, hidden))


def beyond_30_degrees(run: Path, truth: Path) -> list[float]:
    """Share of each class whose pose is more than 30 degrees from the truth, each class in its own frame."""
    found, true = star_poses(read_star(run / "run_data.star")), read_star(truth)
    classes = torch.from_numpy(true.floats(_CLASS))
    shares = []
    for number in classes.unique().tolist():
        rows = (classes == number).nonzero().squeeze(1)
        errors = compare_poses(found[rows], star_poses(true)[rows])
        shares.append(round(float((errors.rotation_rad.rad2deg() > 30).float().mean()), 3))
    return shares


def run(name: str, work: Path, seed: int) -> Record:
    """The record of one run, done now unless it was done before."""
    kind, recipe = SETS[name]
    options = () if isinstance(recipe, Mixture) else recipe.options
    key = {"set": name, "mode": "search", "seed": seed, "options": list(options)}
    if before := find_record(read_records(RESULTS), key):
        return before
    match recipe:
        case Given():
            particles = DATA / recipe.file
        case Mixture():
            particles = prepare(name, work, recipe)
        case _:
            particles = benchmark_sets.prepare(name.removeprefix("bench_"), work / "bench", recipe) / "particles.star"
    output = work / "runs" / f"{name}_{seed}"
    shutil.rmtree(output, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [CRYOEQ, "reconstruct", str(particles), "-o", str(output), "-j", "1", "--seed", str(seed), *options]
    cost = measure(command, log=output.with_suffix(".log"))
    job = read_json(output / "job.json")
    measured = (
        "half_map_resolution_angstrom",
        "nonspherical_share",
        "nonspherical_resolution_angstrom",
        "unexplained_share",
        "explained_signal_share",
    )
    record = {
        **key, "kind": kind, "answer": job["verdict"]["answer"],
        "against": [reason["text"] for reason in job["verdict"]["reasons"] if reason["weight"] == "against"],
        **{field: job["results"].get(field) for field in measured},
        **cost_record(cost, [command], {"{work}": work, "{data}": DATA, "cryoeq": Path(CRYOEQ)}),
    }  # fmt: skip
    truth = particles.with_name("truth.star")
    if cost.exit_code == 0 and truth.is_file() and _CLASS in read_star(truth).particles:
        record["beyond_30_deg"] = beyond_30_degrees(output, truth)
    append_record(RESULTS, record)
    return record


def main() -> None:
    """All sets, or those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of sets and runs")
    parser.add_argument("--sets", default=",".join(SETS), help="names, with commas between")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    for name in arguments.sets.split(","):
        for seed in arguments.seeds:
            record = run(name, arguments.work, seed)
            share = record["unexplained_share"]
            print(
                f"{name:18} {seed} {record['answer']:10} unexplained {share} {record.get('beyond_30_deg', '')}",
                flush=True,
            )


if __name__ == "__main__":
    main()
