"""Images per second of each part of the training step, beside the ceiling of the machine measured in the same run.

    python tests/benchmarks/throughput.py --quick        d4 and c1 at small boxes, printed
    python tests/benchmarks/throughput.py                every group and box, printed and written beside this file

The ceiling is a large float32 matrix product (FLOP/s) and a large copy (bytes/s). Work is counted, not estimated
(``torch.utils.flop_counter``; for slices of a voxel map the bytes of the eight neighbours of each coefficient);
``ratio`` is the counted work per second over what the ceiling allows. A new part is a function like ``encoder_cases``,
added to ``PARTS``.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch.utils.flop_counter import FlopCounterMode

from cryoeq.config.reconstruct import Group, ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.preprocessing import Preprocessing
from cryoeq.domain.optics import Optics
from cryoeq.domain.particles import ParticleTable
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import random_rotations
from cryoeq.io.images import LazyImages
from cryoeq.models.implicit_decoder import ImplicitDecoder
from cryoeq.models.pose_encoder import PoseEncoder
from cryoeq.models.voxel_decoder import VoxelDecoder
from cryoeq.pipelines.reconstruct.build_autoencoder import build_plane, build_settings, build_state
from cryoeq.runtime.batching import logging_interval
from cryoeq.training.autoencoder.loop import fit
from cryoeq.training.autoencoder.schedule import Schedule

GROUP_NAMES: tuple[str, ...] = get_args(Group)
RESULTS = Path(__file__).with_suffix(".json")
BATCH = 128
QUICK_GROUPS = ("c1", "d4")
QUICK_BOXES = (16, 32)
BOXES = (16, 32, 64, 128)
LARGEST_DENSE_PX = 32
LONG_SECONDS, PATIENCE_SECONDS = 2.0, 10.0


@dataclass(frozen=True)
class Settings:
    """What to measure: groups, boxes in pixels, the device, repeats of each timing, and the clock in seconds."""

    groups: tuple[str, ...]
    boxes_px: tuple[int, ...]
    device: torch.device
    repeats: int
    clock: Callable[[], float]


@dataclass(frozen=True)
class Case:
    """Something to time: its labels, what it runs, and how many images that takes in."""

    part: str
    group: str
    box_px: int
    direction: str
    parameters: int
    run: Callable[[], None]
    images: int
    bytes_per_image: float = 0.0


@dataclass(frozen=True)
class Ceiling:
    """What the machine can do: FLOP/s of a float32 matrix product, bytes/s of a copy (read and written)."""

    flops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Measurement:
    """One row of the table; ratio is achieved over possible FLOP/s, or bytes/s where those are the tighter bound."""

    part: str
    group: str
    box_px: int
    direction: str
    parameters: int
    images_per_s: float
    megaflops_per_image: float
    ratio: float


def encoder_cases(settings: Settings) -> Iterator[Case]:
    """The pose encoder of the default width, in evaluation (forward) and in training (forward and backward)."""
    for group in settings.groups:
        for box in settings.boxes_px:
            torch.manual_seed(0)
            encoder = PoseEncoder(group, box, n_heads=4).to(settings.device)
            count = BATCH if box < 128 else BATCH // 4
            images = torch.randn(count, box, box, device=settings.device)

            def forward(encoder: PoseEncoder = encoder, images: torch.Tensor = images) -> None:
                encoder.eval()
                with torch.no_grad():
                    encoder(images)

            def forward_and_backward(encoder: PoseEncoder = encoder, images: torch.Tensor = images) -> None:
                encoder.train()
                encoder.zero_grad(set_to_none=True)
                proposals = encoder(images)
                loss = proposals.rotations.square().sum() + proposals.shifts_px.sum() + proposals.logits.sum()
                loss.backward()

            parameters = sum(parameter.numel() for parameter in encoder.parameters())
            yield Case("encoder", group, box, "forward", parameters, forward, count)
            yield Case("encoder", group, box, "forward + backward", parameters, forward_and_backward, count)


def decoder_cases(settings: Settings) -> Iterator[Case]:
    """Slices of both decoders up to Nyquist, without and with gradients."""
    for kind in ("voxel", "implicit"):
        for box in settings.boxes_px:
            generator = torch.Generator().manual_seed(0)
            decoder = {"voxel": VoxelDecoder, "implicit": ImplicitDecoder}[kind](box, generator).to(settings.device)
            plane = HalfPlane.up_to(box, box / 2 - 1, settings.device)
            count = BATCH if box < 64 else BATCH // 16
            rotations = random_rotations(count, generator, settings.device)

            def forward(
                decoder: torch.nn.Module = decoder, rotations: torch.Tensor = rotations, plane: HalfPlane = plane
            ) -> None:
                with torch.no_grad():
                    decoder(rotations, plane)

            def forward_and_backward(
                decoder: torch.nn.Module = decoder, rotations: torch.Tensor = rotations, plane: HalfPlane = plane
            ) -> None:
                decoder.zero_grad(set_to_none=True)
                decoder(rotations, plane).abs().square().sum().backward()

            parameters = sum(parameter.numel() for parameter in decoder.parameters())
            gathered = len(plane) * 9 * 8.0 if kind == "voxel" else 0.0
            yield Case(kind, "", box, "forward", parameters, forward, count, gathered)
            yield Case(kind, "", box, "forward + backward", parameters, forward_and_backward, count, 3 * gathered)


def step_cases(settings: Settings) -> Iterator[Case]:
    """Whole training steps of ``cryoeq reconstruct``: 64 images and 64 renderings, 8 heads, all shells, no CTF."""
    for group in settings.groups:
        for box in settings.boxes_px:
            trunk = "dense" if box <= LARGEST_DENSE_PX else "conv"
            config = ReconstructConfig.model_validate(
                {"particles": "none", "output": "none", "encoder": {"group": group, "design": {"trunk": trunk}}}
            )
            dataset = random_dataset(box)
            plane = build_plane(dataset, settings.device)
            state = build_state(config, dataset, plane)
            training = replace(
                build_settings(config, dataset),
                image_loss_start=0.0,
                schedule=Schedule(10**9, box / 2 - 1, box / 2 - 1),
            )
            events = fit(state, dataset, plane, training)
            parameters = sum(parameter.numel() for parameter in state.encoder.parameters())
            images = 64 * logging_interval(settings.device)  # from one event to the next
            yield Case("step", group, box, trunk, parameters, partial(next, events), images)


def random_dataset(box_px: int) -> ParticleDataset:
    """64 images of noise, in memory."""
    table = ParticleTable(
        stack_paths=(Path("none"),), stack_index=torch.zeros(64, dtype=torch.long), slice_index=torch.arange(64),
        box_size_px=box_px, pixel_size_angstrom=4.0, optics=(Optics("g", 4.0, 300.0, 2.7, 0.1),),
        optics_index=torch.zeros(64, dtype=torch.long),
    )  # fmt: skip
    images = torch.randn(64, box_px, box_px, generator=torch.Generator().manual_seed(0))
    unread = LazyImages((), torch.zeros(64, dtype=torch.long), torch.arange(64))
    return ParticleDataset(table, box_px, 4.0, (), unread, Preprocessing(box_px, 1.0, 1), images)


PARTS: tuple[Callable[[Settings], Iterator[Case]], ...] = (encoder_cases, decoder_cases, step_cases)


def best_seconds(run: Callable[[], None], settings: Settings) -> float:
    """The shortest of several runs, after one or two that warm up: the one that other processes disturbed least."""
    began = time.monotonic()
    run()
    if time.monotonic() - began < LONG_SECONDS:
        run()
    times: list[float] = []
    while len(times) < settings.repeats and (len(times) < 2 or time.monotonic() - began < PATIENCE_SECONDS):
        synchronise(settings.device)
        start = settings.clock()
        run()
        synchronise(settings.device)
        times.append(settings.clock() - start)
    return min(times)


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_ceiling(settings: Settings) -> Ceiling:
    """A matrix product and a copy, both far larger than any cache."""
    n = 2048 if settings.device.type == "cpu" else 8192
    a, b, product = (torch.randn(n, n, device=settings.device) for _ in range(3))
    values = torch.randn(2**26 if settings.device.type == "cpu" else 2**29, device=settings.device)
    copy = torch.empty_like(values)

    def multiply() -> None:
        torch.mm(a, b, out=product)

    def move() -> None:
        copy.copy_(values)

    often = replace(settings, repeats=5 * settings.repeats)
    return Ceiling(2 * n**3 / best_seconds(multiply, often), 8 * values.numel() / best_seconds(move, often))


def measure(case: Case, ceiling: Ceiling, settings: Settings) -> Measurement:
    """Time a case and count its work."""
    with FlopCounterMode(display=False) as counter:
        case.run()
    flops = counter.get_total_flops() / case.images
    speed = case.images / best_seconds(case.run, settings)
    least_seconds = max(flops / ceiling.flops_per_s, case.bytes_per_image / ceiling.bytes_per_s)
    return Measurement(
        case.part, case.group, case.box_px, case.direction, case.parameters, round(speed, 1),
        round(flops / 1e6, 2), round(speed * least_seconds, 3),
    )  # fmt: skip


def run_on(settings: Settings) -> dict[str, object]:
    """All parts on one device, printed as they come."""
    ceiling = measure_ceiling(settings)
    print(f"{settings.device}: {ceiling.flops_per_s / 1e9:.0f} GFLOP/s, {ceiling.bytes_per_s / 1e9:.1f} GB/s")
    print(
        f"{'part':10}{'group':6}{'box':>5}  {'direction':20}{'parameters':>10}{'images/s':>10}{'MFLOP':>9}{'ratio':>7}"
    )
    rows = []
    for part in PARTS:
        for case in part(settings):
            row = measure(case, ceiling, settings)
            rows.append(row)
            print(
                f"{row.part:10}{row.group:6}{row.box_px:5}  {row.direction:20}{row.parameters:10}"
                f"{row.images_per_s:10.0f}{row.megaflops_per_image:9.1f}{row.ratio:7.2f}",
                flush=True,
            )
    return {
        "device": torch.cuda.get_device_name(settings.device) if settings.device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "clock": settings.clock.__name__,
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "batch": BATCH,
        "ceiling": asdict(ceiling),
        "measurements": [asdict(row) for row in rows],
    }


def main() -> None:
    """Measure on the CPU, and on a GPU where there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few groups and boxes, nothing written")
    parser.add_argument("--groups", nargs="+", choices=GROUP_NAMES, help="only these groups")
    parser.add_argument("--boxes", nargs="+", type=int, help="only these boxes, in pixels")
    parser.add_argument("--output", type=Path, help=f"where to write the results as JSON (default {RESULTS.name})")
    parser.add_argument(
        "--one-core", action="store_true", help="one thread and CPU seconds, for a busy machine; no GPU"
    )
    arguments = parser.parse_args()
    groups = tuple(arguments.groups or (QUICK_GROUPS if arguments.quick else GROUP_NAMES))
    boxes = tuple(arguments.boxes or (QUICK_BOXES if arguments.quick else BOXES))
    devices = ["cpu", *(["cuda:0"] if torch.cuda.is_available() and not arguments.one_core else [])]
    repeats = 5 if arguments.quick else 7
    clock = time.process_time if arguments.one_core else time.perf_counter
    if arguments.one_core:
        torch.set_num_threads(1)
    results = {name: run_on(Settings(groups, boxes, torch.device(name), repeats, clock)) for name in devices}
    output = arguments.output or (None if arguments.quick else RESULTS)
    if output:
        output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
