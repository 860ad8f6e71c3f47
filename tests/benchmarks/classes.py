"""Classes of ``cryoeq reconstruct --classes``: molecules, conformations, junk, wrong numbers, real particles.

    python tests/benchmarks/classes.py --work DIR --sets molecules --seeds 0-9                two molecules and junk
    python tests/benchmarks/classes.py --work DIR --sets conformations_50,conformations_80 --seeds 0-2
    python tests/benchmarks/classes.py --work DIR --sets three --classes 2,3,4,auto --seeds 0
    python tests/benchmarks/classes.py --work DIR --sets molecules --classes 1 --seeds 0      what one class costs
    python tests/benchmarks/classes.py --work DIR --sets ribosome,betagal --classes 2,3 --seeds 0
    python tests/benchmarks/classes.py --report                                               the tables

Every seed has a stack of its own (but the sets that are given), and one ``cryoeq reconstruct`` of it for each number of
classes, scored by ``cryoeq evaluate``; beside the sets of conformations the limit of the data (``class_scores.py``).
Runs are appended to ``classes.json``; what is recorded is not done again. ``--data`` is the folder with ``models``,
``mixtures`` and ``real_spa``. Seeds 0-9 report, 100 and above are for trying.
"""

import argparse
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ab_initio import listed, seed_list
from benchmark_sets import DATA
from class_report import report
from class_scores import TrueClass, limit_of_data, read_structures, score_run
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

from cryoeq.io.text import read_json

RESULTS = Path(__file__).with_suffix(".json")
LIMIT_SHELLS = (10, 1000)
_PREDICTED = re.compile(r"Memory: about ([\d.]+) GB")
_COMMON = ("--shift-sigma", "5", "--snr", "0.1")
_CLASS_FIGURES = (
    "particles", "share", "half_map_resolution_angstrom", "masked_resolution_angstrom",
    "corrected_resolution_angstrom", "reproduced", "nonspherical_share", "unexplained_share",
)  # fmt: skip


@dataclass(frozen=True)
class Mixture:
    """What to simulate.

    Args:
        models: files in the folder of models.
        shares: of all but the first.
        symmetries: point group of each.
        junk: share of images that are no particles.
        with_limit: the limit of the data is wanted.
        default: number of classes.
        count: number of images.
        box_size_px: side of the images.
    """

    models: tuple[str, ...]
    shares: tuple[float, ...]
    symmetries: tuple[str, ...]
    junk: float = 0.0
    with_limit: bool = False
    default: str = "2"
    count: int = 3000
    box_size_px: int = 64


@dataclass(frozen=True)
class Given:
    """A particle file of the reference data.

    Args:
        folder: relative to that of the reference data.
        symmetries: point group of each true structure; none where there is no truth.
        with_limit: the limit of the data is wanted.
        default: number of classes.
    """

    folder: str
    symmetries: tuple[str, ...] = ()
    with_limit: bool = False
    default: str = "2"


_SPIKES, _THREE = ("6vxx.pdb", "6vxx_open.pdb"), ("1wcm.pdb", "6msm.pdb", "7ez0.pdb")
SETS: Mapping[str, Mixture | Given] = {
    "molecules": Mixture(_THREE[:2], (0.5,), ("C1", "C1"), junk=0.3),
    "conformations_50": Mixture(_SPIKES, (0.5,), ("C3", "C1"), with_limit=True),
    "conformations_80": Mixture(_SPIKES, (0.2,), ("C3", "C1"), with_limit=True),
    "three": Mixture(_THREE, (0.3333, 0.3333), ("C1", "C1", "C1"), default="3"),
    "one": Mixture(_THREE[:1], (), ("C1",), default="auto"),
    "auto_one": Mixture(_THREE[2:], (), ("C1",), junk=0.1, default="auto", count=1500, box_size_px=32),
    "auto_two": Mixture(_THREE[1:], (0.4,), ("C1",) * 2, junk=0.1, default="auto", count=2000, box_size_px=32),
    "auto_three": Mixture(_THREE, (0.3333, 0.3333), ("C1",) * 3, junk=0.1, default="auto", count=3000, box_size_px=32),
    "two_molecules": Given("mixtures/two_molecules", ("C1", "C1")),
    "two_conformations": Given("mixtures/two_conformations", ("C3", "C1"), with_limit=True),
    "ribosome": Given("real_spa/ribosome80s_10028"),
    "betagal": Given("real_spa/betagal_10204"),
}


