"""The commands of the walk page (``cryoeq/io/walk.md``), ours and RELION's, with what RELION makes of our files.

    python tests/benchmarks/walk.py --work DIR [--relion BIN_DIR] [--seed N]

360 particles of 1WCM in ten micrographs, extracted into 32 px of 7.75 A, SNR 0.3 in the box of 64 px; of the section on
several structures 432 of two molecules at SNR 0.5. Rotation errors are those against the truth, in the frame of the
molecule; a difference is that between two programs, particle by particle. ``scale`` is the factor of a map's
projections that fits the particles best: 1 on the absolute grey scale. The record goes to ``walk.json``.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1]))

from recorded_runs import CRYOEQ, Cost, append_record, cost_record, measure, stop_children_when_terminated
from simulated_project import Project, Simulation, make_project
from walk_page import CLASSES, commands

from cryoeq.config.loading import packaged_file
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.io.mrc import read_map, write_map
from cryoeq.io.particles import read_particles, read_table, star_poses
from cryoeq.io.star import StarTable, read_star
from cryoeq.io.star_text import read_blocks, text_column, write_blocks
from cryoeq.io.text import read_json
from cryoeq.physics.ctf import image_transfer
from cryoeq.physics.image_formation import form_images
from cryoeq.physics.projection import prepare_slices
from cryoeq.simulation.density import sample_atoms
from phantoms import chiral_phantom

RESULTS = Path(__file__).with_name("walk.json")
_MAP = "cryoeq/map/run_class001.mrc"
_OURS, _FINE = "cryoeq/map/run_data.star", "cryoeq/fine/run_data.star"


def walk(folder: Path, environment: dict[str, str], *, with_classes: bool) -> Iterator[tuple[list[str], Cost]]:
    """Run the commands of the page in a project, and one global refinement of RELION more, on a relative grey scale."""
    here = folder
    for heading, typed in commands():
        if (heading == CLASSES) != with_classes:
            continue
        if typed[0] == "cd":
            here = folder / typed[1]
            continue
        (folder / "Extract" / "job020").mkdir(parents=True, exist_ok=True)
        for words in [typed, *_on_a_relative_scale(typed)]:
            command = [CRYOEQ, *words[1:]] if words[0] == "cryoeq" else words
            cost = measure(command, log=folder / "log", folder=here, environment=environment)
            if cost.exit_code:
                raise SystemExit(f"{words} failed: {(folder / 'log').read_text()[-2000:]}")
            yield words, cost


def _on_a_relative_scale(words: list[str]) -> list[list[str]]:
    if "cryoeq/relion_global" not in words:
        return []
    return [[*(word.replace("relion_global", "relion_cc") for word in words), "--firstiter_cc"]]


def errors(folder: Path, star: str, truth: str = "truth.star") -> dict[str, Any]:
    """Median and mean rotation error against the truth, in degrees."""
    words = [CRYOEQ, "evaluate", star, truth, "--json", "errors.json"]
    subprocess.run(words, cwd=folder, check=True, capture_output=True)
    found = read_json(folder / "errors.json")["rotation_deg"]
    return {"median_deg": found["median"], "mean_deg": found["mean"]}


def write_truth_of_extracted_again(folder: Path) -> str:
    """The truth with the names of the second extraction, in each micrograph in the order of the first."""
    before, after = (read_star(folder / name) for name in ("cryoeq/good.star", "Extract/job020/particles.star"))
    first, again = (dict(_in_micrographs(star)) for star in (before, after))
    renamed = {first[key]: name for key, name in again.items()}
    blocks = read_blocks(folder / "truth.star")
    names = blocks["particles"]["rlnImageName"].tolist()
    rows = np.array([name in renamed for name in names])
    particles = {name: column[rows] for name, column in blocks["particles"].items()}
    particles["rlnImageName"] = text_column([renamed[name] for name in names if name in renamed])
    write_blocks(folder / "truth_again.star", {**blocks, "particles": particles})
    return "truth_again.star"


def _in_micrographs(star: StarTable) -> Iterator[tuple[tuple[str, int], str]]:
    """Micrograph and place among its particles, and image, of each row."""
    counts: dict[str, int] = {}
    for micrograph, name in zip(star.particles["rlnMicrographName"], star.particles["rlnImageName"], strict=True):
        counts[micrograph] = counts.get(micrograph, 0) + 1
        yield (micrograph, counts[micrograph]), name


def difference(folder: Path, one: str, other: str) -> dict[str, float]:
    """Between the poses of two files with the same images."""
    first, second = (read_table(folder / name) for name in (one, other))
    row = {name: number for number, name in enumerate(first.particles["rlnImageName"].tolist())}
    rows = [row[name] for name in second.particles["rlnImageName"].tolist()]
    a, b = star_poses(first), star_poses(second)
    angles = torch.rad2deg(rotation_angle_rad(a.rotations[rows].double(), b.rotations.double()))
    return {"median_deg": float(angles.median()), "largest_deg": float(angles.max())}


def scale(folder: Path, star: str, volume: str, last_shell: int) -> float:
    """The factor of a map's projections that fits the particles of a star file best, by least squares."""
    stack = read_particles(folder / star, with_poses=True)
    table = stack.table
    if table.poses is None or table.ctf is None:
        raise ValueError(f"{star} has no poses or no CTF")
    plane = HalfPlane.up_to(table.box_size_px, last_shell)
    observed = plane.transform(stack.images.read(torch.arange(len(stack.images))))
    transfer = image_transfer(table.ctf, plane.frequencies_per_angstrom(table.pixel_size_angstrom))
    shifts = (table.poses.shifts_angstrom / table.pixel_size_angstrom).float()
    padded = prepare_slices(read_map(folder / volume).values)
    predicted = form_images(padded, table.poses.rotations.float(), shifts, transfer, plane)
    common = ((predicted.conj() * observed).real * plane.weights).double().sum()
    return float(common / (predicted.abs().square() * plane.weights).double().sum())


