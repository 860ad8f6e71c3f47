"""Encoders as they are used: images per second and pose error in single precision, bfloat16 and 8-bit integers.

    python tests/benchmarks/inference.py             what is recorded is not done again
    python tests/benchmarks/inference.py --report    the tables of what is recorded

Speed: d4 encoders of three trunks, one thread, CPU time, turns of the variants interleaved, the least of each kept;
each variant at its own best batch. "trained" is the encoder itself, "fp32" its plain form, "compiled" that by
torch.compile where a compiler is found. Accuracy: an encoder learns from projections of the chiral phantom (24 px, a
tenth of its power in noise) and poses 4,096 others; the ranges of 8 bits are those of 512 more. "turned wrong" counts
integers of the trunk that are not exactly those of the turned image, over all elements of d4. Whole: ``cryoeq infer``
on simulated particles, and the CPU time of its parts.
"""

import argparse
import copy
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from phantom_projections import RADIUS, phantom_map, simulate_phantom
from torch import Tensor, nn

from cryoeq.cli.main import run
from cryoeq.data.dataset import ParticleDataset
from cryoeq.equivariance.actions import transform_images
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.io.checkpoint import save_checkpoint
from cryoeq.io.mrc import write_map
from cryoeq.io.particles import read_particles
from cryoeq.io.text import read_json, write_json
from cryoeq.models.export.exported_encoder import ExportedEncoder, export_encoder
from cryoeq.models.export.quantized_encoder import quantize_encoder
from cryoeq.models.pose_encoder import PoseEncoder, TrunkKind
from cryoeq.training.synthetic.encoder_input import EncoderInput, best_hypotheses, encoder_box_px, propose_poses
from cryoeq.training.synthetic.encoder_training import EncoderTrainingSettings, train_encoder
from cryoeq.training.synthetic.pose_estimator import PoseEstimator

RESULTS = Path(__file__).with_suffix(".json")
SPEED: tuple[tuple[TrunkKind, int, bool], ...] = (
    ("conv", 64, True), ("conv", 128, True), ("mobilenet", 64, True), ("mobilenet", 128, True),
    ("mobilenet", 64, False), ("mobilenet", 128, False), ("dense", 22, False),
)  # fmt: skip
"""Trunk, box in pixels, low-passes; the last as hybrid makes it."""
BATCHES = {22: (1024, 4096), 64: (16, 64, 256), 128: (16, 64)}
TURNS = 2
TAUGHT: tuple[tuple[TrunkKind, tuple[int, ...] | None, bool], ...] = (
    ("dense", (512,), False), ("conv", None, True), ("mobilenet", None, True),
)  # fmt: skip
STEPS, BATCH, HEADS = 300, 128, 8
WHOLE = ((64, 2048), (128, 1024))

Record = dict[str, float | int | str | bool]


def settled(trunk: TrunkKind, box: int, *, low_passes: bool) -> PoseEncoder:
    """An encoder with random weights and running statistics of white noise."""
    torch.manual_seed(0)
    encoder = PoseEncoder("d4", box, HEADS, (1024,) if box == 22 else None, trunk=trunk, low_passes=low_passes)
    with torch.no_grad():
        for _ in range(10):
            encoder(torch.randn(32, box, box))
    return encoder.eval()


def variants(encoder: PoseEncoder, images: Tensor) -> dict[str, nn.Module]:
    """What is compared; compiled only where a C++ compiler is found."""
    exported = export_encoder(encoder)
    found: dict[str, nn.Module] = {"trained": encoder, "fp32": exported}
    if shutil.which("g++") or shutil.which("clang++"):
        compiled = copy.copy(exported)
        compiled._modules = {"network": torch.compile(exported.network, dynamic=False)}
        found["compiled"] = compiled
    half = copy.deepcopy(exported)
    half.network = Half(half.network.to(torch.bfloat16))
    return found | {"bf16": half, "int8": quantize_encoder(encoder, images)}


