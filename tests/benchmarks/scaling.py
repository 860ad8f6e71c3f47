"""Weak scaling: the same work per process on one and on two processes, and what 8 and 64 GPUs should do.

    OMP_NUM_THREADS=1 python tests/benchmarks/scaling.py              measured, recorded and printed
    python tests/benchmarks/scaling.py --no-runs                      the tables of what is recorded

Two kinds of work: training steps (d4 encoder, voxel decoder, 32 px, 64 images and 64 renderings per process) and
iterations of the search (64 px, radius 10, 300 images per process). Each process computes in one thread. Efficiency is
the time of one process over the time of several, each the shortest of several repeats, which other work on the machine
disturbed least. Messages are counted where they are sent; FLOPs by ``torch.utils.flop_counter`` over all shares. What
does not shrink with more processes (maps, projections of the map, gradients' step) is the time of an iteration on next
to no images.

The prediction takes from these the FLOPs per image, the messages and their bytes, and the fixed share; from data sheets
what a GPU and its links can do. None of it is measured on a GPU.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from recorded_runs import Record, append_record, find_record, read_records
from torch.utils.flop_counter import FlopCounterMode

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.preprocessing import Preprocessing
from cryoeq.domain import processes
from cryoeq.domain.launched import launched
from cryoeq.domain.optics import Optics
from cryoeq.domain.particles import ParticleTable
from cryoeq.io.images import LazyImages
from cryoeq.io.text import read_json, write_json
from cryoeq.pipelines.build import build_growth_settings
from cryoeq.pipelines.build_training import build_plane, build_settings, build_state
from cryoeq.training.basin import Basin
from cryoeq.training.growth import begin_growth, settle
from cryoeq.training.loop import fit
from cryoeq.training.observed_images import join, observe_all

RESULTS = Path(__file__).with_suffix(".json")
CPU = torch.device("cpu")
ALMOST_NONE = 8  # images of an iteration that is all overhead


@dataclass(frozen=True)
class Machine:
    """What the prediction assumes of a GPU and its links: data sheets, not measurements.

    Args:
        flops_per_s: of float32 matrix products (H200: 67e12).
        reached: share of them that is reached; the goal of issue 7 for the training step.
        within_bytes_per_s: between the 8 GPUs of a node, each way (NVLink).
        between_bytes_per_s: between nodes, per GPU (400 Gbit/s).
        within_s: latency of one message to all, in a node.
        between_s: the same across nodes.
    """

    flops_per_s: float = 67e12
    reached: float = 0.35
    within_bytes_per_s: float = 450e9
    between_bytes_per_s: float = 50e9
    within_s: float = 20e-6
    between_s: float = 60e-6


@dataclass
class Counter:
    """Messages to all processes."""

    count: int = 0
    size_bytes: int = 0

    def counted(self, send: Callable[..., Any]) -> Callable[..., Any]:
        """The same, counted."""

        def wrapped(values: torch.Tensor, *rest: Any) -> Any:
            self.count, self.size_bytes = self.count + 1, self.size_bytes + values.numel() * values.element_size()
            return send(values, *rest)

        return wrapped


def noise(count: int, box_px: int) -> ParticleDataset:
    """Images of noise, in memory."""
    rows = torch.arange(count)
    zeros = torch.zeros_like(rows)
    table = ParticleTable((), zeros, rows, box_px, 4.0, (Optics("g", 4.0, 300.0, 2.7, 0.1),), zeros)
    images = torch.randn(count, box_px, box_px, generator=torch.Generator().manual_seed(0))
    return ParticleDataset(table, box_px, 4.0, (), LazyImages((), zeros, rows), Preprocessing(box_px, 1.0, 1), images)


def training_steps(images: int) -> Iterator[None]:
    """One training step after the other.

    Args:
        images: of the global batch.
    """
    config = ReconstructConfig.model_validate(
        {"particles": "none", "output": "none", "training": {"batch_size": images, "rendered_batch_size": images}}
    )
    dataset = noise(images, 32)
    plane = build_plane(dataset, CPU)
    settings = replace(build_settings(config, dataset), images_from=0.0)
    for _ in fit(build_state(config, dataset, plane), dataset, plane, settings):
        yield


def search_iterations(images: int) -> Iterator[None]:
    """One iteration of the search after the other.

    Args:
        images: in all.
    """
    config = ReconstructConfig.model_validate({"particles": "none", "output": "none"})
    dataset = noise(images, 64)
    observed = join([part for _, part in observe_all(dataset, CPU)])
    settings = replace(build_growth_settings(config, dataset), settled_shells=(10,), further_iterations=0)
    generator = torch.Generator().manual_seed(1)
    basin = Basin(torch.randn(16, 16, 16, generator=generator), torch.zeros(images, 2), 0.0)
    half_set = 1 + torch.arange(images) % 2
    while True:
        for _ in settle(begin_growth(basin, observed, half_set, settings, 7), observed, settings, seed=0):
            pass
        yield


WORK: dict[str, tuple[Callable[[int], Iterator[None]], int]] = {
    "training step": (training_steps, 64),
    "search iteration": (search_iterations, 300),
}


def seconds_of(work: Iterator[None], repeats: int) -> float:
    """The shortest of several repeats after one that warms up."""
    next(work)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        next(work)
        times.append(time.perf_counter() - began)
    return min(times)


def flops_of(work: Iterator[None]) -> int:
    """Of one repeat, by this process."""
    next(work)
    with FlopCounterMode(display=False) as counter:
        next(work)
    return counter.get_total_flops()


def measure(result: Path, repeats: int, scale: float) -> None:
    """What each process does; the first writes."""
    torch.set_num_threads(1)
    figures: dict[str, dict[str, float]] = {}
    with processes.joined(CPU):
        for name, (work, per_process) in WORK.items():
            images = max(ALMOST_NONE, round(scale * per_process)) * launched().size
            seconds = seconds_of(work(images), repeats)
            steps, counter = work(images), Counter()
            next(steps)
            plain = processes.dist.all_reduce
            processes.dist.all_reduce = counter.counted(plain)
            next(steps)
            processes.dist.all_reduce = plain
            flops = processes.over_all(torch.tensor(float(flops_of(steps)), dtype=torch.float64))
            figures[name] = {
                "images": images, "seconds": seconds, "messages": counter.count, "bytes": counter.size_bytes,
                "flops": float(flops),
                "fixed_seconds": seconds_of(work(ALMOST_NONE * launched().size), repeats),
            }  # fmt: skip
        if processes.is_first():
            write_json(result, figures)


def run(count: int, repeats: int, scale: float) -> Record:
    """The record of one number of processes."""
    with tempfile.TemporaryDirectory() as place:
        result = Path(place) / "figures.json"
        own = [__file__, "--child", str(result), "--repeats", str(repeats), "--scale", str(scale)]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        began = time.monotonic()
        subprocess.run([*torchrun, *own], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        key = {"set": "noise", "mode": "weak scaling", "seed": 0, "options": [f"processes={count}"]}
        return key | {
            "figures": read_json(result), "wall_s": round(time.monotonic() - began, 2), "torch": torch.__version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"), "cores": os.cpu_count(),
            "load_average": [round(load, 2) for load in os.getloadavg()],
        }  # fmt: skip


def predicted(
    one: dict[str, float], several: dict[str, float], gpus: int, per_gpu: int, machine: Machine
) -> dict[str, float]:
    """Seconds of one step on so many GPUs, each with so many images.

    A ring all-reduce sends 2 (N - 1) / N of the bytes over each link; the slowest link counts.

    Args:
        one: figures of one process.
        several: figures of two, whose messages are those of any number (their bytes grow with the images only where
            poses are gathered, and are scaled so here: an upper bound).
        gpus: N.
        per_gpu: images.
        machine: what is assumed.
    """
    flops = one["flops"] / one["images"] * per_gpu
    compute_s = flops / (machine.flops_per_s * machine.reached)
    fixed = min(1.0, one["fixed_seconds"] / one["seconds"]) * one["images"] / per_gpu
    fixed_s = compute_s * fixed
    bandwidth = machine.within_bytes_per_s if gpus <= 8 else machine.between_bytes_per_s
    latency_s = machine.within_s if gpus <= 8 else machine.between_s
    messages_s = several["messages"] * latency_s + 2 * (gpus - 1) / gpus * several["bytes"] / bandwidth
    whole = compute_s + fixed_s + (messages_s if gpus > 1 else 0.0)
    return {
        "flops": flops, "compute_s": compute_s, "fixed_s": fixed_s, "messages_s": messages_s if gpus > 1 else 0.0,
        "seconds": whole, "efficiency": (compute_s + fixed_s) / whole,
    }  # fmt: skip


def print_tables(records: list[Record], machine: Machine) -> None:
    """What was measured, and the prediction with its arithmetic."""
    found = {count: record_of(records, count) for count in (1, 2)}
    if found[1] is None or found[2] is None:
        raise SystemExit("nothing is recorded yet")
    print(
        "| work | images per process | s, 1 process | s, 2 processes | efficiency | messages | MB a step | fixed, s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in WORK:
        one, two = (found[count]["figures"][name] for count in (1, 2))  # type: ignore[index]
        print(
            f"| {name} | {one['images']} | {one['seconds']:.3f} | {two['seconds']:.3f} | "
            f"{one['seconds'] / two['seconds']:.2f} | {two['messages']} | {two['bytes'] / 1e6:.2f} | "
            f"{one['fixed_seconds']:.3f} |"
        )
    print(
        f"\nPrediction, not measured: {machine.flops_per_s / 1e12:g} TFLOP/s of float32, of which {machine.reached:.0%};"
        f" links {machine.within_bytes_per_s / 1e9:g} GB/s in a node of 8, {machine.between_bytes_per_s / 1e9:g} GB/s"
        f" between nodes; {machine.within_s * 1e6:g} and {machine.between_s * 1e6:g} us a message."
    )
    print("seconds = FLOP / (peak x share) + fixed share + messages x latency + 2 (N - 1) / N x bytes / bandwidth\n")
    print(
        "| work | GPUs | images per GPU | GFLOP per GPU | compute, ms | fixed, ms | messages, ms | step, ms | efficiency |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in WORK:
        one, two = (found[count]["figures"][name] for count in (1, 2))  # type: ignore[index]
        for gpus in (1, 8, 64):
            for per_gpu in (int(one["images"]), 64 * int(one["images"])):
                row = predicted(one, two, gpus, per_gpu, machine)
                print(
                    f"| {name} | {gpus} | {per_gpu} | {row['flops'] / 1e9:.1f} | {row['compute_s'] * 1e3:.3f} | "
                    f"{row['fixed_s'] * 1e3:.3f} | {row['messages_s'] * 1e3:.3f} | {row['seconds'] * 1e3:.3f} | "
                    f"{row['efficiency']:.2f} |"
                )


def record_of(records: list[Record], count: int) -> Record | None:
    """The latest of a number of processes."""
    key = {"set": "noise", "mode": "weak scaling", "seed": 0, "options": [f"processes={count}"]}
    return find_record(records, key)


def main() -> None:
    """Measure, record, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-runs", action="store_true", help="only the tables")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="of the images per process")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        measure(arguments.child, arguments.repeats, arguments.scale)
        return
    if not arguments.no_runs:
        for count in (1, 2):
            append_record(arguments.output, run(count, arguments.repeats, arguments.scale))
    print_tables(read_records(arguments.output), Machine())


if __name__ == "__main__":
    main()
