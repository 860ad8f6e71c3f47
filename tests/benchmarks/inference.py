"""View networks as they are used: images per second and views found in single precision, bfloat16 and integers.

    python tests/benchmarks/inference.py --work DIR    what is recorded is not done again
    python tests/benchmarks/inference.py --report      the tables of what is recorded

Speed: d4 networks of three trunks, one thread, CPU time, turns of the variants interleaved, the least of each kept;
each variant at its own best batch. "trained" is the network itself, "fp32" its plain form, "compiled" that by
torch.compile where a compiler is found. Accuracy: ``base`` (32 px, SNR 0.1, offsets), the true map known, networks as
``hybrid.posterior=network`` trains them, on 1,200 particles; the ranges of 8 bits are those of 512 others. Recall: the
true view is within 7.5 degrees of one of the 8 most probable. "turned wrong" counts integers of the trunk that are not
exactly those of the turned image, over all elements of d4.
"""

import argparse
import copy
import math
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from benchmark_sets import prepare
from pose_ways import open_scene, timed
from torch import Tensor, nn

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.events import result_of
from cryoeq.equivariance.actions import transform_images
from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad
from cryoeq.io.text import read_json, write_json
from cryoeq.models.export.exported_network import ExportedNetwork, export_network
from cryoeq.models.export.quantized_network import quantize_network
from cryoeq.models.pose_encoder import TrunkKind
from cryoeq.models.view_head import nearness
from cryoeq.models.view_network import ViewNetwork
from cryoeq.training.views.encoder import ViewEncoder, ViewSettings
from cryoeq.training.views.network_training import NetworkSettings, train_network

RESULTS = Path(__file__).with_suffix(".json")
SPEED: tuple[tuple[TrunkKind, int], ...] = (
    ("conv", 64), ("conv", 128), ("mobilenet", 64), ("mobilenet", 128), ("dense", 22),
)  # fmt: skip
"""Trunk, and box in pixels; the last as hybrid makes it."""
TRUNKS: tuple[TrunkKind, ...] = ("dense", "conv", "mobilenet")
BATCHES = {22: (1024, 4096), 64: (16, 64, 256), 128: (16, 64)}
TURNS, COUNT, SAMPLE, VIEWS = 2, 1200, 512, 384
C1 = torch.eye(3)[None]

Record = dict[str, float | int | str | bool | list[float]]


def settled(trunk: TrunkKind, box: int) -> ViewNetwork:
    """A network with random weights and running statistics of white noise."""
    torch.manual_seed(0)
    views, is_dense = random_rotations(VIEWS, torch.Generator().manual_seed(0))[:, 2], trunk == "dense"
    channels = (1024,) if is_dense else None
    network = ViewNetwork("d4", box, views, channels, trunk=trunk, low_passes=not is_dense)
    with torch.no_grad():
        for _ in range(10):
            network(torch.randn(32, box, box))
    return network.eval()


def variants(network: ViewNetwork, images: Tensor) -> dict[str, nn.Module]:
    """What is compared; compiled only where a C++ compiler is found."""
    exported = export_network(network)
    found: dict[str, nn.Module] = {"trained": network, "fp32": exported}
    if shutil.which("g++") or shutil.which("clang++"):
        compiled = copy.copy(exported)
        compiled._modules = {"network": torch.compile(exported.network, dynamic=False)}
        found["compiled"] = compiled
    half = copy.deepcopy(exported)
    half.network = Half(half.network.to(torch.bfloat16))
    return found | {"bf16": half, "int8": quantize_network(network, images)}


