"""Speed of every stage on a GPU beside what the machine allows, and ab initio from 100,000 particles, in one command.

    python tests/benchmarks/gpu.py --work DIR          on a GPU, under 8 minutes; recorded beside this file
    python tests/benchmarks/gpu.py --work DIR          without one: small, on the CPU, printed, nothing recorded

Stages: batches read ahead and taken into Fourier space with their CTFs ("preprocess"), the encoder forward, whole
training steps, slices of both decoders forward, scores of all poses of the search and their sums ("E-step"),
back-projection, and normal equations of local refinement.
For each, images/s; FLOPs counted by ``torch.utils.flop_counter`` (matrix products and convolutions; FFTs and
element-wise work are not in it); the bytes that must move at least once (images, CTFs, weights, maps; not what is made
on the way); the floor, which is the longer of FLOPs over the measured rate of a float32 matrix product and bytes over
that of a copy; and achieved over floor. So a low ratio is an upper bound of what can be gained. ``--bf16`` makes the
encoders' products in bf16, with the ceiling of a bf16 product. At the end a profile of a training step says where the
time goes, and a search from simulated particles says what all this comes to.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import product, repeat
from pathlib import Path

import torch
from recorded_runs import CRYOEQ, Record, append_record, measure, stop_children_when_terminated
from throughput import Case, Ceiling, Settings, best_seconds, measure_ceiling, random_dataset
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.prefetch import prefetch
from cryoeq.domain.events import result_of
from cryoeq.domain.optics import Optics
from cryoeq.geometry.disk_harmonics import disk_harmonics, support_radius
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import random_rotations
from cryoeq.models.implicit_decoder import ImplicitDecoder
from cryoeq.models.pose_encoder import PoseEncoder
from cryoeq.models.voxel_decoder import VoxelDecoder
from cryoeq.physics.backprojection import WienerBackprojection
from cryoeq.physics.projection import prepare_slices
from cryoeq.pipelines.reconstruct.build_autoencoder import build_plane, build_settings, build_state
from cryoeq.reconstruction.expectation import expectation_step
from cryoeq.reconstruction.normal_equations import (
    WeightedImages,
    is_fused,
    normal_equations,
    plain_normal_equations,
)
from cryoeq.reconstruction.particle_transforms import load_transforms
from cryoeq.reconstruction.pose_likelihood import PoseLikelihood, pose_grid
from cryoeq.reconstruction.reference import Reference
from cryoeq.runtime.batching import logging_interval
from cryoeq.runtime.distributed import BatchShard
from cryoeq.simulation.particles import DefocusRange, draw_ctf
from cryoeq.training.autoencoder.loop import fit
from cryoeq.training.autoencoder.schedule import Schedule
from cryoeq.training.autoencoder.step import transform

RESULTS = Path(__file__).with_suffix(".json")
ATOMS = Path(__file__).parents[2] / "data_samples" / "1wcm_ca.pdb.gz"
GROUPS = ("c1", "d4", "so2")
RADIUS = 10  # of the E-step, in cycles per box
LONGEST_S = 480.0


@dataclass(frozen=True)
class Plan:
    """How much to do: boxes of the stages in pixels, images a batch, and the size of the ab initio run."""

    boxes_px: tuple[int, ...]
    batch: int
    particles: int
    ab_initio_px: int
    options: tuple[str, ...]

    @classmethod
    def of_device(cls, device: torch.device) -> "Plan":
        """All of it on a GPU; on a CPU so little that it takes a minute."""
        if device.type == "cuda":
            return cls((64, 128, 256), 256, 100_000, 128, ())
        few = (
            "search.multi_start.min=1",
            "search.initial_model.iterations=30",
            "search.initial_model.batch_size=60",
            "search.consensus.shells=[6,7]",
        )
        brief = (
            "search.half_sets.max_exhaustive_shell=7",
            "search.half_sets.iterations=1",
            "search.local_refinement.iterations=1",
        )
        return cls((32,), 16, 200, 20, (*few, *brief))


@dataclass(frozen=True)
class Row:
    """One stage: speed, its work per image, the floor of the machine for it, and how near it is."""

    stage: str
    kind: str
    box_px: int
    images_per_s: float
    megaflops_per_image: float
    megabytes_per_image: float
    floor_images_per_s: float
    ratio: float


def weight_bytes(module: torch.nn.Module) -> float:
    """Of the parameters, once."""
    return 4.0 * sum(parameter.numel() for parameter in module.parameters())


def preprocess_cases(settings: Settings, plan: Plan) -> Iterator[Case]:
    """From images in memory to coefficients and CTFs on the device, read ahead as in a training."""
    for box in settings.boxes_px:
        dataset = with_ctf(box)
        plane = build_plane(dataset, settings.device)
        rows = torch.arange(plan.batch) % len(dataset)
        moved = 4.0 * box**2 * 2 + (8 + 4) * len(plane)  # the image here and there, its coefficients and CTF
        batches = prefetch(map(dataset.batch, repeat(rows)), settings.device)
        share = BatchShard(slice(None), plan.batch, 1.0)
        seen = (transform(batch, plane, dataset.pixel_size_angstrom, 1.0, share) for batch in batches)
        yield Case("preprocess", "", box, "", 0, partial(next, seen), plan.batch, moved)
        batches.close()


def encoder_cases(settings: Settings, plan: Plan, *, is_bf16: bool) -> Iterator[Case]:
    """The encoder forward, dense up to 32 px."""
    for group in settings.groups:
        for box in settings.boxes_px:
            torch.manual_seed(0)
            trunk = "dense" if box <= 32 else "conv"
            encoder = PoseEncoder(group, box, 8, trunk=trunk, is_bf16=is_bf16).to(settings.device).eval()
            images = torch.randn(plan.batch, box, box, device=settings.device)
            moved = 4.0 * box**2 + weight_bytes(encoder) / plan.batch
            yield Case("encoder", group, box, "", 0, partial(torch.no_grad()(encoder), images), plan.batch, moved)


def step_cases(settings: Settings, plan: Plan, *, is_bf16: bool) -> Iterator[Case]:
    """Training steps of 64 images and 64 renderings with 8 heads, and each decoder with d4."""
    chosen = [(group, "voxel") for group in settings.groups] + [("d4", "implicit")]
    for group, kind in chosen:
        for box in settings.boxes_px:
            events, learnt, plane = training(group, kind, box, settings.device, is_bf16=is_bf16)
            # Weights are read forward and backward and written with their two moments; each hypothesis has a slice.
            moved = (3 + 4) * learnt / 64 + 2 * 4.0 * box**2 + 3 * 9 * 8.0 * len(plane) * 8
            images = 64 * logging_interval(settings.device)  # from one event to the next
            yield Case("training step", f"{group}, {kind}", box, "", 0, partial(next, events), images, moved)
            del events


def training(
    group: str, kind: str, box_px: int, device: torch.device, *, is_bf16: bool
) -> tuple[Iterator[object], float, HalfPlane]:
    """Steps at the last shell, the bytes of what is learnt, and the coefficients."""
    precision = "bf16" if is_bf16 else "float32"
    config = ReconstructConfig.model_validate({
        "particles": "none", "output": "none", "decoder": {"kind": kind},
        "encoder": {
            "group": group, "precision": precision, "design": {"trunk": "dense" if box_px <= 32 else "conv"},
        },
    })  # fmt: skip
    dataset = with_ctf(box_px)
    plane = build_plane(dataset, device)
    state = build_state(config, dataset, plane)
    schedule = Schedule(10**9, box_px / 2 - 1, box_px / 2 - 1)
    settings = replace(build_settings(config, dataset), image_loss_start=0.0, schedule=schedule)
    return fit(state, dataset, plane, settings), weight_bytes(state.encoder) + weight_bytes(state.decoder), plane


def decoder_cases(settings: Settings, plan: Plan) -> Iterator[Case]:
    """Slices up to Nyquist."""
    for kind in ("voxel", "implicit"):
        for box in settings.boxes_px:
            generator = torch.Generator().manual_seed(0)
            decoder = {"voxel": VoxelDecoder, "implicit": ImplicitDecoder}[kind](box, generator).to(settings.device)
            plane = HalfPlane.up_to(box, box / 2 - 1, settings.device)
            count = max(1, plan.batch // 8)
            rotations = random_rotations(count, generator, settings.device)
            gathered = 8 * 8.0 if kind == "voxel" else 0.0  # eight neighbours of each coefficient, one number out
            moved = (gathered + 8.0) * len(plane) + weight_bytes(decoder) / count
            yield Case("slices", kind, box, "", 0, partial(torch.no_grad()(decoder), rotations, plane), count, moved)


def search_cases(settings: Settings, plan: Plan) -> Iterator[Case]:
    """The E-step over all poses at one offset, and back-projection."""
    for box in settings.boxes_px:
        particles = result_of(load_transforms(with_ctf(box), settings.device))
        count, generator = len(particles), torch.Generator().manual_seed(0)
        part = particles.within(RADIUS, box)
        harmonics = disk_harmonics(box, RADIUS, support_radius(0.42, box), settings.device)
        volume = torch.randn(box, box, box, generator=generator).to(settings.device)
        grid = pose_grid(RADIUS, generator, settings.device)
        precision = torch.ones(len(part.plane), device=settings.device)
        likelihood = PoseLikelihood.build(Reference.build(volume, precision), grid, harmonics)
        shifts = torch.zeros(count, 1, 2, device=settings.device)
        poses = 2 * len(grid.views) * len(grid.inplane_rad)
        e_step = partial(
            lambda p, s, t: result_of(expectation_step(p, s, t, shift_sigma_px=0.0)), part, likelihood, shifts
        )
        # The log-likelihoods of an image are written once and read once for its sums, if none is kept in registers.
        yield Case("E-step", f"{poses} poses", box, "", 0, e_step, count, 12.0 * len(part.plane) + 8.0 * poses)
        rotations = random_rotations(count, generator, settings.device)
        sums = WienerBackprojection.empty(box, device=settings.device)
        add = partial(sums.add_, particles.ctf_multiplied, particles.ctf_squared, rotations, particles.plane)
        moved = (8 + 4) * len(particles.plane) + 8 * 2 * 12.0 * len(
            particles.plane
        )  # eight neighbours read and written
        yield Case("back-projection", "", box, "", 0, add, count, moved)


def refinement_cases(settings: Settings, plan: Plan) -> Iterator[Case]:
    """One evaluation of local refinement, in plain torch and, where Triton can be used, in one kernel."""
    ways = {"plain": plain_normal_equations} | ({"fused": normal_equations} if is_fused(settings.device) else {})
    for (kind, evaluate), box in product(ways.items(), settings.boxes_px):
        generator, device = torch.Generator().manual_seed(0), settings.device
        plane, count = HalfPlane.up_to(box, box / 2 - 1, device), 4 * plan.batch
        order = plane.flat_index.argsort()
        lines = HalfPlane(box, plane.coords[order], plane.flat_index[order], plane.weights[order])
        images = torch.randn(count, len(plane), generator=generator, dtype=torch.complex64).to(device)
        observed = WeightedImages(lines, images, torch.ones(count, len(plane), device=device))
        padded = prepare_slices(torch.randn(box, box, box, generator=generator).to(device))
        rotations = random_rotations(count, generator, device)
        run = partial(evaluate, observed, padded, rotations, torch.zeros(count, 2, device=device))
        yield Case("normal equations", kind, box, "", 0, run, count, 12.0 * len(plane) + 8.0 * padded.numel() / count)


def with_ctf(box_px: int) -> object:
    """64 images of noise with CTFs."""
    dataset = random_dataset(box_px)
    drawn = draw_ctf(
        64, Optics("g", 4.0, 300.0, 2.7, 0.1), DefocusRange(9e3, 2e4, 300.0), torch.Generator().manual_seed(0)
    )
    return replace(dataset, table=replace(dataset.table, ctf=drawn))


def bf16_flops_per_s(settings: Settings) -> float:
    """Of a large matrix product."""
    n = 1024 if settings.device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=settings.device).bfloat16() for _ in range(2))
    return 2 * n**3 / best_seconds(lambda: torch.mm(a, b), settings)


def row_of(case: Case, ceiling: Ceiling, settings: Settings) -> Row:
    """Time a case, count its work."""
    with FlopCounterMode(display=False) as counter:
        case.run()
    flops = counter.get_total_flops() / case.images
    speed = case.images / best_seconds(case.run, settings)
    floor = 1 / max(flops / ceiling.flops_per_s, case.bytes_per_image / ceiling.bytes_per_s)
    return Row(
        case.part, case.group, case.box_px, round(speed, 1), round(flops / 1e6, 3),
        round(case.bytes_per_image / 1e6, 4), round(floor, 1), round(speed / floor, 4),
    )  # fmt: skip


def profiled(device: torch.device, box_px: int, *, is_bf16: bool) -> list[tuple[str, float]]:
    """The operations that take most of a training step's time, with their shares."""
    events, _, _ = training("d4", "voxel", box_px, device, is_bf16=is_bf16)
    next(events)
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as record:
        for _ in range(3):
            next(events)
    key: Callable[..., float] = lambda row: row.self_device_time_total if is_cuda else row.self_cpu_time_total  # noqa: E731
    rows = sorted(record.key_averages(), key=key, reverse=True)
    whole = sum(key(row) for row in rows)
    return [(row.key, round(key(row) / whole, 3)) for row in rows[:10]]


