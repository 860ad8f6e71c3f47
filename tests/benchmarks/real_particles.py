"""``cryoeq reconstruct`` on experimental particles, run by run, scored against what else is known of each molecule.

    python tests/benchmarks/real_particles.py --data DIR --work DIR                          every set, seeds 0 to 9
    python tests/benchmarks/real_particles.py --data DIR --work DIR --sets betagal --seeds 0-2
    python tests/benchmarks/real_particles.py --score-only RUN --set apoferritin --data DIR  figures of one run folder
    python tests/benchmarks/real_particles.py --report                             the table of what is recorded

``--data`` is the folder with one folder per set (``--tilts`` names that of the tilt images; without it they are left
out). Each run is appended to ``real_particles.json`` beside this file when it ends; a run that is recorded there, made
by the same code, is not done again. ``--limits`` adds what the data allow: particles posed by matching them to the
reference (``match_truth.py``), then reconstructed with these poses.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from ab_initio import listed, seed_list
from real_pictures import LOOKS, draw
from real_report import report
from real_scores import Known, read_known, same_map, score_against
from recorded_runs import (
    CRYOEQ,
    Cost,
    Record,
    append_record,
    cost_record,
    find_record,
    measure,
    read_records,
    stop_children_when_terminated,
)

from cryoeq.domain.volume import Volume
from cryoeq.io.mrc import read_map, write_map
from cryoeq.io.particles import read_particles
from cryoeq.io.text import read_json
from cryoeq.maps.alignment import align_map, mirror_map
from cryoeq.simulation.density import resample_map

RESULTS = Path(__file__).with_suffix(".json")
BACTERIAL = "warptools_test_box-32_angpix-12_reconstruct.mrc"  # beside the tilt images
MATCH = Path(__file__).with_name("match_truth.py")


@dataclass(frozen=True)
class RealSet:
    """A set of experimental particles.

    Args:
        folder: that holds its ``particles.star``.
        options: of ``cryoeq reconstruct``.
        reference: map or model of the molecule in that folder; None without one.
        symmetry: point group of the molecule.
    """

    folder: str
    options: tuple[str, ...] = ()
    reference: str | None = None
    symmetry: str = "C1"

    @property
    def imposed(self) -> str:
        """The point group that is asked for."""
        return self.options[1] if self.options else "C1"


SETS: Mapping[str, RealSet] = {
    "ribosome": RealSet("ribosome80s_10028"),
    "betagal": RealSet("betagal_10204", ("--sym", "D2"), "reference.mrc", "D2"),
    "betagal_c1": RealSet("betagal_10204", (), "reference.mrc", "D2"),
    "apoferritin": RealSet("apoferritin_10146", ("--sym", "O"), "reference_ca.pdb", "O"),
    "tilts": RealSet(""),
}


@dataclass(frozen=True)
class Bench:
    """Where runs happen.

    Args:
        data: folder of the sets.
        tilts: folder of the tilt images; None without.
        work: folder of the runs.
        threads: of each run.
        records: the JSON file.
    """

    data: Path
    tilts: Path | None
    work: Path
    threads: int
    records: Path = RESULTS

    def folder(self, name: str) -> Path:
        """Where the particles of a set are."""
        return self.tilts if name == "tilts" and self.tilts else self.data / SETS[name].folder

    def output(self, name: str, seed: int) -> Path:
        """Run folder."""
        return self.work / f"{name}_{seed}"

    def known(self, name: str, box_size_px: int, pixel_size_angstrom: float) -> Known:
        """The reference of a set, on the grid of its particles."""
        chosen = SETS[name]
        path = self.folder(name) / str(chosen.reference)
        return read_known(path, chosen.symmetry, box_size_px, pixel_size_angstrom)

    def command(self, name: str, particles: Path, output: Path, *options: str) -> list[str]:
        """``cryoeq reconstruct`` with the options of the set."""
        words = [CRYOEQ, "reconstruct", str(particles), "-o", str(output), *SETS[name].options]
        return [*words, "-j", str(self.threads), *options]

    def record(self, key: Record, commands: Sequence[Sequence[str]], cost: Cost, scores: Record) -> Record:
        """Append what a run took and reached."""
        places = {"{work}": self.work, "{data}": self.data, "cryoeq": Path(CRYOEQ), "python": Path(sys.executable)}
        places["tests/benchmarks"] = MATCH.parent
        if self.tilts:
            places["{tilts}"] = self.tilts
        record = {**key, **cost_record(cost, commands, places), **scores}
        append_record(self.records, record)
        print(
            f"{key['set']} {key['mode']} seed {key['seed']}: {cost.cpu_s:.0f} CPU s, {json.dumps(scores)}", flush=True
        )
        return record


def is_same_code(record: Record) -> bool:
    """Whether a record was made with the package as it is now."""
    git, commit = shutil.which("git"), record["commit"] or ""
    if git is None or not re.fullmatch("[0-9a-f]{40}", commit):
        return False
    checkout = str(Path(__file__).parents[2])
    words = [git, "-C", checkout, "diff", "--quiet", commit, "--", "cryoeq/**.py", "configs"]
    return subprocess.run(words, check=False, capture_output=True).returncode == 0


def done_before(key: Record, records: Path) -> Record | None:
    """The record of a run, if this code made it."""
    before = find_record(read_records(records), key)
    return before if before and is_same_code(before) else None


def half_map_figures(run: Path) -> Record:
    """FSC 0.143 of the half maps: unmasked, within the automatic mask, and corrected for it."""
    answer = run.with_name(f"{run.name}_fsc.json")
    words = [CRYOEQ, "fsc", str(run / "run_half1_class001_unfil.mrc"), "--no-postprocess", "--json", str(answer)]
    if measure(words, log=run.with_name(f"{run.name}_fsc.log"), environment={"OMP_NUM_THREADS": "1"}).exit_code:
        raise RuntimeError(f"cryoeq fsc failed on {run}")
    found = read_json(answer)
    rounded = {name: [round(value, 3) for value in curve] for name, curve in found["fsc"].items() if curve}
    figures = {name: value and round(value, 2) for name, value in found["resolution_angstrom"].items()}
    return {**figures, "fsc": {name: rounded[name] for name in ("unmasked", "corrected") if name in rounded}}


def score_run(name: str, run: Path, bench: Bench, first: Path | None = None) -> Record:
    """All figures of a run folder.

    Args:
        name: of the set.
        run: the folder.
        bench: where the references are.
        first: run of the same set whose map is the one to compare with; None for no comparison.
    """
    chosen, volume = SETS[name], run / "run_class001.mrc"
    job = read_json(run / "job.json")
    reasons = [reason["text"] for reason in job["verdict"]["reasons"] if reason["weight"] == "against"]
    named = job.get("results", {}).get("apparent_symmetry")
    scores: Record = {"answer": job["verdict"]["answer"], "against": reasons, "named": named}
    if not volume.is_file():
        return scores
    scores["half_maps"] = half_map_figures(run)
    found = read_map(volume)
    if chosen.reference:
        known = bench.known(name, found.box_size_px, found.pixel_size_angstrom)
        scores["against_reference"], _ = score_against(found, known, chosen.imposed)
    elif first and (first / "run_class001.mrc").is_file():
        scores["same_as_first"] = same_map(read_map(first / "run_class001.mrc"), found)
    if name == "ribosome" and bench.tilts:
        scores["against_70s"] = against_another(found, read_map(bench.tilts / BACTERIAL))
    return scores


def against_another(volume: Volume, other: Volume) -> Record:
    """Mean FSC with the map of a like molecule on a coarser grid, and whether it has the other hand."""
    moving = resample_map(volume, other.box_size_px, other.pixel_size_angstrom)
    alignment = align_map(moving, other, with_hand=True)
    return {"mean_fsc": round(alignment.correlation, 3), "is_mirrored": alignment.is_mirrored}


def draw_run(name: str, run: Path, bench: Bench, picture: Path, *, with_curves: bool = True) -> None:
    """The picture of a run, in the hand and the frame of its reference where there is one.

    Args:
        name: of the set.
        run: its folder.
        bench: where particles and references are.
        picture: PNG file.
        with_curves: correlations too.
    """
    volume, stack = read_map(run / "run_class001.mrc"), read_particles(bench.folder(name) / "particles.star")
    scores = half_map_figures(run)["fsc"]
    curves = {f"half maps, {way}": curve for way, curve in scores.items()}
    if SETS[name].reference:
        known = bench.known(name, volume.box_size_px, volume.pixel_size_angstrom)
        scores, alignment = score_against(volume, known, SETS[name].imposed)
        volume = alignment.apply(volume)
        curves["against the reference, within its mask"] = scores["corrected"]["fsc"]
    elif bench.tilts and against_another(volume, read_map(bench.tilts / BACTERIAL))["is_mirrored"]:
        volume = replace(volume, values=mirror_map(volume.values))
    mass = draw(picture, stack, volume, LOOKS[name], curves if with_curves else {})
    print(f"{picture}: {mass:.0f} kDa within the surface", flush=True)


def run_one(bench: Bench, name: str, seed: int, first_seed: int) -> Record:
    """The record of one run, done now unless this code did it before."""
    key = {"set": name, "mode": "search", "seed": seed, "options": list(SETS[name].options)}
    if before := done_before(key, bench.records):
        return before
    output = bench.output(name, seed)
    shutil.rmtree(output, ignore_errors=True)
    command = bench.command(name, bench.folder(name) / "particles.star", output, "--seed", str(seed))
    cost = measure(command, log=output.with_suffix(".log"), environment={"OMP_NUM_THREADS": str(bench.threads)})
    scores = score_run(name, output, bench, bench.output(name, first_seed))
    return bench.record(key, [command], cost, scores)


def run_limit(bench: Bench, name: str, like: Path) -> Record:
    """What the data allow: particles matched to the reference, which has the power of a map from the same images.

    Args:
        bench: where.
        name: of a set with a reference.
        like: map of these images.
    """
    key = {"set": name, "mode": "limit", "seed": 0, "options": list(SETS[name].options)}
    if before := done_before(key, bench.records):
        return before
    output = bench.work / f"{name}_limit"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    volume = read_map(like)
    known = bench.known(name, volume.box_size_px, volume.pixel_size_angstrom)
    write_map(output / "reference.mrc", known.volume)
    matched, run = output / "matched", output / "run"
    particles = bench.folder(name) / "particles.star"
    files = ["--map", str(output / "reference.mrc"), "--like", str(like), "-o", str(matched)]
    match = [sys.executable, str(MATCH), str(particles), *files]
    posed = ["--pose-inference", "known", "--datadir", str(bench.folder(name))]
    known_poses = bench.command(name, matched / "run_data.star", run, *posed)
    cost = Cost()
    for command in (match, known_poses):
        threads = {"OMP_NUM_THREADS": str(bench.threads)}
        cost = cost.then(measure(command, log=output / "log.txt", environment=threads))
        if cost.exit_code:
            raise RuntimeError(f"{shlex.join(command)} failed; see {output / 'log.txt'}")
    found = read_map(run / "run_class001.mrc")
    scores, _ = score_against(found, known, SETS[name].imposed)
    return bench.record(key, [match, known_poses], cost, {"against_reference": scores})


def draw_pictures(bench: Bench, name: str, run: Path) -> None:
    """The picture of a set beside this file, and of the ribosome that of the README."""
    draw_run(name, run, bench, RESULTS.with_name(f"real_{name}.png"))
    if name == "ribosome":
        draw_run(name, run, bench, RESULTS.parents[2] / "data_samples" / "ribosome.png", with_curves=False)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the sets")
    parser.add_argument("--tilts", type=Path, help="folder of the tilt images")
    parser.add_argument("--work", type=Path, help="folder for the runs")
    parser.add_argument("--sets", type=listed, default=tuple(SETS), help=f"of {', '.join(SETS)}")
    parser.add_argument("--seeds", type=seed_list, default=tuple(range(10)), help="such as 0-9 or 0,3")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--limits", action="store_true", help="also poses matched to the references")
    parser.add_argument("--pictures", action="store_true", help="draw the first seed's run of each set")
    parser.add_argument("--score-only", type=Path, metavar="RUN", help="figures of one run folder")
    parser.add_argument("--set", choices=SETS, help="the set of --score-only")
    parser.add_argument("--first", type=Path, metavar="RUN", help="--score-only: compare with the map of this run")
    parser.add_argument("--records", type=Path, default=RESULTS, help=f"JSON file (default {RESULTS.name})")
    parser.add_argument("--report", action="store_true", help="the table of what is recorded")
    given = parser.parse_args()
    if unknown := [name for name in given.sets if name not in SETS]:
        parser.error(f"no set {', '.join(unknown)}; there are {', '.join(SETS)}")
    if given.score_only and not (given.set and given.data):
        parser.error("--score-only needs --set and --data")
    if not given.report and not given.score_only and not (given.data and given.work):
        parser.error("--data and --work are needed")
    return given


def main() -> None:
    """Run, record, print the table."""
    given = parse()
    torch.set_num_threads(given.threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(given.threads))
    if given.report:
        print(report(read_records(given.records)))
        return
    work = given.work.resolve() if given.work else given.score_only.parent
    bench = Bench(given.data.resolve(), given.tilts, work, given.threads, given.records)
    if given.score_only:
        print(json.dumps(score_run(given.set, given.score_only, bench, given.first), indent=1))
        return
    stop_children_when_terminated()
    work.mkdir(parents=True, exist_ok=True)
    for name in given.sets:
        if name == "tilts" and not given.tilts:
            print("tilts: left out, --tilts is not given", flush=True)
            continue
        for seed in given.seeds:
            run_one(bench, name, seed, given.seeds[0])
        if given.limits and name in {"betagal", "apoferritin"}:
            run_limit(bench, name, bench.output(name, given.seeds[0]) / "run_class001.mrc")
        if given.pictures and name in LOOKS:
            draw_pictures(bench, name, bench.output(name, given.seeds[0]))
    print(f"\n{report(read_records(given.records))}")


if __name__ == "__main__":
    main()