class Half(nn.Module):
    """A network of bfloat16 fed with single precision."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.bfloat16()).float()


@torch.no_grad()
def measure_speed(trunk: TrunkKind, box: int) -> Record:
    """Images per second of each variant."""
    network = settled(trunk, box)
    images = torch.randn(max(BATCHES[box]), box, box)
    nets = variants(network, images[:64])
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
    record: Record = {"part": "speed", "trunk": trunk, "box_px": box}
    for name in nets:
        by_batch = {batch: seconds for (other, batch), seconds in least.items() if other == name}
        best = min(by_batch, key=by_batch.__getitem__, default=0)
        record |= {name: round(1 / by_batch[best]), f"{name}_batch": best} if best else {}
    largest = BATCHES[box][-1]
    plain, integers = (1 / min(least[name, batch] for batch in BATCHES[box]) for name in ("fp32", "int8"))
    record["int8_over_fp32"] = round(integers / plain, 2)
    record["int8_over_fp32_largest_batch"] = round(least["fp32", largest] / least["int8", largest], 2)
    return record | {
        "load_average": round(os.getloadavg()[0], 2),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def measure_accuracy(trunk: TrunkKind, work: Path) -> Record:
    """Train a network, and find the views of particles in every precision."""
    folder = prepare("base", work)
    scene, truth = open_scene(folder, ReconstructConfig(particles=folder / "particles.star", output=folder / "none"))
    small = scene.small()
    settings = ViewSettings(small.shift_sigma_px / small.box_px, 0.42, C1)
    encoder = ViewEncoder.build(small.volume, small.particles, settings)
    chosen = NetworkSettings(trunk=trunk)
    seconds, views = timed(lambda: result_of(train_network(encoder, small.particles, chosen, seed=0, number=1)))
    some, sample = (small.particles.rows(torch.arange(*ends)) for ends in ((COUNT,), (COUNT, COUNT + SAMPLE)))
    directions, rotations = truth.rotations[:COUNT, 2], truth.rotations[:COUNT]
    near = nearness(directions, encoder.directions, C1) > math.cos(math.radians(7.5)) ** 2
    record: Record = {
        "part": "accuracy", "trunk": trunk, "steps": chosen.steps, "training_s": round(seconds),
        "parameters": sum(each.numel() for each in views.network.parameters()),
    }  # fmt: skip
    for precision in ("fp32", "bf16", "int8"):
        with_network = encoder.with_network(views.in_precision(precision, sample))
        posterior_s, posterior = timed(lambda each=with_network: each.posterior(some))  # type: ignore[misc]
        recall = near.gather(1, posterior.logits.topk(8).indices).any(1).double().mean()
        angle = rotation_angle_rad(with_network.pose(some).best().rotations, rotations).rad2deg().median()
        record[precision] = [round(float(recall), 4), round(float(angle), 2), round(1e3 * posterior_s / COUNT, 2)]
    given = views.network_input
    images = given.shifted_images(some.ctf_multiplied[:256, : len(given.plane)], torch.zeros(256, 1, dtype=torch.long))
    record["turned_wrong"] = turned_wrong(views.network, quantize_network(views.network, images), images)
    return record


@torch.no_grad()
def turned_wrong(network: ViewNetwork, quantized: ExportedNetwork, images: Tensor) -> int:
    """Integers of the trunk that differ from those of the turned image, moved as the group moves them."""
    levels, layers, *_ = quantized.network.children()
    order = network.group.dim("hidden")
    before, wrong = layers(levels(images)).unflatten(1, (order, -1)), 0
    for g in network.group.elements():
        after = layers(levels(transform_images(images, g))).unflatten(1, (order, -1))
        wrong += int((after[:, network.group.action("hidden", g).argmax(0)] != before).sum())
    return wrong


def report(records: list[Record]) -> None:
    """All records, one a line."""
    for record in records:
        print("  ".join(f"{key} {value}" for key, value in record.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the particles")
    parser.add_argument("--report", action="store_true", help="print what is recorded, measure nothing")
    parser.add_argument("--part", choices=("accuracy", "speed"), help="only this one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records: list[Record] = read_json(RESULTS) if RESULTS.is_file() else []
    cases: list[tuple[Record, Callable[[], Record]]] = []
    for trunk in TRUNKS if arguments.work else ():
        cases.append(({"part": "accuracy", "trunk": trunk}, partial(measure_accuracy, trunk, arguments.work)))
    for trunk, box in SPEED:
        labels: Record = {"part": "speed", "trunk": trunk, "box_px": box}
        cases.append((labels, partial(measure_speed, trunk, box)))
    for labels, measure in () if arguments.report else cases:
        is_wanted = arguments.part in (None, labels["part"])
        if is_wanted and not any(labels.items() <= record.items() for record in records):
            records.append(measure())
            write_json(RESULTS, records)
            report(records[-1:])
    report(records)


if __name__ == "__main__":
    main()
