"""Weak scaling: the same work per process on one and on two processes, and what 8 and 64 GPUs should do.

    OMP_NUM_THREADS=1 python tests/benchmarks/scaling.py              measured, recorded and printed
    python tests/benchmarks/scaling.py --no-runs                      the tables of what is recorded

Two kinds of work: training steps (d4 encoder, voxel decoder, 32 px, 64 images and 64 renderings per process) and
iterations of the search (32 px, radius 10, 300 images per process). Each process computes in one thread. Efficiency is
the time of one process over the time of several, each the shortest of several repeats, by the clock and by the CPU time
of the first process, which leaves out waiting, for messages as for other work on the machine. Messages are counted
where they are sent; FLOPs by ``torch.utils.flop_counter`` over all shares. What does not shrink with more processes
(maps, projections of the map, the optimizer) is what a line through the CPU times of many and of few images leaves for
none.

The prediction takes from these the FLOPs per image, the messages and their bytes, and the fixed share; from data sheets
what a GPU and its links can do. None of it is measured on a GPU.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from recorded_runs import Record, append_record, cost_record, find_record, measure, read_records
from torch.utils.flop_counter import FlopCounterMode

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.preprocessing import Preprocessing
from cryoeq.domain.events import result_of
from cryoeq.domain.optics import Optics
from cryoeq.domain.particles import ParticleTable
from cryoeq.io.images import LazyImages
from cryoeq.io.text import read_json, write_json
from cryoeq.pipelines.reconstruct.build import build_ab_initio_settings
from cryoeq.pipelines.reconstruct.build_autoencoder import build_plane, build_settings, build_state
from cryoeq.reconstruction.half_set_refinement import begin_refinement, refine_consensus
from cryoeq.reconstruction.initial_model import InitialModel
from cryoeq.reconstruction.particle_transforms import load_transforms
from cryoeq.runtime import distributed as processes
from cryoeq.runtime.torchrun import torchrun_environment
from cryoeq.training.autoencoder.loop import fit

RESULTS = Path(__file__).with_suffix(".json")
CPU = torch.device("cpu")
all_reduce, all_gather = processes.dist.all_reduce, processes.dist.all_gather
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
    """Messages to all processes, and what each of them has in the end: sums, and rows of all."""

    count: int = 0
    summed_bytes: int = 0
    gathered_bytes: int = 0

    def add(self, values: torch.Tensor, *rest: Any) -> Any:
        """``all_reduce``, counted."""
        self.count, self.summed_bytes = self.count + 1, self.summed_bytes + values.numel() * values.element_size()
        return all_reduce(values, *rest)

    def gather(self, received: list[torch.Tensor], values: torch.Tensor) -> Any:
        """``all_gather``, counted."""
        own = values.numel() * values.element_size()
        self.count, self.gathered_bytes = self.count + 1, self.gathered_bytes + len(received) * own
        return all_gather(received, values)


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
        {"particles": "none", "output": "none", "training": {"batch_size": images, "synthetic_batch_size": images}}
    )
    dataset = noise(images, 32)
    plane = build_plane(dataset, CPU)
    settings = replace(build_settings(config, dataset), image_loss_start=0.0)
    for _ in fit(build_state(config, dataset, plane), dataset, plane, settings):
        yield


def search_iterations(images: int) -> Iterator[None]:
    """One iteration of the search after the other.

    Args:
        images: in all.
    """
    config = ReconstructConfig.model_validate({"particles": "none", "output": "none"})
    dataset = noise(images, 32)
    particles = result_of(load_transforms(dataset, CPU))
    refinement = build_ab_initio_settings(config, dataset).refinement
    settings = replace(refinement, consensus_shells=(10,), max_extra_iterations=0)
    generator = torch.Generator().manual_seed(1)
    model = InitialModel(torch.randn(1, 16, 16, 16, generator=generator), torch.zeros(images, 2), 0.0)
    half_set = 1 + torch.arange(images) % 2
    while True:
        state = begin_refinement(model, particles, half_set, settings, 7)
        result_of(refine_consensus(state, particles, settings, seed=0))
        yield


WORK: dict[str, tuple[Callable[[int], Iterator[None]], int]] = {
    "training step": (training_steps, 64),
    "search iteration": (search_iterations, 300),
}


def seconds_of(work: Iterator[None], repeats: int) -> tuple[float, float]:
    """The shortest of several repeats after one that warms up, by the clock and of the CPU."""
    next(work)
    times = []
    for _ in range(repeats):
        began = time.perf_counter(), time.process_time()
        next(work)
        times.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return min(wall for wall, _ in times), min(cpu for _, cpu in times)


def flops_of(work: Iterator[None]) -> int:
    """Of one repeat, by this process."""
    next(work)
    with FlopCounterMode(display=False) as counter:
        next(work)
    return counter.get_total_flops()


def messages_of(work: Iterator[None]) -> Counter:
    """Those of one repeat; the few broadcasts are not in it."""
    counter = Counter()
    next(work)
    processes.dist.all_reduce, processes.dist.all_gather = counter.add, counter.gather
    next(work)
    processes.dist.all_reduce, processes.dist.all_gather = all_reduce, all_gather
    return counter


def measure_as_process(result: Path, repeats: int, scale: float) -> None:
    """What each process does; the first writes."""
    torch.set_num_threads(1)
    figures: dict[str, dict[str, float]] = {}
    with processes.process_group(CPU):
        for name, (work, per_process) in WORK.items():
            images = max(ALMOST_NONE, round(scale * per_process)) * torchrun_environment().size
            (wall_s, cpu_s), few = seconds_of(work(images), repeats), ALMOST_NONE * torchrun_environment().size
            _, few_s = seconds_of(work(few), repeats)
            counter, counter_of_few = messages_of(work(images)), messages_of(work(few))
            flops = processes.all_reduce(torch.tensor(float(flops_of(work(images))), dtype=torch.float64))
            figures[name] = {
                "images": images, "wall_s": wall_s, "cpu_s": cpu_s, "messages": counter.count,
                "summed_bytes": counter.summed_bytes, "gathered_bytes": counter.gathered_bytes, "flops": float(flops),
                "summed_per_image": (counter.summed_bytes - counter_of_few.summed_bytes) / max(1, images - few),
                "gathered_per_image": (counter.gathered_bytes - counter_of_few.gathered_bytes) / max(1, images - few),
                "fixed_s": max(0.0, (few_s * images - cpu_s * few) / max(1, images - few)),
            }  # fmt: skip
        if processes.is_main_process():
            write_json(result, figures)


def run(count: int, repeats: int, scale: float) -> Record:
    """The record of one number of processes."""
    with tempfile.TemporaryDirectory() as place:
        result = Path(place) / "figures.json"
        own = [__file__, "--child", str(result), "--repeats", str(repeats), "--scale", str(scale)]
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        log = Path(place) / "log"
        cost = measure([sys.executable, *torchrun, *own], log=log, environment={"OMP_NUM_THREADS": "1"})
        if cost.exit_code:
            raise SystemExit(log.read_text(encoding="utf-8"))
        places = {"WORK": Path(place), "BENCHMARKS": Path(__file__).parent}
        return {
            "set": "noise", "mode": "weak scaling", "seed": 0, "options": [f"processes={count}"],
            "figures": read_json(result), "torch": torch.__version__,
            **cost_record(cost, [["python", *torchrun, *own]], places),
        }  # fmt: skip


def predicted(
    one: dict[str, float], several: dict[str, float], gpus: int, per_gpu: int, machine: Machine
) -> dict[str, float]:
    """Seconds of one step on so many GPUs, each with so many images.

    A ring sends 2 (N - 1) / N of the bytes of a sum over each link, and (N - 1) / N of what it gathers; the slowest
    link counts. The poses of all images are gathered, so part of the bytes grows with the images of all GPUs.

    Args:
        one: figures of one process.
        several: figures of two, whose messages are those of any number.
        gpus: N.
        per_gpu: images.
        machine: what is assumed.
    """
    flops = one["flops"] / one["images"] * per_gpu
    compute_s = flops / (machine.flops_per_s * machine.reached)
    fixed_s = compute_s * one["fixed_s"] / (one["cpu_s"] - one["fixed_s"]) * one["images"] / per_gpu
    bandwidth = machine.within_bytes_per_s if gpus <= 8 else machine.between_bytes_per_s
    latency_s = machine.within_s if gpus <= 8 else machine.between_s
    more = gpus * per_gpu - several["images"]
    summed, gathered = (
        several[f"{kind}_bytes"] + several[f"{kind}_per_image"] * more for kind in ("summed", "gathered")
    )
    messages_s = several["messages"] * latency_s * (gpus > 1) + (gpus - 1) / gpus * (2 * summed + gathered) / bandwidth
    whole = compute_s + fixed_s + messages_s
    return {
        "flops": flops, "summed": summed, "gathered": gathered, "compute_s": compute_s,
        "fixed_s": fixed_s, "messages_s": messages_s, "seconds": whole, "efficiency": (compute_s + fixed_s) / whole,
    }  # fmt: skip


def print_tables(records: list[Record], machine: Machine) -> None:
    """What was measured, and the prediction with its arithmetic."""
    one, two = (record_of(records, count)["figures"] for count in (1, 2))
    print(
        "| work | images per process | wall, 1 | wall, 2 processes | efficiency | CPU, 1 | CPU each, 2 | efficiency | "
        "fixed CPU | messages | MB summed | gathered |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for name in WORK:
        alone, both = one[name], two[name]
        print(
            f"| {name} | {alone['images']} | {alone['wall_s']:.3f} s | {both['wall_s']:.3f} s | "
            f"{alone['wall_s'] / both['wall_s']:.2f} | {alone['cpu_s']:.3f} s | {both['cpu_s']:.3f} s | "
            f"{alone['cpu_s'] / both['cpu_s']:.2f} | {alone['fixed_s']:.3f} s | {both['messages']} | "
            f"{both['summed_bytes'] / 1e6:.2f} | {both['gathered_bytes'] / 1e6:.3f} |"
        )
    print(
        f"\nPrediction, not measured: {machine.reached:.0%} of {machine.flops_per_s / 1e12:g} TFLOP/s of float32; links"
        f" of {machine.within_bytes_per_s / 1e9:g} GB/s in a node of 8, {machine.between_bytes_per_s / 1e9:g} GB/s "
        f"between nodes; {machine.within_s * 1e6:g} and {machine.between_s * 1e6:g} us a message."
    )
    print(
        "compute = FLOP / (peak x share); fixed = the part of it that the fixed CPU time was of the rest; "
        "messages = count x latency + (N - 1) / N x (2 x summed + gathered) / bandwidth; step = their sum\n"
    )
    print(
        "| work | GPUs | images per GPU | GFLOP per GPU | MB summed | gathered | compute, ms | fixed | messages | step "
        "| efficiency |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name in WORK:
        for gpus in (1, 8, 64):
            for per_gpu in (int(one[name]["images"]), 64 * int(one[name]["images"])):
                row = predicted(one[name], two[name], gpus, per_gpu, machine)
                print(
                    f"| {name} | {gpus} | {per_gpu} | {row['flops'] / 1e9:.1f} | {row['summed'] / 1e6:.1f} | "
                    f"{row['gathered'] / 1e6:.1f} | "
                    f"{row['compute_s'] * 1e3:.3f} | "
                    f"{row['fixed_s'] * 1e3:.3f} | {row['messages_s'] * 1e3:.3f} | {row['seconds'] * 1e3:.3f} | "
                    f"{row['efficiency']:.2f} |"
                )


def record_of(records: list[Record], count: int) -> Record:
    """The latest of a number of processes."""
    key = {"set": "noise", "mode": "weak scaling", "seed": 0, "options": [f"processes={count}"]}
    if (record := find_record(records, key)) is None:
        raise SystemExit(f"nothing is recorded of {count} processes")
    return record


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
        measure_as_process(arguments.child, arguments.repeats, arguments.scale)
        return
    if not arguments.no_runs:
        for count in (1, 2):
            append_record(arguments.output, run(count, arguments.repeats, arguments.scale))
    print_tables(read_records(arguments.output), Machine())


if __name__ == "__main__":
    main()
