"""Reconstruction from random starts on many sets and seeds, scored against the truth.

    python tests/benchmarks/ab_initio.py --work DIR                          every set, search and hybrid, 20 seeds
    python tests/benchmarks/ab_initio.py --work DIR --sets base,s01 --modes search --seeds 0-4 --time-limit 600
    python tests/benchmarks/ab_initio.py --work DIR --no-runs --table FILE   the table of what is recorded

Each run is a ``cryoeq reconstruct`` of its own, killed at the time limit. It is appended to the records (by default
``ab_initio.json`` beside this file) when it ends; a run that is recorded there is not done again. The map from the true
poses is made once per set. A run succeeds if its median rotation error is below 10 degrees and its FSC of 0.5 against
the truth lies within 2 shells of that map's. ``--limit`` names a command that poses the images by matching them to the
true map, for example

    --limit "python tests/benchmarks/match_truth.py {particles} --map {truth_volume} --start {truth_star} -o {output}
              {options}"

which must leave ``{output}/run_data.star``; it runs once per set and is recorded as mode ``limit``.
"""

import argparse
import contextlib
import shlex
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmark_sets import DATA, SETS, prepare
from recorded_runs import (
    CRYOEQ,
    Record,
    append_record,
    cost_record,
    find_record,
    measure,
    read_records,
    run_key,
    stage_seconds,
    stop_children_when_terminated,
)
from scipy.stats import binomtest
from scoring import Truth, read_poses, read_truth, score_map, score_poses

from cryoeq.io.text import read_json, write_text

RESULTS = Path(__file__).with_suffix(".json")
MODES = ("search", "hybrid", "amortized")
GOOD_MEDIAN_DEG, GOOD_SHELLS = 10.0, 2


