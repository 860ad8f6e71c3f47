"""Refinement at the full box: from particles to the limit of the data, beside the map of the true poses.

    python tests/benchmarks/full_box.py --work DIR                        every set and mode, seed 0
    python tests/benchmarks/full_box.py --work DIR --sets 1wcm --modes search,before --seeds 0-2
    python tests/benchmarks/full_box.py --work DIR --no-runs --table FILE the table of what is recorded

Modes: ``search`` is ``cryoeq reconstruct``, ``before`` the same without the refinement at the full box, ``refine`` is
``cryoeq refine`` from the true map, low-passed to 30 Angstrom, ``unmasked`` is ``search`` without solvent flattening.
Beside them, once per set: ``known``, the map from the true poses, and ``limit``, the true poses refined locally against
the true map, which no reconstruction can be better than on average. Each run is appended to the records (by default
``full_box.json`` beside this file) when it ends; a run that is recorded there is not done again.
"""

import argparse
import shlex
import shutil
import sys
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from ab_initio import (
    COST_FIGURES,
    MAP_FIGURES,
    POSE_FIGURES,
    latest,
    listed,
    markdown_table,
    score_folder,
    seed_list,
    spread,
)
from benchmark_sets import DATA, Simulated, prepare
from match_truth import scaled_to, true_poses
from recorded_runs import (
    CRYOEQ,
    Record,
    append_record,
    cost_record,
    find_record,
    measure,
    read_records,
    stop_children_when_terminated,
)
from scoring import Truth, read_truth

from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.events import result_of
from cryoeq.domain.pose import PoseSet
from cryoeq.io.mrc import read_map
from cryoeq.io.particles import write_particle_star
from cryoeq.io.text import write_text
from cryoeq.pipelines.reconstruct.build import build_dataset, build_refinement_settings, build_stack
from cryoeq.reconstruction.local_refinement import refine_poses
from cryoeq.reconstruction.particle_transforms import load_transforms
from cryoeq.reconstruction.reference import Reference

RESULTS = Path(__file__).with_suffix(".json")
# What stands for programs in the records.
PROGRAMS = {"cryoeq": Path(CRYOEQ), "python": Path(sys.executable), "tests/benchmarks": Path(__file__).resolve().parent}
MODES = ("search", "before", "refine", "unmasked")
_SHIFTED = ("--shift-sigma", "8", "--astigmatism", "0")
_1WCM = Simulated("1wcm.pdb", box_px=128, snr=0.05, simulation=("--angpix", "2.2", *_SHIFTED), seed=5)
SETS = {
    "1wcm": _1WCM,
    "1wcm_105": replace(_1WCM, seed=105),
    "1wcm_106": replace(_1WCM, seed=106),
    "6msm": Simulated("6msm.pdb", box_px=128, snr=0.05, seed=5),
    "7ez0": Simulated("7ez0.pdb", box_px=128, snr=0.05, seed=5),
    "1wcm_n10000": replace(_1WCM, count=10_000),
    "1wcm_256": replace(_1WCM, box_px=256, snr=0.02, simulation=("--angpix", "1.1", *_SHIFTED)),
}


def command_of(key: Record, folder: Path, output: Path) -> list[str]:
    """The command of a run.

    Args:
        key: its set, mode, seed and options.
        folder: of the set.
        output: folder of the run.
    """
    mode, particles, truth = key["mode"], str(folder / "particles.star"), str(folder / "truth.star")
    ends = ["-o", str(output), "--seed", str(key["seed"]), "-j", "1", *key["options"]]
    match mode:
        case "known":
            return [CRYOEQ, "reconstruct", truth, "--pose-inference", "known", *ends]
        case "limit":
            return [sys.executable, str(Path(__file__)), "--work", str(folder), "--limit", str(output)]
        case "refine":
            return [CRYOEQ, "refine", particles, "--ref", str(folder / "truth_volume.mrc"), "--ini-high", "30", *ends]
        case "before":
            return [CRYOEQ, "reconstruct", particles, "--set", "full_box.iterations=0", *ends]
        case "unmasked":
            return [CRYOEQ, "reconstruct", particles, "--set", "full_box.solvent_flattening=false", *ends]
        case _:
            return [CRYOEQ, "reconstruct", particles, *ends]