@dataclass(frozen=True)
class Bench:
    """Where.

    Args:
        data: folder of the reference data.
        work: folder of stacks and runs.
        records: the JSON file.
        time_limit_s: of each run.
    """

    data: Path
    work: Path
    records: Path
    time_limit_s: float = 7200.0

    def prepare(self, name: str, seed: int) -> Path:
        """The folder of a stack, simulated where it is missing.

        Args:
            name: of the set.
            seed: of the simulation.

        Raises:
            RuntimeError: the simulation failed.
        """
        recipe = SETS[name]
        if isinstance(recipe, Given):
            return self.data / recipe.folder
        folder = self.work / "sets" / f"{name}_{seed}"
        if (folder / "particles.star").is_file():  # written last
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [CRYOEQ, *simulation(recipe, self.data / "models"), "--seed", str(seed), "-o", str(folder)]
        if measure(command, log=folder.with_suffix(".log")).exit_code:
            raise RuntimeError(f"the simulation of {name} failed; see {folder.with_suffix('.log')}")
        return folder

    def structures(self, name: str, folder: Path) -> list[TrueClass]:
        """The true structures of a set; none where they are not known."""
        recipe = SETS[name]
        count = len(recipe.symmetries)
        if count == 0:
            return []
        if isinstance(recipe, Given):
            names = [f"truth_{number}.mrc" for number in range(1, count + 1)]
        elif count == 1:
            names = ["truth_volume.mrc"]
        else:
            names = [f"truth_volume_class{number:03d}.mrc" for number in range(1, count + 1)]
        return read_structures(folder, names, recipe.symmetries)

    def output(self, name: str, seed: int, classes: str) -> Path:
        """Run folder."""
        return self.work / "runs" / f"{name}_{seed}_K{classes}"

    @property
    def places(self) -> dict[str, Path]:
        """Folders by the names that stand for them in a record."""
        return {"DIR": self.work, "DATA": self.data, "cryoeq": Path(CRYOEQ)}


def simulation(recipe: Mixture, models: Path) -> list[str]:
    """Words of ``cryoeq simulate`` but for its seed and output.

    Args:
        recipe: what to simulate.
        models: folder of the models.
    """
    others = zip(recipe.models[1:], recipe.shares, strict=True)
    more = [word for model, share in others for word in ("--model", f"{models / model}:{share}")]
    junk = ["--junk", str(recipe.junk)] if recipe.junk else []
    size = ["--box", str(recipe.box_size_px), "-n", str(recipe.count)]
    return ["simulate", str(models / recipe.models[0]), *more, *junk, *size, *_COMMON]