@dataclass(frozen=True)
class Bench:
    """Where runs happen and are recorded.

    Args:
        work: folder of sets and runs.
        records: the JSON file.
        time_limit_s: of each run.
        limit: template of the command that matches the images to the true map; None without one.
        repeat: do runs again that are recorded.
    """

    work: Path
    records: Path
    time_limit_s: float | None
    limit: str | None = None
    repeat: bool = False

    def run(self, key: Record, truth: Truth) -> Record:
        """The record of a run, done now unless it was done before.

        Args:
            key: its set, mode, seed and options.
            truth: of the set.
        """
        before = find_record(read_records(self.records), key)
        if before is not None and not self.repeat:
            return before
        tag = zlib.crc32(" ".join(key["options"]).encode())
        output = self.work / "runs" / key["set"] / f"{key['mode']}_{key['seed']}_{tag:08x}"
        shutil.rmtree(output, ignore_errors=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        command, log = self._command(key, output), output.with_suffix(".log")
        log.unlink(missing_ok=True)
        cost = measure(command, log=log, time_limit_s=self.time_limit_s)
        record = {
            **key, "time_limit_s": self.time_limit_s,
            **cost_record(cost, [command], {"DIR": self.work, "DATA": DATA, "cryoeq": Path(CRYOEQ)}),
            **score_folder(output, truth, with_poses=key["mode"] != "known"),
        }  # fmt: skip
        append_record(self.records, record)
        return record

    def _command(self, key: Record, output: Path) -> list[str]:
        folder = self.work / key["set"]
        if key["mode"] == "limit":
            places = {"particles": "particles.star", "truth_star": "truth.star", "truth_volume": "truth_volume.mrc"}
            files = {name: folder / place for name, place in places.items()}
            return shlex.split((self.limit or "").format(**files, output=output, options=shlex.join(key["options"])))
        star = folder / ("truth.star" if key["mode"] == "known" else "particles.star")
        inference = ["--pose-inference", key["mode"], "--seed", str(key["seed"])]
        return [CRYOEQ, "reconstruct", str(star), "-o", str(output), *inference, *key["options"]]


def score_folder(output: Path, truth: Truth, *, with_poses: bool) -> Record:
    """Scores of a run folder; None for what the run did not leave.

    Args:
        output: the folder.
        truth: of the set.
        with_poses: score the poses too.
    """
    names = ("run_data.star", "run_class001.mrc", "job.json", "run.log")
    poses, volume, job, log = (output / name for name in names)
    return {
        "poses": score_poses(read_poses(poses, truth), truth) if with_poses and poses.is_file() else None,
        "map": score_map(volume, truth) if volume.is_file() else None,
        "reported": read_json(job).get("results") if job.is_file() else None,
        "stages_wall_s": stage_seconds(log) if log.is_file() else None,
    }


def is_success(record: Record, known: Record | None = None) -> bool:
    """Whether a run found the structure.

    Args:
        record: of the run.
        known: of the map from the true poses of the same set.
    """
    if record["exit_code"] != 0 or not record["poses"] or not record["map"] or not known or not known["map"]:
        return False
    lost_shells = known["map"]["shell"] - record["map"]["shell"]
    return bool(record["poses"]["rotation_deg"]["median"] < GOOD_MEDIAN_DEG and lost_shells <= GOOD_SHELLS)


def latest(records: Sequence[Record], **wanted: object) -> list[Record]:
    """The records of a set or mode, the latest of each run.

    Args:
        records: in the order in which they were made.
        wanted: values of ``set`` or ``mode``.
    """
    chosen = [record for record in records if all(record[name] == value for name, value in wanted.items())]
    return list({run_key(record): record for record in chosen}.values())


Figure = Callable[[Record], Any]
POSE_FIGURES: dict[str, Figure] = {
    "rotation median °": lambda record: record["poses"]["rotation_deg"]["median"],
    "mean °": lambda record: record["poses"]["rotation_deg"]["mean"],
    "beyond 30° %": lambda record: 100 * (1 - record["poses"]["rotation_deg"]["share_below_30"]),
    "shift median px": lambda record: record["poses"]["shift_px"]["median"],
}
MAP_FIGURES: dict[str, Figure] = {
    "FSC 0.5 shell": lambda record: record["map"]["shell"],
    "FSC 0.5 Å": lambda record: record["map"]["resolution_angstrom"],
    "crossing Å": lambda record: record["map"]["crossing_angstrom"],
}
COST_FIGURES: dict[str, Figure] = {
    "wall s": lambda record: record["wall_s"],
    "CPU s": lambda record: record["cpu_s"],
    "MiB": lambda record: record["peak_rss_mib"],
}


def spread(figure: Figure, records: Sequence[Record]) -> str:
    """Median over runs and, of several, the range; a dash where no run has the figure.

    Args:
        figure: what to read from a record.
        records: of the runs.
    """
    values = _values(figure, records)
    if not values:
        return "–"
    middle = f"{median(values):.4g}"
    return middle if len(values) == 1 else f"{middle} ({values[0]:.4g}–{values[-1]:.4g})"


def _values(figure: Figure, records: Sequence[Record]) -> list[float]:
    """The figure of all runs that have it, in order of size."""
    values = []
    for record in records:
        with contextlib.suppress(TypeError):  # the run left no poses or no map
            values.append(float(figure(record)))
    return sorted(values)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    Args:
        head: names of the columns.
        rows: texts of the cells.
    """
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def table(records: Sequence[Record], names: Sequence[str], modes: Sequence[str]) -> str:
    """One row per set, mode and options: successes, medians over seeds and ranges.

    Args:
        records: all of them.
        names: sets to show.
        modes: to show.
    """
    figures = POSE_FIGURES | MAP_FIGURES | COST_FIGURES
    head = ["set", "mode", "runs", "successes (95 % Wilson)", "of the limit", "known: shell, Å", *figures]
    rows = [
        [name, *_labels(group), *cells, *(spread(figure, group) for figure in figures.values())]
        for name in names
        for group, cells in _groups(records, name, modes)
    ]
    return markdown_table(head, rows)


def _groups(records: Sequence[Record], name: str, modes: Sequence[str]) -> Iterator[tuple[list[Record], list[str]]]:
    """The runs of a set that share mode and options, with the cells that compare them with known poses."""
    known, limit = (latest(records, set=name, mode=mode)[-1:] for mode in ("known", "limit"))
    best = ", ".join(spread(MAP_FIGURES[figure], known) for figure in ("FSC 0.5 shell", "FSC 0.5 Å"))
    for mode in modes:
        runs = latest(records, set=name, mode=mode)
        for options in sorted({run_key(record)[-1] for record in runs}):
            group = [record for record in runs if run_key(record)[-1] == options]
            found, middle = sum(is_success(record, *known) for record in group), POSE_FIGURES["rotation median °"]
            interval = binomtest(found, len(group)).proportion_ci(method="wilson")
            ratio = _ratio(_values(middle, group), _values(middle, limit))
            successes = f"{found}/{len(group)} ({100 * interval.low:.0f}–{100 * interval.high:.0f} %)"
            yield group, [f"{len(group)}", successes if mode in MODES else "–", ratio, best]


def _ratio(ours: Sequence[float], limit: Sequence[float]) -> str:
    """Median rotation error over that of matching to the true map."""
    return f"{median(ours) / median(limit):.2f} x" if ours and limit and median(limit) > 0 else "–"


def _labels(group: Sequence[Record]) -> list[str]:
    own = list(SETS[group[0]["set"]].options)
    extra = run_key(group[0])[-1][len(own) :]
    return [" ".join([group[0]["mode"], *extra])]


def announce(record: Record, known: Record | None) -> None:
    """One line on a run."""
    figures = "; ".join(f"{name} {spread(figure, [record])}" for name, figure in (POSE_FIGURES | MAP_FIGURES).items())
    verdict = "found" if is_success(record, known) else f"not found (exit code {record['exit_code']})"
    verdict = "" if record["mode"] in {"known", "limit"} else f": {verdict}"
    cost = f"{record['wall_s']:.1f} s, CPU {record['cpu_s']:.1f} s, load {record['load_average'][0]}"
    print(f"{record['set']} {record['mode']} seed {record['seed']}{verdict}; {figures}; {cost}", flush=True)


def run_set(bench: Bench, name: str, modes: Sequence[str], seeds: Sequence[int], extra: Sequence[str]) -> None:
    """All runs of a set: known poses, the limit where there is one, then each mode and seed.

    Args:
        bench: where.
        name: of the set.
        modes: of pose inference.
        seeds: of each mode.
        extra: options of ``cryoeq reconstruct`` beside those of the set.
    """
    recipe = SETS[name]
    truth = read_truth(prepare(name, bench.work), recipe.symmetry)
    own = list(recipe.options)
    known = bench.run({"set": name, "mode": "known", "seed": 0, "options": own}, truth)
    announce(known, known)
    if bench.limit is not None:
        announce(bench.run({"set": name, "mode": "limit", "seed": 0, "options": own}, truth), known)
    for mode in modes:
        for seed in seeds:
            announce(bench.run({"set": name, "mode": mode, "seed": seed, "options": [*own, *extra]}, truth), known)


def listed(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def seed_list(text: str) -> tuple[int, ...]:
    """Seeds as in ``0-4,7``."""
    ends = [word.split("-") for word in listed(text)]
    return tuple(seed for end in ends for seed in range(int(end[0]), int(end[-1]) + 1))


def main() -> None:
    """Run, record, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for sets and runs")
    parser.add_argument("--sets", type=listed, default=tuple(SETS), help=f"of {', '.join(SETS)}")
    parser.add_argument(
        "--modes", type=listed, default=MODES[:2], help=f"of {', '.join(MODES)}; none: known poses only"
    )
    parser.add_argument("--seeds", type=seed_list, default=tuple(range(20)), help="such as 0-19 or 0,3,5-7")
    parser.add_argument("--options", type=shlex.split, default=[], help="more options of cryoeq reconstruct, quoted")
    parser.add_argument("--time-limit", type=float, default=900.0, help="of each run in seconds (default 900)")
    parser.add_argument("--limit", help="command that matches the images to the true map, see above")
    parser.add_argument("--records", type=Path, default=RESULTS, help=f"JSON file (default {RESULTS.name})")
    parser.add_argument("--table", type=Path, help="write the table to this file as Markdown")
    parser.add_argument("--no-runs", action="store_true", help="only the table of what is recorded")
    parser.add_argument("--repeat", action="store_true", help="do runs again that are recorded; the latest counts")
    given = parser.parse_args()
    if unknown := [name for name in given.sets if name not in SETS]:
        parser.error(f"no set {', '.join(unknown)}; there are {', '.join(SETS)}")
    if unknown := [mode for mode in given.modes if mode not in (*MODES, "none")]:
        parser.error(f"no mode {', '.join(unknown)}; there are {', '.join(MODES)}, none")
    stop_children_when_terminated()
    torch.set_num_threads(1)
    modes = [mode for mode in given.modes if mode != "none"]
    bench = Bench(given.work.resolve(), given.records, given.time_limit, given.limit, given.repeat)
    for name in () if given.no_runs else given.sets:
        try:
            run_set(bench, name, modes, given.seeds, given.options)
        except FileNotFoundError as missing:
            print(f"{name}: skipped. {missing}", flush=True)
    text = table(read_records(given.records), given.sets, ["known", "limit", *modes])
    print(f"\n{text}")
    if given.table:
        write_text(given.table, text)


if __name__ == "__main__":
    main()
