"""Symmetry named after a search without it: which point group, how far its axes are from the true ones.

    python tests/benchmarks/symmetry.py --work DIR [--sets 5me2,6msm] [--seeds 0-9] [--table FILE]

Each run is ``cryoeq reconstruct`` in C1, then ``cryoeq symmetry`` on its map. A run that is recorded in
``symmetry.json`` is not done again. 6MSM is pseudo-symmetric (C2): nothing is to be named.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from ab_initio import listed, markdown_table, seed_list, spread
from benchmark_sets import DATA, SETS, prepare
from jaxtyping import Float
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
from scoring import Truth, read_truth, symmetry_frame
from torch import Tensor

from cryoeq.io.mrc import read_map
from cryoeq.io.text import write_text
from cryoeq.maps.alignment import align_map

RESULTS = Path(__file__).with_suffix(".json")
GROUPS = {"5me2": "C2", "7l2i": "C4", "8bk7": "D2", "6msm": "C1"}


def run_once(work: Path, records: Path, name: str, seed: int, truth: Truth) -> Record:
    """The record of a run, done now unless it was done before.

    Args:
        work: folder of sets and runs.
        records: the JSON file.
        name: of the set.
        seed: of the run.
        truth: of the set.
    """
    key: Record = {"set": name, "mode": "search", "seed": seed, "options": []}
    before = find_record(read_records(records), key)
    if before is not None:
        return before
    output = work / "symmetry_runs" / f"{name}_{seed}"
    shutil.rmtree(output, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    log = output.with_suffix(".log")
    log.unlink(missing_ok=True)
    star, volume = work / name / "particles.star", output / "run_class001.mrc"
    search = [CRYOEQ, "reconstruct", str(star), "-o", str(output), "--seed", str(seed), "-j", "1"]
    naming = [CRYOEQ, "symmetry", str(volume), "--run", str(output), "-o", str(output / "symmetry")]
    cost = measure(search, log=log)
    record = {**key, "truth": GROUPS[name], "named": None, "map_named": None, "axes_deg": None}
    if cost.exit_code == 0:
        results = json.loads((output / "job.json").read_text(encoding="utf-8"))["results"]
        naming_cost = measure(naming, log=log)
        scores = json.loads((output / "symmetry" / "symmetry.json").read_text(encoding="utf-8"))
        record |= {
            "named": results.get("apparent_symmetry", "C1"),
            "map_named": scores["point_group"],
            "axes_deg": axes_error_deg(volume, scores, truth),
            "scores": {each["symmetry"]: round(each["score"], 4) for each in scores["groups"]},
            "particles": {each["symmetry"]: each["particles"] for each in scores["groups"] if each["particles"]},
            "naming_cpu_s": naming_cost.cpu_s,
        }
    record |= cost_record(cost, [search, naming], {"DIR": work, "DATA": DATA, "cryoeq": Path(CRYOEQ)})
    append_record(records, record)
    return record


def axes_error_deg(path: Path, scores: Record, truth: Truth) -> float | None:
    """Largest angle between an axis of the named group and the nearest true one; None where nothing true is named.

    Args:
        path: the map.
        scores: what ``symmetry.json`` holds.
        truth: of the particles.
    """
    if truth.symmetry == "C1" or scores["point_group"] != truth.symmetry:
        return None
    rotation = next(torch.tensor(each["rotation"]) for each in scores["groups"] if each["symmetry"] == truth.symmetry)
    true_axes = symmetry_frame(truth.volume, truth.symmetry).T
    moving = read_map(path, angpix=truth.volume.pixel_size_angstrom)
    alignment = align_map(moving, truth.volume, with_hand=True)
    mirror = torch.tensor([1.0, 1.0, -1.0]) if alignment.is_mirrored else torch.ones(3)
    axes = (rotation * mirror) @ alignment.rotation.T
    if truth.symmetry.startswith("C"):
        axes, true_axes = axes[2:], true_axes[2:]
    return round(float(_nearest_angles_deg(axes, true_axes).max()), 3)


def _nearest_angles_deg(axes: Float[Tensor, "axes 3"], others: Float[Tensor, "axes 3"]) -> Float[Tensor, " axes"]:
    """Angle between each line and the nearest of others."""
    across = torch.linalg.cross(axes[:, None].expand(-1, len(others), 3), others[None].expand(len(axes), -1, 3))
    return across.norm(dim=-1).clamp(max=1).asin().amin(1).rad2deg()


def table(records: Sequence[Record]) -> str:
    """One row per set: how often it was named, scores and axes over the seeds.

    Args:
        records: of all runs.
    """
    rows = []
    for name, group in GROUPS.items():
        runs = [record for record in records if record["set"] == name and record["named"] is not None]
        asked = "C2" if group == "C1" else group
        named = sum(record["named"] == group for record in runs)
        rows.append(
            [
                name, "none (pseudo-C2)" if group == "C1" else group, f"{named} of {len(runs)}",
                spread(lambda record: record["axes_deg"], runs),
                f"{asked}: " + spread(lambda record, asked=asked: record["scores"][asked], runs),
                spread(lambda record, asked=asked: record["particles"][asked]["gain_nats"], runs),
                spread(lambda record: record["cpu_s"], runs), spread(lambda record: record["naming_cpu_s"], runs),
            ]
        )  # fmt: skip
    head = [
        "set", "truth", "right", "axis ° (median, range)", "score", "gain, nats per particle", "search CPU s",
        "`cryoeq symmetry` CPU s",
    ]  # fmt: skip
    return markdown_table(head, rows)


def main() -> None:
    """Run, record, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for sets and runs")
    parser.add_argument("--sets", type=listed, default=tuple(GROUPS), help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--seeds", type=seed_list, default=tuple(range(10)), help="such as 0-9")
    parser.add_argument("--records", type=Path, default=RESULTS, help=f"JSON file (default {RESULTS.name})")
    parser.add_argument("--table", type=Path, help="write the table to this file as Markdown")
    parser.add_argument("--no-runs", action="store_true", help="only the table of what is recorded")
    given = parser.parse_args()
    if unknown := [name for name in given.sets if name not in GROUPS]:
        parser.error(f"no set {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    stop_children_when_terminated()
    torch.set_num_threads(1)
    work = given.work.resolve()
    for seed in () if given.no_runs else given.seeds:
        for name in given.sets:
            record = run_once(work, given.records, name, seed, read_truth(prepare(name, work), SETS[name].symmetry))
            print(f"{name} seed {seed}: {record['named']}, axes {record['axes_deg']}°, {record['cpu_s']} s", flush=True)
    text = table(read_records(given.records))
    print(f"\n{text}")
    if given.table:
        write_text(given.table, text)


if __name__ == "__main__":
    main()