def ab_initio(plan: Plan, work: Path, device: torch.device) -> Record:
    """Simulated particles to a map, as the command line does it."""
    atoms, folder = str(ATOMS), work / f"{plan.particles}_{plan.ab_initio_px}px"
    drawn = ["--box", str(plan.ab_initio_px), "-n", str(plan.particles), "--snr", "0.1", "--device", str(device)]
    if not folder.exists():
        measure([CRYOEQ, "simulate", atoms, "-o", str(folder), *drawn], log=work / "simulate.log")
    options = [word for setting in plan.options for word in ("--set", setting)]
    run = work / f"run_{int(time.time())}"
    command = [CRYOEQ, "reconstruct", str(folder / "particles.star"), "-o", str(run), "--device", str(device), *options]
    cost = measure(command, log=work / "reconstruct.log", time_limit_s=LONGEST_S)
    return {"particles": plan.particles, "box_px": plan.ab_initio_px, **asdict(cost)}


def stages(settings: Settings, plan: Plan, *, is_bf16: bool) -> tuple[Ceiling, list[Row]]:
    """All stages, printed as they come."""
    ceiling = measure_ceiling(settings)
    fast = replace(ceiling, flops_per_s=bf16_flops_per_s(settings)) if is_bf16 else ceiling
    print(
        f"{settings.device}: {ceiling.flops_per_s / 1e9:.0f} GFLOP/s of float32, {ceiling.bytes_per_s / 1e9:.1f} GB/s"
        + (f", {fast.flops_per_s / 1e9:.0f} GFLOP/s of bf16" if is_bf16 else "")
    )
    print(f"{'stage':16}{'kind':16}{'box':>5}{'images/s':>12}{'MFLOP':>10}{'MB':>9}{'floor':>13}{'ratio':>8}")
    rows = []
    for cases, limit in (
        (preprocess_cases(settings, plan), ceiling),
        (encoder_cases(settings, plan, is_bf16=is_bf16), fast),
        (step_cases(settings, plan, is_bf16=is_bf16), fast),
        (decoder_cases(settings, plan), ceiling),
        (search_cases(settings, plan), ceiling),
        (refinement_cases(settings, plan), ceiling),
    ):
        for case in cases:
            row = row_of(case, limit, settings)
            rows.append(row)
            print(
                f"{row.stage:16}{row.kind:16}{row.box_px:5}{row.images_per_s:12.0f}{row.megaflops_per_image:10.2f}"
                f"{row.megabytes_per_image:9.3f}{row.floor_images_per_s:13.0f}{row.ratio:8.3f}",
                flush=True,
            )
    return ceiling, rows


