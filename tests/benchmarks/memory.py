"""Predicted and measured peaks of memory: ``python tests/benchmarks/memory.py --work DIR``.

Simulated particles of the packaged model at SNR 0.1, shifted by 8 Å, in stacks of several sizes and boxes. Each run is
a process of its own with one thread; what it says that it will need stands beside the peak of its resident memory.
Stages that repeat are cut short: memory does not grow with iterations.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cryoeq.config.loading import packaged_file

RESULTS = Path(__file__).with_suffix(".json")
MEASURED_CHILD = Path(__file__).with_name("measured_child.py")
SHORT = {
    "search.multi_start.min": 1, "search.multi_start.max": 1, "search.initial_model.iterations": 20,
    "search.consensus.max_extra_iterations": 0, "hybrid.posterior": "network",
    "hybrid.training_steps": 10,
}  # fmt: skip
_PREDICTED = re.compile(r"Memory: about ([\d.]+) GB")
_TIME_LIMIT_S = 3600


@dataclass(frozen=True)
class Run:
    """A stack, and options of ``cryoeq reconstruct``."""

    count: int
    box_px: int
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return " ".join([f"{self.count:,} of {self.box_px} px", *self.options])

    @property
    def is_known(self) -> bool:
        return "known" in self.options


KNOWN, HYBRID, AMORTIZED = (("--pose-inference", mode) for mode in ("known", "hybrid", "amortized"))
RUNS = (
    Run(400, 32, KNOWN),
    Run(10_000, 32, KNOWN),
    Run(400, 96, KNOWN),
    Run(400, 32),
    Run(400, 32, ("--shift-sigma", "60")),
    Run(3_000, 32),
    Run(3_000, 32, ("--shift-sigma", "0")),
    Run(10_000, 32, ("--shift-sigma", "0")),
    Run(1_000, 64),
    Run(400, 96, ("--box", "96")),
    Run(400, 32, HYBRID),
    Run(400, 32, AMORTIZED),
    Run(1_000, 64, AMORTIZED),
)


def measure(run: Run, work: Path) -> dict[str, Any]:
    """Prediction and peak of one run, in MiB."""
    stack, output = simulate(run, work), work / "run"
    subprocess.run(["rm", "-rf", output], check=True)
    particles = stack / ("truth.star" if run.is_known else "particles.star")
    settings = [] if run.is_known else [word for key, value in SHORT.items() for word in ("--set", f"{key}={value}")]
    if "amortized" in run.options:
        settings = ["--set", "training.epochs=1"]
    command = [
        sys.executable, "-m", "cryoeq", "reconstruct", str(particles), "-o", str(output), "--device", "cpu", "-j", "1",
        *settings, *run.options,
    ]  # fmt: skip
    child = [sys.executable, str(MEASURED_CHILD), str(work / "cost.json"), str(_TIME_LIMIT_S), *command]
    said = subprocess.run(child, env=one_thread(), capture_output=True, text=True, check=False).stderr
    cost, predicted = json.loads((work / "cost.json").read_text()), _PREDICTED.search(said)
    if predicted is None:
        raise RuntimeError(f"{run.name}: {said[-2000:]}")
    return {
        "run": run.name,
        "predicted_mib": round(float(predicted[1]) * 1e9 / 2**20),
        "measured_mib": round(cost["peak_rss_mib"]),
        "exit_code": cost["exit_code"],
    }


def simulate(run: Run, work: Path) -> Path:
    """The stack of a run, made once."""
    folder = work / f"{run.count}_{run.box_px}"
    if not (folder / "particles.star").is_file():
        model = packaged_file("data_samples/1wcm_ca.pdb.gz")
        options = ["-n", str(run.count), "--box", str(run.box_px), "--shift-sigma", "8", "--device", "cpu"]
        command = [sys.executable, "-m", "cryoeq", "simulate", str(model), "-o", str(folder), *options]
        subprocess.run(command, env=one_thread(), check=True, capture_output=True)
    return folder


def one_thread() -> dict[str, str]:
    return dict(os.environ) | {"OMP_NUM_THREADS": "1"}


def main() -> None:
    """Run, record, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for stacks and runs")
    parser.add_argument("--runs", type=int, nargs="*", default=range(len(RUNS)), help="numbers of runs, from 0")
    parser.add_argument("--records", type=Path, default=RESULTS, help=f"JSON file (default {RESULTS.name})")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    rows = []
    print("| run | predicted MiB | measured MiB | difference |\n| --- | --- | --- | --- |")
    for number in given.runs:
        row = measure(RUNS[number], given.work.resolve())
        rows.append(row)
        difference = row["predicted_mib"] / row["measured_mib"] - 1
        print(f"| {row['run']} | {row['predicted_mib']} | {row['measured_mib']} | {difference:+.0%} |", flush=True)
    record = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "torch": torch.__version__,
              "python": platform.python_version(), "runs": rows}  # fmt: skip
    given.records.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