class Half(nn.Module):
    """A network of bfloat16 fed with single precision."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.bfloat16()).float()


@torch.no_grad()
def measure_speed(trunk: TrunkKind, box: int, *, low_passes: bool) -> Record:
    """Images per second of each variant."""
    encoder = settled(trunk, box, low_passes=low_passes)
    images = torch.randn(max(BATCHES[box]), box, box)
    nets = variants(encoder, images[:64])
    least: dict[tuple[str, int], float] = {}
    for turn in range(TURNS + 1):
        for batch in BATCHES[box]:
            for name, net in nets.items():
                few = 1 if name == "bf16" else max(1, 64 // batch)
                if (name == "compiled" and batch != BATCHES[box][-1]) or (
                    name == "bf16" and (batch > BATCHES[box][0] or turn > 1)
                ):
                    continue
                began = time.process_time()
                for _ in range(few):
                    net(images[:batch])
                seconds = (time.process_time() - began) / few / batch
                if turn:  # the first one warms
                    least[name, batch] = min(seconds, least.get((name, batch), math.inf))
    record: Record = {"part": "speed", "trunk": trunk, "box_px": box, "low_passes": low_passes}
    for name in nets:
        by_batch = {batch: seconds for (other, batch), seconds in least.items() if other == name}
        best = min(by_batch, key=by_batch.__getitem__, default=0)
        record |= {name: round(1 / by_batch[best]), f"{name}_batch": best} if best else {}
    largest = BATCHES[box][-1]
    record["int8_over_fp32"] = round(float(record["int8"]) / float(record["fp32"]), 2)
    record["int8_over_fp32_largest_batch"] = round(least["fp32", largest] / least["int8", largest], 2)
    return record | {
        "load_average": round(os.getloadavg()[0], 2),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def measure_accuracy(trunk: TrunkKind, channels: tuple[int, ...] | None, *, low_passes: bool) -> Record:
    """Train an encoder, and pose new projections in every precision."""
    simulator = simulate_phantom()
    torch.manual_seed(0)
    encoder = PoseEncoder("d4", encoder_box_px(RADIUS), HEADS, channels, trunk=trunk, low_passes=low_passes)
    for _ in train_encoder(encoder, simulator, EncoderTrainingSettings(STEPS, BATCH, 5e-3, 2.0, 0.2), seed=0):
        pass
    with torch.no_grad():
        encoder_input = simulator.encoder_input
        calibration = encoder_input.images(simulator.simulate(512, torch.Generator().manual_seed(98)).ctf_multiplied)
        projections = simulator.simulate(4096, torch.Generator().manual_seed(99))
        nets = variants(encoder, calibration)
        nets.pop("compiled", None)
        record: Record = {"part": "accuracy", "trunk": trunk, "low_passes": low_passes, "steps": STEPS}
        for name, net in nets.items():
            found, _ = best_hypotheses(propose_poses(net, projections.ctf_multiplied, encoder_input))
            record[name] = round(math.degrees(float(rotation_angle_rad(found, projections.rotations).median())), 3)
        record["int8_over_fp32"] = round(float(record["int8"]) / float(record["fp32"]), 3)
        record["turned_wrong"] = turned_wrong(
            encoder, nets["int8"], encoder_input.images(projections.ctf_multiplied[:256])
        )
    return record


def turned_wrong(encoder: PoseEncoder, quantized: nn.Module, images: Tensor) -> int:
    """Integers of the trunk that differ from those of the turned image, moved as the group moves them."""
    assert isinstance(quantized, ExportedEncoder)
    levels, layers, *_ = quantized.network.children()
    order = encoder.group.dim("hidden")
    before, wrong = layers(levels(images)).unflatten(1, (order, -1)), 0
    for g in encoder.group.elements():
        after = layers(levels(transform_images(images, g))).unflatten(1, (order, -1))
        wrong += int((after[:, encoder.group.action("hidden", g).argmax(0)] != before).sum())
    return wrong


def measure_whole(box: int, count: int) -> Record:
    """``cryoeq infer`` of a dense encoder of hybrid's size, and where its CPU time goes."""
    record: Record = {"part": "whole", "box_px": box, "particles": count}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_map(folder / "map.mrc", phantom_map(box))
        words = ["-o", str(folder / "new"), "-n", str(count), "--snr", "0.1", "--device", "cpu"]
        assert run(["simulate", str(folder / "map.mrc"), *words]) == 0
        radius = 10
        small = encoder_box_px(radius)
        plane = HalfPlane.up_to(small, radius)
        encoder = settled("dense", small, low_passes=False)
        encoder_input = EncoderInput(plane, torch.ones(len(plane)) / box, box / small, torch.zeros(1, 2), True)
        estimator = PoseEstimator(encoder, encoder_input, radius, box, 5.0 * 24 / box, True)
        save_checkpoint(folder / "encoder.pt", estimator.to_state())
        stack = read_particles(folder / "new" / "particles.star")
        dataset = ParticleDataset.open(stack, working_box_px=box, cache_bytes=0)
        for precision in ("fp32", "int8"):
            out = ["-o", str(folder / "poses.star"), "--device", "cpu", "--precision", precision]
            began = time.process_time()
            assert run(["infer", str(folder), str(folder / "new" / "particles.star"), *out]) == 0
            record[f"{precision}_command_s"] = round(time.process_time() - began, 2)
            parts = {"reading": 0.0, "transform": 0.0, "encoder": 0.0}
            ready = estimator.in_precision(precision, dataset.batch(torch.arange(512)))
            clock = time.process_time()
            for batch in dataset.batches(1024):
                now = time.process_time()
                parts["reading"] += now - clock
                ready.transform(batch)
                clock = time.process_time()
                parts["transform"] += clock - now
                ready.propose(batch)
                now = time.process_time()
                parts["encoder"] += (now - clock) - (clock - now)
                clock = time.process_time()
            record |= {f"{precision}_{part}_us": round(1e6 * seconds / count, 1) for part, seconds in parts.items()}
    return record


def report(records: list[Record]) -> None:
    """All records, one a line."""
    for record in records:
        print("  ".join(f"{key} {value}" for key, value in record.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="print what is recorded, measure nothing")
    parser.add_argument("--part", choices=("accuracy", "whole", "speed"), help="only this one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records: list[Record] = read_json(RESULTS) if RESULTS.is_file() else []
    cases: list[tuple[Record, Callable[[], Record]]] = []
    for trunk, channels, low in TAUGHT:
        labels: Record = {"part": "accuracy", "trunk": trunk, "low_passes": low}
        cases.append((labels, partial(measure_accuracy, trunk, channels, low_passes=low)))
    for box, count in WHOLE:
        cases.append(({"part": "whole", "box_px": box}, partial(measure_whole, box, count)))
    for trunk, box, low in SPEED:
        labels = {"part": "speed", "trunk": trunk, "box_px": box, "low_passes": low}
        cases.append((labels, partial(measure_speed, trunk, box, low_passes=low)))
    for labels, measure in () if arguments.report else cases:
        is_wanted = arguments.part in (None, labels["part"])
        if is_wanted and not any(labels.items() <= record.items() for record in records):
            records.append(measure())
            write_json(RESULTS, records)
            report(records[-1:])
    report(records)


if __name__ == "__main__":
    main()
