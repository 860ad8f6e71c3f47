"""Probabilities of being junk after a real search: area under the ROC curve by kind of junk, and calibration.

    python tests/benchmarks/junk.py --work DIR                                  the sets and seeds that the page reports
    python tests/benchmarks/junk.py --work DIR --sets junk30 --seeds 0 --compare   other scores of the same run
    python tests/benchmarks/junk.py --work DIR --no-runs                        the tables of what is recorded

Each set: 64 px, offsets of 5 % of the box, equal parts of four kinds of junk, and one ``cryoeq reconstruct`` of the
stack without any option but the seed; every seed has a stack of its own. Runs are appended to ``junk.json``; what is
recorded is not done again. Needs the reference data folder (``CRYOEQ_REFERENCE_DATA``).
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from ab_initio import latest, listed, markdown_table, seed_list
from benchmark_sets import DATA, Simulated, prepare
from junk_rivals import rival_scores
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
from torch import Tensor

from cryoeq.evaluation.particle_scorers import roc_auc
from cryoeq.io.labels import JUNK_KIND, JUNK_PROBABILITY
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json

RESULTS = Path(__file__).with_suffix(".json")
KINDS = ("empty", "edge", "overlap", "broken")
EDGES = (0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.0)  # of the bins of probability
FIRST_SIMULATION_SEED = 2000
_BASE = Simulated(box_px=64)
_AS_IT_COMES = ("--noise", "coloured", "--scale-sd", "0.15", "--defocus-error", "150", "--normalise")
_IN_ICE = ("--neighbours", "0.15", "--noise", "ice", "--scale-sd", "0.15", "--n-micrographs", "25")
SETS: Mapping[str, Simulated] = {
    "junk10": replace(_BASE, simulation=("--junk", "0.1")),
    "junk30": replace(_BASE, simulation=("--junk", "0.3")),
    "junk50": replace(_BASE, simulation=("--junk", "0.5"), count=3000),
    "realistic": replace(_BASE, views="preferred", simulation=("--junk", "0.2", *_AS_IT_COMES)),
    "ice": replace(_BASE, model="6msm.pdb", snr=0.15, simulation=("--junk", "0.25", *_IN_ICE)),
}
REPORTED: Mapping[str, Sequence[int]] = {
    "junk30": (0, 1, 2), "junk10": (0,), "junk50": (0,), "realistic": (0,), "ice": (0,)
}  # fmt: skip


def run(name: str, seed: int, work: Path, records: Path) -> Record:
    """The record of a run, done now unless it was done before.

    Args:
        name: of the set.
        seed: of the run and, 2000 further on, of its stack.
        work: folder of stacks and runs.
        records: the JSON file.
    """
    key: Record = {"set": name, "mode": "search", "seed": seed, "options": []}
    before = find_record(read_records(records), key)
    if before is not None:
        return before
    folder = stack_of(name, seed, work)
    output = work / "runs" / f"{name}_{seed}"
    shutil.rmtree(output, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [CRYOEQ, "reconstruct", str(folder / "particles.star"), "-o", str(output), "-j", "1", "--seed", str(seed)]
    cost = measure(command, log=output.with_suffix(".log"))
    job = read_json(output / "job.json")
    measured = ("junk_share", "broken_share", "junk_auc", "unexplained_share", "explained_signal_share")
    record = {
        **key, "verdict": job["verdict"]["answer"],
        **{field: job["results"].get(field) for field in measured},
        "half_map_resolution_angstrom": job["results"].get("half_map_resolution_angstrom"),
        **cost_record(cost, [command], {"DIR": work, "DATA": DATA, "cryoeq": Path(CRYOEQ)}),
    }  # fmt: skip
    star = read_star(output / "run_data.star")
    if JUNK_PROBABILITY in star.particles:
        record |= scores(torch.from_numpy(star.floats(JUNK_PROBABILITY)), kinds_of(folder))
    append_record(records, record)
    return record


def compare(name: str, seed: int, work: Path, records: Path) -> Record:
    """Areas of other scores, on the folder that ``run`` left; every kind of junk on its own, and all.

    Args:
        name: of the set.
        seed: of the run.
        work: folder of stacks and runs.
        records: the JSON file.
    """
    key: Record = {"set": name, "mode": "compare", "seed": seed, "options": []}
    before = find_record(read_records(records), key)
    if before is not None:
        return before
    folder = stack_of(name, seed, work)
    found = rival_scores(work / "runs" / f"{name}_{seed}", folder, seed)
    kinds = kinds_of(folder)
    record = {**key, "areas": {rival: areas(score, kinds) for rival, score in found.items()}}
    append_record(records, record)
    return record


def stack_of(name: str, seed: int, work: Path) -> Path:
    """The stack of a set and seed, made where it is missing."""
    return prepare(f"{name}_{seed}", work / "sets", replace(SETS[name], seed=FIRST_SIMULATION_SEED + seed))


def kinds_of(folder: Path) -> list[str]:
    """What each image of a stack shows: none, or a kind of junk."""
    return [str(kind) for kind in read_star(folder / "truth.star").particles[JUNK_KIND]]


def areas(score: Tensor, kinds: Sequence[str]) -> dict[str, float]:
    """Area under the ROC curve of all junk, and of each kind beside the particles.

    Args:
        score: of each image, high for junk.
        kinds: what each shows.
    """
    is_good = torch.tensor([kind == "none" for kind in kinds])
    found = {"all": round(roc_auc(score, ~is_good), 4)}
    for kind in KINDS:
        is_kind = torch.tensor([other == kind for other in kinds])
        there = is_good | is_kind
        found[kind] = round(roc_auc(score[there], is_kind[there]), 4)
    return found


def scores(probability: Tensor, kinds: Sequence[str]) -> Record:
    """Areas, calibration in bins, and what is kept below one half.

    Args:
        probability: of each image, of being junk.
        kinds: what each shows.
    """
    is_junk = torch.tensor([kind != "none" for kind in kinds])
    likelihood = torch.where(is_junk, probability, 1 - probability).clamp(min=1e-6)
    bins = torch.bucketize(probability, torch.tensor(EDGES[1:-1], dtype=probability.dtype), right=True)
    kept = probability < 0.5
    return {
        "areas": areas(probability, kinds),
        "true_share": float(is_junk.double().mean()),
        "log_loss": round(-float(likelihood.log().mean()), 4),
        "bins": [
            [int((there := bins == number).sum()), round(float(probability[there].mean()), 4),
             round(float(is_junk[there].double().mean()), 4)] if bool((bins == number).any()) else [0, None, None]
            for number in range(len(EDGES) - 1)
        ],
        "good_kept": round(float(kept[~is_junk].double().mean()), 4),
        "junk_among_kept": round(float(is_junk[kept].double().mean()), 4),
    }  # fmt: skip


def table(records: Sequence[Record]) -> str:
    """One row for each run: areas, shares, what is kept, verdict, cost.

    Args:
        records: of the runs to tell.
    """
    head = ["set", "seed", "all", *KINDS, "share: true", "expected", "good kept", "junk among kept", "log loss"]
    rows = [
        [
            record["set"], str(record["seed"]),
            *([f"{record['areas'][kind]:.4f}" for kind in ("all", *KINDS)] if "areas" in record else ["–"] * 5),
            *(
                [f"{record['true_share']:.3f}", f"{record['junk_share']:.3f}", f"{record['good_kept']:.3f}",
                 f"{record['junk_among_kept']:.3f}", f"{record['log_loss']:.3f}"]
                if "areas" in record else ["–"] * 5
            ),
            record["verdict"], f"{record['cpu_s']:.0f}",
        ]
        for record in records
    ]  # fmt: skip
    return markdown_table([*head, "verdict", "CPU s"], rows)


def calibration(records: Sequence[Record]) -> str:
    """Particles of all runs by their probability: how many, mean probability, share of junk.

    Args:
        records: of the runs to pool.
    """
    rows = []
    for number, (low, high) in enumerate(pairwise(EDGES)):
        parts = [record["bins"][number] for record in records if "bins" in record and record["bins"][number][0]]
        count = sum(part[0] for part in parts)
        means = [sum(part[0] * part[column] for part in parts) / max(1, count) for column in (1, 2)]
        rows.append([f"{low:g} to {high:g}", f"{count:,}", *(f"{mean:.3f}" if count else "–" for mean in means)])
    return markdown_table(["probability", "particles", "mean", "share of junk"], rows)


def comparison(records: Sequence[Record]) -> str:
    """Areas of all scores, one row for each.

    Args:
        records: of ``compare``.
    """
    rows = [
        [record["set"], str(record["seed"]), rival, *(f"{found[kind]:.3f}" for kind in ("all", *KINDS))]
        for record in records
        for rival, found in record["areas"].items()
    ]
    return markdown_table(["set", "seed", "score", "all", *KINDS], rows)


def main() -> None:
    """Run, record, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for stacks and runs")
    parser.add_argument("--sets", type=listed, default=tuple(REPORTED), help="names, with commas between")
    parser.add_argument("--seeds", type=seed_list, help="such as 0-2; default: those of the page")
    parser.add_argument("--compare", action="store_true", help="score with other means too")
    parser.add_argument("--records", type=Path, default=RESULTS, help=f"JSON file (default {RESULTS.name})")
    parser.add_argument("--no-runs", action="store_true", help="only the tables of what is recorded")
    given = parser.parse_args()
    stop_children_when_terminated()
    torch.set_num_threads(1)
    work = given.work.resolve()
    wanted = {name: REPORTED[name] if given.seeds is None else given.seeds for name in given.sets}
    for name, seeds in wanted.items() if not given.no_runs else ():
        for seed in seeds:
            record = run(name, seed, work, given.records)
            print(f"{name} {seed}: {record.get('areas')} CPU {record['cpu_s']} s", flush=True)
            if given.compare:
                compare(name, seed, work, given.records)
    told = [
        record
        for mode in ("search", "compare")
        for name, seeds in wanted.items()
        for record in latest(read_records(given.records), set=name, mode=mode)
        if record["seed"] in seeds
    ]
    runs = [record for record in told if record["mode"] == "search"]
    others = [record for record in told if record["mode"] == "compare"]
    print("\n\n".join((table(runs), calibration(runs), comparison(others))))


if __name__ == "__main__":
    main()
