"""How the cost of ``cryoeq reconstruct`` grows with the number of particles and with the box.

    OMP_NUM_THREADS=1 python tests/benchmarks/cost.py --work DIR             every set, seed 0
    python tests/benchmarks/cost.py --work DIR --sets n1000,n2000,box64      some of them
    python tests/benchmarks/cost.py --work DIR --no-runs --table FILE        the tables of what is recorded

Sets are the ``base`` of ``benchmark_sets.py`` with another number of particles at 32 px, or another box with 2,000 of
them. Each run is a whole process, a search, and is scored against the truth as in ``ab_initio.py``, so that the times
are known to be of runs that found the structure. Records are appended to ``cost.json``; a run recorded there is not
done again. Stages are shares of the wall time by the clock of ``run.log``, given in seconds of the CPU time. CPU
seconds of one thread are nearly free of what else the machine does.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from ab_initio import Bench, announce, is_success, latest, listed, markdown_table, seed_list
from benchmark_sets import Simulated, prepare
from recorded_runs import Record, read_records, stop_children_when_terminated
from scoring import read_truth

from cryoeq.io.text import write_text

RESULTS = Path(__file__).with_suffix(".json")
COUNTS, BOXES_PX = (1000, 2000, 5000, 10_000, 20_000, 50_000), (48, 64)
STAGES = {  # names in the tables, and those that the records have
    "initial models": "starts", "consensus refinement": "joint iterations", "global re-alignment": "second looks",
    "half sets": "half sets", "local refinement": "local refinement", "other": "other",
}  # fmt: skip
SETS = {f"n{count}": replace(Simulated(), count=count) for count in COUNTS} | {
    f"box{box}": replace(Simulated(), box_px=box) for box in BOXES_PX
}


def run_set(bench: Bench, name: str, seeds: Sequence[int]) -> None:
    """The map from the true poses, and searches.

    Args:
        bench: where.
        name: of the set.
        seeds: of the searches.
    """
    truth = read_truth(prepare(name, bench.work, SETS[name]))
    known = bench.run({"set": name, "mode": "known", "seed": 0, "options": []}, truth)
    for seed in seeds:
        announce(bench.run({"set": name, "mode": "search", "seed": seed, "options": []}, truth), known)


def cost_rows(records: Sequence[Record], names: Sequence[str]) -> list[list[str]]:
    """Cells of one row per run: the set, what it took, and what came of it.

    Args:
        records: all of them.
        names: sets to show.
    """
    rows = []
    for name in names:
        known = next(iter(latest(records, set=name, mode="known")), None)
        for record in latest(records, set=name, mode="search"):
            found = is_success(record, known)
            rows.append([
                f"{SETS[name].count:,}", f"{SETS[name].box_px}", f"{record['cpu_s']:.0f}", f"{record['wall_s']:.0f}",
                f"{1000 * record['cpu_s'] / SETS[name].count:.1f}", f"{record['peak_rss_mib']:.0f}",
                *(outcome(record, known) if found else ["not found", "–"]),
            ])  # fmt: skip
    return rows


def outcome(record: Record, known: Record) -> list[str]:
    """Rotation error and resolution of a run that found the structure."""
    rotation, found, best = record["poses"]["rotation_deg"], record["map"], known["map"]
    return [
        f"{rotation['median']:.1f}° {rotation['mean']:.1f}°",
        f"{found['shell']} of {best['shell']}, {found['crossing_angstrom']:.1f} Å",
    ]


def stage_rows(records: Sequence[Record], names: Sequence[str]) -> list[list[str]]:
    """Cells of one row per run: CPU seconds of each stage.

    Args:
        records: all of them.
        names: sets to show.
    """
    rows = []
    for name in names:
        for record in latest(records, set=name, mode="search"):
            if (stages := record["stages_wall_s"]) is None:
                continue
            # What the log does not see: start of the program, and its end.
            stages = {**stages, "other": stages["other"] + max(0.0, record["wall_s"] - sum(stages.values()))}
            scale = record["cpu_s"] / sum(stages.values())
            cells = [f"{scale * stages[stage]:.0f}" for stage in STAGES.values()]
            rows.append([f"{SETS[name].count:,}", f"{SETS[name].box_px}", *cells])
    return rows


def tables(records: Sequence[Record], names: Sequence[str]) -> str:
    """Costs and outcomes, and the stages.

    Args:
        records: all of them.
        names: sets to show.
    """
    head = [
        "particles", "box px", "CPU s", "wall s", "CPU s per 1,000", "peak MiB", "rotation error: median, mean",
        "FSC 0.5: shell of known-pose shell, crossing",
    ]  # fmt: skip
    stages = ["particles", "box px", *(f"{stage} s" for stage in STAGES)]
    return f"{markdown_table(head, cost_rows(records, names))}\n{markdown_table(stages, stage_rows(records, names))}"


def main() -> None:
    """Run, record, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for sets and runs")
    parser.add_argument("--sets", type=listed, default=tuple(SETS), help=f"of {', '.join(SETS)}")
    parser.add_argument("--seeds", type=seed_list, default=(0,), help="such as 0-4 (default 0)")
    parser.add_argument("--time-limit", type=float, default=3600.0, help="of each run in seconds (default 3600)")
    parser.add_argument("--records", type=Path, default=RESULTS, help=f"JSON file (default {RESULTS.name})")
    parser.add_argument("--table", type=Path, help="write the tables to this file as Markdown")
    parser.add_argument("--no-runs", action="store_true", help="only the tables of what is recorded")
    given = parser.parse_args()
    if unknown := [name for name in given.sets if name not in SETS]:
        parser.error(f"no set {', '.join(unknown)}; there are {', '.join(SETS)}")
    stop_children_when_terminated()
    torch.set_num_threads(1)
    bench = Bench(given.work.resolve(), given.records, given.time_limit)
    for name in () if given.no_runs else given.sets:
        run_set(bench, name, given.seeds)
    text = tables(read_records(given.records), given.sets)
    print(f"\n{text}")
    if given.table:
        write_text(given.table, text)


if __name__ == "__main__":
    main()