def relion_figures(project: Project) -> dict[str, Any]:
    """What RELION made of one structure."""
    folder, found = project.folder, {}
    for name in ("global", "cc", "local"):
        star = f"cryoeq/relion_{name}_it003_data.star"
        found[name] = errors(folder, star) | {"from_ours": difference(folder, _OURS, star)}
        text = (folder / f"cryoeq/relion_{name}_it003_model.star").read_text()
        found[name]["resolution_angstrom"] = float(text.partition("_rlnCurrentResolution")[2].split()[0])
    theirs, ours = read_star(folder / "Extract/job020/particles.star"), read_star(folder / "cryoeq/recentred.star")
    places = [np.stack([star.floats(f"rlnCoordinate{axis}") for axis in "XY"], 1) for star in (theirs, ours)]
    picks = read_star(folder / "Extract/job005/particles.star")
    picked = np.stack([picks.floats(f"rlnCoordinate{axis}") for axis in "XY"], 1)
    pp = (folder / "cryoeq/fsc/relion.star").read_text()
    return {
        **found,
        "scale_of_our_map": scale(folder, _OURS, _MAP, 14),
        "final_resolution_of_relion_postprocess": float(pp.partition("_rlnFinalResolution")[2].split()[0]),
        "coordinates_that_differ_from_relion": int((np.abs(places[0] - places[1]).max(1) > 0.01).sum()),
        "picks_missed_by_px": float(np.linalg.norm(picked - project.centres_px, axis=1).mean()),
        "new_centres_miss_by_px": float(np.linalg.norm(places[1] - project.centres_px, axis=1).mean()),
    }


def class_figures(folder: Path) -> dict[str, Any]:
    """What RELION made of several structures."""
    ours, theirs = (read_star(folder / f"cryoeq/{name}") for name in ("classes/run_data.star", "theirs.star"))
    refined = read_star(folder / "cryoeq/relion_classes_it002_data.star")
    row = {name: number for number, name in enumerate(ours.particles["rlnImageName"].tolist())}
    rows = [row[name] for name in refined.particles["rlnImageName"].tolist()]
    same = ours.floats("rlnClassNumber")[rows] == refined.floats("rlnClassNumber")
    first = ours.particles["rlnImageName"][ours.floats("rlnClassNumber") == 1].tolist()
    return {
        "share_in_the_same_class_in_relion": float(same.mean()),
        "relion_star_handler_takes_the_same_rows": theirs.particles["rlnImageName"].tolist() == first,
    }


def main() -> None:
    """Run, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the projects")
    parser.add_argument("--relion", type=Path, help="folder of RELION's programs [the PATH]")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    stop_children_when_terminated()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True)
    environment = {"OMP_NUM_THREADS": "1"}
    if given.relion:
        environment["PATH"] = f"{given.relion.resolve()}{os.pathsep}{os.environ['PATH']}"
    model, phantom = packaged_file("data_samples/1wcm_ca.pdb.gz"), given.work / "phantom.mrc"
    write_map(phantom, sample_atoms(chiral_phantom(85.0), 64, 3.875))
    one = make_project(given.work / "one", Simulation(model, seed=given.seed))
    mixture = Simulation(model, f"{phantom}:0.45", n_micrographs=12, snr=0.5, seed=given.seed)
    two = make_project(given.work / "two", mixture)
    total = Cost()
    done: list[list[str]] = []
    for project, with_classes in ((one, False), (two, True)):
        for words, cost in walk(project.folder, environment, with_classes=with_classes):
            print(f"{cost.cpu_s:6.1f} s  {' '.join(words)[:90]}", flush=True)
            total, done = total.then(cost), [*done, words]
    figures = {
        "search": errors(one.folder, _OURS),
        "refine_at_full_box": errors(one.folder, _FINE, write_truth_of_extracted_again(one.folder)),
        "relion": relion_figures(one),
        "classes": class_figures(two.folder),
    }
    key = {"set": "walk", "mode": "relion 3.1.3", "seed": given.seed, "options": []}
    record = {**key, **cost_record(total, done, {"{work}": given.work}), **figures}
    append_record(RESULTS, record)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