def run_once(work: Path, records: Path, key: Record, truth: Truth, time_limit_s: float | None) -> Record:
    """The record of a run, done now unless it was done before.

    Args:
        work: folder of sets and runs.
        records: the JSON file.
        key: set, mode, seed and options of the run.
        truth: of the set.
        time_limit_s: of the run.
    """
    before = find_record(read_records(records), key)
    if before is not None:
        return before
    tag = zlib.crc32(" ".join(key["options"]).encode())
    output = work / "runs" / key["set"] / f"{key['mode']}_{key['seed']}_{tag:08x}"
    shutil.rmtree(output, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    command = command_of(key, work / key["set"], output)
    cost = measure(command, log=output.with_suffix(".log"), time_limit_s=time_limit_s)
    record = {
        **key, "time_limit_s": time_limit_s,
        **cost_record(cost, [command], {"DIR": work, "DATA": DATA, **PROGRAMS}),
        **score_folder(output, truth, with_poses=key["mode"] != "known"),
    }  # fmt: skip
    append_record(records, record)
    return record


def refine_against_truth(folder: Path, output: Path) -> None:
    """Poses of the particles of a set, refined locally against its true map from the true poses.

    Args:
        folder: of the set.
        output: folder that gets ``run_data.star``.
    """
    config = load_config(ReconstructConfig, explicit={"particles": folder / "particles.star", "output": output})
    stack = build_stack(config, with_poses=False)
    dataset = build_dataset(config, stack, None, reads_once=True)
    particles = result_of(load_transforms(dataset, torch.device("cpu")))
    star, truth = true_poses(folder / "truth.star")
    pixel, box = dataset.pixel_size_angstrom, dataset.box_size_px
    volume = read_map(folder / "truth_volume.mrc", angpix=pixel).values
    reference = Reference.prepare(scaled_to(particles, volume, truth, pixel), particles)
    start = PoseSet.from_angstrom(truth, pixel, box).each(torch.Tensor.float)
    sigma_px = build_refinement_settings(config, dataset, "C1").shift_sigma_px
    found = refine_poses(particles, reference, start, shift_sigma_px=sigma_px)
    output.mkdir(parents=True, exist_ok=True)
    write_particle_star(output / "run_data.star", star.star, found.poses.to_angstrom(pixel))


def table(records: Sequence[Record], names: Sequence[str], modes: Sequence[str]) -> str:
    """One row per set and mode: medians over seeds and ranges.

    Args:
        records: all of them.
        names: sets to show.
        modes: to show.
    """
    figures = POSE_FIGURES | MAP_FIGURES | COST_FIGURES
    rows = [
        [name, mode, f"{len(group)}", *(spread(figure, group) for figure in figures.values())]
        for name in names
        for mode in ("known", "limit", *modes)
        if (group := latest(records, set=name, mode=mode))
    ]
    return markdown_table(["set", "mode", "runs", *figures], rows)


def main() -> None:
    """Run, record, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for sets and runs")
    parser.add_argument("--sets", type=listed, default=tuple(SETS), help=f"of {', '.join(SETS)}")
    parser.add_argument("--modes", type=listed, default=MODES, help=f"of {', '.join(MODES)}; none: the truth only")
    parser.add_argument("--seeds", type=seed_list, default=(0,), help="of the runs, such as 0-4")
    parser.add_argument("--options", type=shlex.split, default=[], help="more options of cryoeq, quoted")
    parser.add_argument("--time-limit", type=float, help="of each run in seconds")
    parser.add_argument("--records", type=Path, default=RESULTS, help=f"JSON file (default {RESULTS.name})")
    parser.add_argument("--table", type=Path, help="write the table to this file as Markdown")
    parser.add_argument("--no-runs", action="store_true", help="only the table of what is recorded")
    parser.add_argument("--limit", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.limit:
        refine_against_truth(given.work, given.limit)
        return
    if unknown := [name for name in given.sets if name not in SETS]:
        parser.error(f"no set {', '.join(unknown)}; there are {', '.join(SETS)}")
    stop_children_when_terminated()
    work, modes = given.work.resolve(), [mode for mode in given.modes if mode != "none"]
    for name in () if given.no_runs else given.sets:
        truth = read_truth(prepare(name, work, SETS[name]))
        runs = [("known", 0), ("limit", 0), *((mode, seed) for mode in modes for seed in given.seeds)]
        for mode, seed in runs:
            options = [] if mode in {"known", "limit"} else list(given.options)
            key = {"set": name, "mode": mode, "seed": seed, "options": options}
            record = run_once(work, given.records, key, truth, given.time_limit)
            print(table([record], [name], [mode]).splitlines()[-1], flush=True)
    text = table(read_records(given.records), given.sets, modes)
    print(f"\n{text}")
    if given.table:
        write_text(given.table, text)


if __name__ == "__main__":
    main()