def main() -> None:
    """Measure all, and record what a GPU did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for particles and runs")
    parser.add_argument("--bf16", action="store_true", help="the encoders' products in bf16")
    parser.add_argument("--no-ab-initio", action="store_true", help="the stages only")
    arguments = parser.parse_args()
    stop_children_when_terminated()
    arguments.work.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    plan, is_cuda = Plan.of_device(device), device.type == "cuda"
    settings = Settings(GROUPS, plan.boxes_px, device, 5 if is_cuda else 1, time.perf_counter)
    ceiling, rows = stages(settings, plan, is_bf16=arguments.bf16)
    shares = profiled(device, plan.boxes_px[-1], is_bf16=arguments.bf16)
    print(f"\ntraining step at {plan.boxes_px[-1]} px, d4: where the time goes")
    for name, share in shares:
        print(f"{share:8.1%}  {name}")
    record: Record = {
        "device": torch.cuda.get_device_name(device) if is_cuda else platform.machine(),
        "torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "command": sys.argv, "load": os.getloadavg()[0],
        "bf16": arguments.bf16, "ceiling": asdict(ceiling), "stages": [asdict(row) for row in rows],
        "profile": shares,
    }  # fmt: skip
    if not arguments.no_ab_initio:
        record["ab initio"] = ab_initio(plan, arguments.work, device)
        print("\nab initio:", record["ab initio"])
    if is_cuda:
        append_record(RESULTS, record)


if __name__ == "__main__":
    main()
