"""Reconstruction of stacks as they come: junk, coloured noise, uneven views, contrast, wrong defocus.

    python tests/benchmarks/realistic.py --work DIR                     seeds 0-9, which the page reports
    python tests/benchmarks/realistic.py --work DIR --seeds 100-103     seeds of the development
    python tests/benchmarks/realistic.py --work DIR --no-runs           the table of what is recorded

1WCM, 64 px, 2,000 images of SNR 0.1, offsets of 5 % of the box, 20 % junk of four kinds, coloured noise, preferred
views, contrast 15 %, defocus wrong by 150 Angstrom, background normalised. Every seed has a stack of its own, and one
``cryoeq reconstruct`` of it without any option but the seed. Errors are those of the good particles: junk has no pose.
A run finds the structure if their median rotation error is below 10 degrees and its FSC of 0.5 against the truth lies
within 2 shells of that of the map from the true poses of the good particles. Runs are appended to ``realistic.json``;
what is recorded is not done again.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from ab_initio import COST_FIGURES, MAP_FIGURES, POSE_FIGURES, is_success, latest, markdown_table, seed_list, spread
from benchmark_sets import DATA, SETS, Simulated, prepare
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
from scoring import Truth, pose_figures, read_poses, read_truth, score_map

from cryoeq.io.labels import CLASS_NUMBER, JUNK_KIND
from cryoeq.io.star import StarTable, write_star
from cryoeq.io.text import read_json

RESULTS = Path(__file__).with_suffix(".json")
FIRST_SIMULATION_SEED = 1000
_AS_IT_COMES = (
    "--junk", "0.2", "--noise", "coloured", "--scale-sd", "0.15", "--defocus-error", "150", "--normalise",
)  # fmt: skip


def stack_of(seed: int) -> Simulated:
    """The recipe of a seed's stack.

    Args:
        seed: of the run.
    """
    base = SETS["base"]
    assert isinstance(base, Simulated)
    seed += FIRST_SIMULATION_SEED
    return replace(base, box_px=64, views="preferred", simulation=_AS_IT_COMES, seed=seed)


def run(work: Path, records: Path, mode: str, seed: int, time_limit_s: float) -> Record:
    """The record of a run, done now unless it was done before.

    Args:
        work: folder of stacks and runs.
        records: the JSON file.
        mode: ``search``, or ``known`` for the good particles with their true poses.
        seed: of the run and, 1000 further on, of its stack.
        time_limit_s: after which it is killed.
    """
    key: Record = {"set": "realistic", "mode": mode, "seed": seed, "options": []}
    before = find_record(read_records(records), key)
    if before is not None:
        return before
    folder = prepare(f"realistic_{seed}", work, stack_of(seed))
    truth = read_truth(folder)
    good = torch.from_numpy(truth.star.floats(CLASS_NUMBER) > 0)
    star = folder / "particles.star"
    if mode == "known":
        star = folder / "good.star"
        write_star(star, without_junk(truth.star))
    output = work / "runs" / f"{mode}_{seed}"
    shutil.rmtree(output, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [CRYOEQ, "reconstruct", str(star), "-o", str(output), "--pose-inference", mode, "--seed", str(seed)]
    cost = measure(command, log=output.with_suffix(".log"), time_limit_s=time_limit_s)
    record = {
        **key, "time_limit_s": time_limit_s,
        **cost_record(cost, [command], {"DIR": work, "DATA": DATA, "cryoeq": Path(CRYOEQ)}),
        **_scores(output, truth, good, with_poses=mode != "known"),
    }  # fmt: skip
    append_record(records, record)
    return record


def without_junk(star: StarTable) -> StarTable:
    """The rows of particles.

    Args:
        star: a truth.
    """
    return star.rows([row for row, kind in enumerate(star.particles[JUNK_KIND].tolist()) if kind == "none"])


def _scores(output: Path, truth: Truth, good: torch.Tensor, *, with_poses: bool) -> Record:
    poses, volume, job = (output / name for name in ("run_data.star", "run_class001.mrc", "job.json"))
    found = None
    if with_poses and poses.is_file():
        found = pose_figures(read_poses(poses, truth)[good], truth.poses[good], truth.volume.pixel_size_angstrom)
    recorded = read_json(job) if job.is_file() else {}
    return {
        "poses": found,
        "map": score_map(volume, truth) if volume.is_file() else None,
        "reported": recorded.get("results"),
        "verdict": (recorded.get("verdict") or {}).get("answer"),
    }


def table(records: list[Record]) -> str:
    """One row for each seed, and one for all of them.

    Args:
        records: of all runs.
    """
    figures = POSE_FIGURES | MAP_FIGURES | COST_FIGURES
    found = latest(records, set="realistic", mode="search")
    known = {record["seed"]: record for record in latest(records, set="realistic", mode="known")}
    names = {
        record["seed"]: "found" if is_success(record, known.get(record["seed"])) else "not found" for record in found
    }
    rows = [
        [
            str(record["seed"]),
            names[record["seed"]],
            record["verdict"] or "–",
            *(spread(f, [record]) for f in figures.values()),
        ]
        for record in sorted(found, key=lambda record: record["seed"])
    ]
    count = f"{list(names.values()).count('found')} of {len(names)}"
    rows.append(["all", count, "", *(spread(figure, found) for figure in figures.values())])
    rows.append(["true poses", "", "", *(spread(figure, list(known.values())) for figure in figures.values())])
    return markdown_table(["seed", "structure", "verdict", *figures], rows)


def main() -> None:
    """Run, record, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for stacks and runs")
    parser.add_argument("--seeds", type=seed_list, default=tuple(range(10)), help="such as 0-9 (default) or 100-103")
    parser.add_argument("--time-limit", type=float, default=3600.0, help="of each run in seconds (default 3600)")
    parser.add_argument("--records", type=Path, default=RESULTS, help=f"JSON file (default {RESULTS.name})")
    parser.add_argument("--no-runs", action="store_true", help="only the table of what is recorded")
    given = parser.parse_args()
    stop_children_when_terminated()
    torch.set_num_threads(1)
    for seed in () if given.no_runs else given.seeds:
        for mode in ("known", "search"):
            record = run(given.work.resolve(), given.records, mode, seed, given.time_limit)
            figures = "; ".join(f"{name} {spread(figure, [record])}" for name, figure in POSE_FIGURES.items())
            print(
                f"{mode} seed {seed}: exit code {record['exit_code']}; {figures}; CPU {record['cpu_s']} s", flush=True
            )
    print(f"\n{table([one for one in read_records(given.records) if one['seed'] in given.seeds])}")


if __name__ == "__main__":
    main()