def run_search(bench: Bench, name: str, seed: int, classes: str) -> Record:
    """The record of one run, done now unless it was done before.

    Args:
        bench: where.
        name: of the set.
        seed: of the run and of its stack.
        classes: their number, or ``auto``.
    """
    key = {"set": name, "mode": "search", "seed": seed, "options": ["--classes", classes]}
    if before := find_record(read_records(bench.records), key):
        return before
    folder, output = bench.prepare(name, seed), bench.output(name, seed, classes)
    shutil.rmtree(output, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [CRYOEQ, "reconstruct", str(folder / "particles.star"), "-o", str(output), "--classes", classes]
    command += ["--seed", str(seed), "-j", "1"]
    log = output.with_name(f"{output.name}.log")
    log.unlink(missing_ok=True)
    one_thread = {"OMP_NUM_THREADS": "1"}
    cost = measure(command, log=log, time_limit_s=bench.time_limit_s, environment=one_thread)
    record = {**key, **cost_record(cost, [command], bench.places), **reported(output, log)}
    structures = bench.structures(name, folder)
    if structures and record["reported"] and (output / "run_data.star").is_file():
        answer = output.with_name(f"{output.name}_evaluate.log")
        record["scores"] = score_run(output, folder / "truth.star", structures, log=answer)
    append_record(bench.records, record)
    return record


def reported(output: Path, log: Path) -> Record:
    """What a run says of itself.

    Args:
        output: its folder.
        log: what it printed.
    """
    predicted = _PREDICTED.search(log.read_text(encoding="utf-8", errors="replace"))
    job: dict[str, Any] = read_json(output / "job.json") if (output / "job.json").is_file() else {}
    results, verdict = job.get("results") or {}, job.get("verdict") or {}
    return {
        "predicted_mib": round(float(predicted[1]) * 1e9 / 2**20) if predicted else None,
        "verdict": verdict.get("answer"),
        "against": [reason["text"] for reason in verdict.get("reasons", []) if reason["weight"] == "against"],
        **{name: results.get(name) for name in ("class_agreement", "class_moves", "junk_share", "junk_auc")},
        "reported": [{name: each.get(name) for name in _CLASS_FIGURES} for each in results.get("classes") or []],
    }


def run_limit(bench: Bench, name: str, seed: int) -> Record:
    """What the data of a set allow, computed now unless it was before.

    Args:
        bench: where.
        name: of the set.
        seed: of its stack.
    """
    key: Record = {"set": name, "mode": "limit", "seed": seed, "options": []}
    if before := find_record(read_records(bench.records), key):
        return before
    folder = bench.prepare(name, seed)
    volumes = [each.volume for each in bench.structures(name, folder)]
    record = {**key, **limit_of_data(folder / "truth.star", volumes, LIMIT_SHELLS)}
    append_record(bench.records, record)
    return record


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for stacks and runs")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with models, mixtures and real_spa")
    parser.add_argument("--sets", type=listed, default=tuple(SETS), help=f"of {', '.join(SETS)}")
    parser.add_argument("--classes", type=listed, default=(), help="numbers of classes, or auto [those of each set]")
    parser.add_argument("--seeds", type=seed_list, default=(0,), help="such as 0-9 or 0,3 [0]")
    parser.add_argument("--time-limit", type=float, default=7200.0, help="of each run in seconds [7200]")
    parser.add_argument("--records", type=Path, default=RESULTS, help=f"JSON file [{RESULTS.name}]")
    parser.add_argument("--report", action="store_true", help="only the tables of what is recorded")
    given = parser.parse_args()
    if unknown := [name for name in given.sets if name not in SETS]:
        parser.error(f"no set {', '.join(unknown)}; there are {', '.join(SETS)}")
    if not given.report and given.work is None:
        parser.error("--work is needed")
    return given


def main() -> None:
    """Run, record, print the tables."""
    given = parse()
    if not given.report:
        stop_children_when_terminated()
        torch.set_num_threads(1)
        bench = Bench(given.data.resolve(), given.work.resolve(), given.records, given.time_limit)
        for name in given.sets:
            for seed in given.seeds:
                if SETS[name].with_limit:
                    print(f"{name} {seed} limit: {run_limit(bench, name, seed)['right_to_shell']}", flush=True)
                for classes in given.classes or (SETS[name].default,):
                    announce(run_search(bench, name, seed, classes))
    print(report([each for each in read_records(given.records) if each["seed"] < 100]))


def announce(record: Record) -> None:
    """One line on a run."""
    scores = record.get("scores") or {}
    right, junk = scores.get("share_of_good_in_right_class"), scores.get("junk_share_of_kept")
    print(
        f"{record['set']} seed {record['seed']} {' '.join(record['options'])}: exit code {record['exit_code']}, "
        f"right {right}, junk of kept {junk}, AUC {scores.get('junk_roc_auc')}, CPU {record['cpu_s']} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
