"""What equivariance buys: one pass of pose encoders over images never seen, by the number of labelled ones they learnt.

    python tests/benchmarks/encoder_study.py                       1WCM, 1,000 and 4,000 images, seeds 0-2
    python tests/benchmarks/encoder_study.py --models 1wcm,6msm,7ez0 --counts 250,1000,4000,16000,64000 --device cuda
    python tests/benchmarks/encoder_study.py --report FIGURE.png   the table of what is recorded, and a figure

Projections of a model at uniform poses, centred, 24 px, SNR 1, each with a CTF of its own: defocus 0.5 to 3 um, U - V
of standard deviation 3,000 Angstrom in any direction. The encoders see the images as they are, not times their CTF.
Every arm takes the same steps on the same images, with the same widths in channels unless its name says otherwise, four
heads and the loss of the hybrid mode. Tested on 1,000 other images: median angle between rotations, and between viewing
directions. Runs are appended to ``encoder_study.json`` beside this file; one that is recorded there is not done again.
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from benchmark_sets import DATA
from jaxtyping import Float
from scipy import stats
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cryoeq.domain.optics import Optics
from cryoeq.equivariance import equivariance_penalty, plane_group
from cryoeq.equivariance.actions import act_on_rotations
from cryoeq.equivariance.groups import permute_pixels
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.io.model import read_atoms
from cryoeq.io.text import read_json, write_json
from cryoeq.models.pose_encoder import EncoderDesign, PoseEncoder
from cryoeq.models.pose_head import PoseProposals
from cryoeq.outputs.figure import COLOURS, png_figure
from cryoeq.physics.ctf import ctf_features, image_transfer
from cryoeq.physics.image_formation import form_images
from cryoeq.physics.projection import prepare_slices
from cryoeq.simulation.density import sample_atoms
from cryoeq.simulation.particles import DefocusRange, draw_ctf, draw_poses
from cryoeq.training.losses import pose_cost

RESULTS = Path(__file__).with_suffix(".json")
BOX, SIDE_ANGSTROM, SNR, HEADS = 24, 251.2, 1.0, 4
STEPS, BATCH, RATE, SHARPNESS, LEAK, TESTED = 200, 64, 3e-3, 2.0, 0.05, 1000
SEEDS = range(3)

Record = dict[str, Any]
DEFAULT = EncoderDesign()


def best_rotations(proposals: PoseProposals) -> Tensor:
    """Rotation of the highest logit, for each image."""
    return proposals.rotations[torch.arange(len(proposals)), proposals.logits.argmax(1)]


def mixture_loss(logits: Tensor, costs: Tensor, concentration: float) -> Tensor:
    """Negative log-density of the known pose under a mixture with one component per hypothesis (Bishop 1994)."""
    return -torch.logsumexp(torch.log_softmax(logits, 1) - concentration * costs, 1).mean()


@dataclass(frozen=True)
class Arm:
    """An encoder, and how it is trained.

    Args:
        group: of the encoder.
        design: kernels and samplers.
        trunk: conv, dense or mobilenet.
        is_augmented: images turned and mirrored by random elements of d4, poses along.
        matched: what the width is chosen for, to have as much of as d4 has: parameters or FLOPs.
    """

    group: str
    design: EncoderDesign = DEFAULT
    trunk: str = "conv"
    is_augmented: bool = False
    matched: str | None = None


ARMS: Mapping[str, Arm] = {
    "c1": Arm("c1"),
    "c1 + augmentation": Arm("c1", is_augmented=True),
    "c1 with d4's parameters": Arm("c1", matched="parameters"),
    "c1 with d4's FLOPs": Arm("c1", matched="FLOPs"),
    "c4": Arm("c4"),
    "d4": Arm("d4"),
    "d8": Arm("d8"),
    "so2 uniform": Arm("so2"),
    "so2 adaptive": Arm("so2", EncoderDesign(sampler="adaptive")),
    "o2": Arm("o2"),
    "d4 implicit": Arm("d4", EncoderDesign(kernel="implicit")),
    "d4 implicit + CTF": Arm("d4", EncoderDesign(kernel="implicit_ctf")),
    "d4 dense": Arm("d4", trunk="dense"),
    "d4 mobilenet": Arm("d4", trunk="mobilenet"),
    "d4 learnt degree": Arm("d4", EncoderDesign(degree="learnt")),
}
SHOWN = (("held_out", "rotation_deg"), ("held_out", "view_deg"), ("learnt", "rotation_deg"))


@dataclass(frozen=True)
class Images:
    """Labelled images."""

    images: Float[Tensor, "count n n"]
    rotations: Float[Tensor, "count 3 3"]
    condition: Float[Tensor, "count 3"]

    def __getitem__(self, rows: Tensor | slice) -> "Images":
        return Images(self.images[rows], self.rotations[rows], self.condition[rows])

    def to(self, device: torch.device) -> "Images":
        return Images(self.images.to(device), self.rotations.to(device), self.condition.to(device))


def draw_images(model: str, count: int, seed: int) -> Images:
    """Images of a model that no other seed gives."""
    pixel = SIDE_ANGSTROM / BOX
    volume = sample_atoms(read_atoms(next((DATA / "models").glob(f"{model}.*"))), BOX, pixel)
    generator = torch.Generator().manual_seed(seed)
    optics = Optics("one", pixel, 300.0, 2.7, 0.1)
    padded, plane = prepare_slices(volume.values.float()), HalfPlane.up_to(BOX, BOX / 2 - 1e-3)
    parts = []
    for start in range(0, count, 4000):
        size = min(4000, count - start)
        poses = draw_poses(size, "uniform", 0.0, generator)
        ctf = draw_ctf(size, optics, DefocusRange(5e3, 3e4, 3e3), generator)
        transfer = image_transfer(ctf, plane.frequencies_per_angstrom(pixel))
        rotations = poses.rotations.float()
        clean = plane.images(form_images(padded, rotations, poses.shifts_angstrom.float(), transfer, plane))
        noise = torch.randn(clean.shape, generator=generator) * clean.std() / math.sqrt(SNR)
        parts.append(Images(clean + noise, rotations, ctf_features(ctf)))
    return Images(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("images", "rotations", "condition"))
    )


def build(arm: Arm, factor: float = 1.0) -> PoseEncoder:
    """The encoder of an arm, its widths multiplied."""
    plain = PoseEncoder(arm.group, BOX, HEADS, trunk=arm.trunk, design=arm.design)
    if factor == 1.0:
        return plain
    widths = plain.architecture["channels"]
    widened = tuple(max(1, round(width * factor)) for width in widths)
    return PoseEncoder(arm.group, BOX, HEADS, widened, trunk=arm.trunk, design=arm.design)


@cache
def cost(arm: Arm, factor: float) -> tuple[int, float]:
    """Parameters, and FLOPs per image of a forward pass, filters expanded once for a batch."""
    encoder = build(arm, factor)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.zeros(BATCH, BOX, BOX))
    return sum(parameter.numel() for parameter in encoder.parameters()), counter.get_total_flops() / BATCH


def factor_of(arm: Arm) -> float:
    """By which the widths of an arm are multiplied."""
    if arm.matched is None:
        return 1.0
    place = ("parameters", "FLOPs").index(arm.matched)
    wanted = cost(ARMS["d4"], 1.0)[place]
    factors = [2 ** (k / 16) for k in range(-48, 49)]
    return min(factors, key=lambda factor: abs(math.log(cost(arm, factor)[place] / wanted)))


def augmented(shown: Images, generator: torch.Generator) -> Images:
    """Images and poses moved by random elements of d4."""
    elements = plane_group("d4").elements()
    which = torch.randint(len(elements), (len(shown.images),), generator=generator)
    images, rotations = shown.images.clone(), shown.rotations.clone()
    for place, g in enumerate(elements):
        rows = (which == place).nonzero().squeeze(1).to(images.device)
        if len(rows):
            # Row 0 and column 0 of an even box, which the encoder does not see, have no mirror image.
            images[rows, 1:, 1:] = permute_pixels(shown.images[rows, 1:, 1:], g)
            rotations[rows] = act_on_rotations(g.to(rotations), shown.rotations[rows])
    return Images(images, rotations, shown.condition)


def batches(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows, each once before any comes again."""
    while True:
        yield from (rows for rows in torch.randperm(count, generator=generator).split(BATCH) if len(rows) == BATCH)


def train_and_test(name: str, model: str, count: int, seed: int, device: torch.device) -> Record:
    """Errors of one encoder on images it has not seen."""
    arm = ARMS[name]
    factor = factor_of(arm)
    learnt, tested = (
        draw_images(model, size, 2 * seed + which).to(device) for which, size in ((0, count), (1, TESTED))
    )
    torch.manual_seed(seed)
    encoder = build(arm, factor).to(device)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.1)
    began = time.process_time()
    for _, rows in zip(range(STEPS), batches(count, generator), strict=False):
        shown = learnt[rows.to(device)]
        shown = augmented(shown, generator) if arm.is_augmented else shown
        proposals = encoder(shown.images, shown.condition)
        costs = pose_cost(proposals, shown.rotations, torch.zeros_like(shown.rotations[:, 0, :2]), 0.0)
        loss = mixture_loss(proposals.logits, costs, SHARPNESS) + LEAK * costs.mean() + equivariance_penalty(encoder)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    trained_s = time.process_time() - began
    encoder.eval()
    errors = {
        side: median_errors(encoder, images) for side, images in (("held_out", tested), ("learnt", learnt[:TESTED]))
    }
    parameters, flops = cost(arm, factor)
    return {
        "arm": name, "model": model, "images": count, "seed": seed, "parameters": parameters,
        "mflop_per_image": round(flops / 1e6, 2), "training_cpu_s": round(trained_s, 1),
        "load_average": round(os.getloadavg()[0], 2), **errors,
    }  # fmt: skip


@torch.no_grad()
def median_errors(encoder: PoseEncoder, tested: Images) -> dict[str, float]:
    """Of the preferred hypothesis, in degrees: of the rotation, and of the viewing direction alone."""
    parts = []
    for start in range(0, len(tested.images), 250):
        part = tested[slice(start, start + 250)]
        parts.append(best_rotations(encoder(part.images, part.condition)))
    found = torch.cat(parts)
    views = (found[:, 2] * tested.rotations[:, 2]).sum(1).clamp(-1, 1).acos()
    rotation = rotation_angle_rad(found, tested.rotations)
    return {"rotation_deg": round(math.degrees(float(rotation.median())), 2),
            "view_deg": round(math.degrees(float(views.median())), 2)}  # fmt: skip


def interval(values: list[float]) -> str:
    """Mean, and half the 95 % interval of Student's t."""
    if len(values) < 2:
        return f"{values[0]:.1f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.1f} ± {half:.1f}"


def report(records: list[Record], picture: Path | None) -> None:
    """A row for each arm, model and number of images."""
    print("| encoder | images | parameters | MFLOP per image | rotation | view | rotation of learnt ones | CPU s |")
    print("|---|---|---|---|---|---|---|---|")
    for model in sorted({record["model"] for record in records}):
        for name in ARMS:
            for count in sorted({record["images"] for record in records}):
                own = [r for r in records if (r["arm"], r["model"], r["images"]) == (name, model, count)]
                if own:
                    errors = [interval([r[side][kind] for r in own]) for side, kind in SHOWN]
                    seconds = statistics.mean(r["training_cpu_s"] for r in own)
                    print(f"| {name} ({model}) | {count:,} | {own[0]['parameters']:,} | {own[0]['mflop_per_image']} | "
                          + "° | ".join(errors) + f"° | {seconds:.0f} |")  # fmt: skip
    if picture is not None:
        draw_picture(picture, records)


def draw_picture(path: Path, records: list[Record]) -> None:
    """Held-out error by arm; a bar for each number of images, a dot for each seed."""
    counts = sorted({record["images"] for record in records})
    names = [name for name in ARMS if any(record["arm"] == name for record in records)]
    with png_figure(path, size_inches=(9.0, 4.5)) as figure:
        axes = figure.subplots()
        for place, count in enumerate(counts):
            for row, name in enumerate(names):
                values = [r["held_out"]["rotation_deg"] for r in records if (r["arm"], r["images"]) == (name, count)]
                if values:
                    height = row + 0.8 * (place + 0.5) / len(counts) - 0.4
                    label = f"{count:,} images" if row == 0 else None
                    axes.barh(height, statistics.mean(values), 0.75 / len(counts), color=COLOURS[place], label=label)
                    axes.plot(values, [height] * len(values), ".", color="black", markersize=4)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("Median rotation error on images never seen (degrees)")
        axes.legend()


def main() -> None:
    def listed(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=listed, default=["1wcm"], help="PDB names among the reference data")
    parser.add_argument("--counts", type=listed, default=["1000", "4000"], help="numbers of training images")
    parser.add_argument("--arms", type=listed, default=list(ARMS), help=f"of {', '.join(ARMS)}")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--report", type=Path, metavar="PNG", help="print what is recorded and draw it, train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records: list[Record] = read_json(RESULTS) if RESULTS.is_file() else []
    done = {(record["arm"], record["model"], record["images"], record["seed"]) for record in records}
    todo = [
        (name, model, int(count), seed)
        for seed in SEEDS for count in arguments.counts for model in arguments.models for name in arguments.arms
    ]  # fmt: skip
    for case in () if arguments.report else todo:
        if case not in done:
            records.append(train_and_test(*case, torch.device(arguments.device)))
            write_json(RESULTS, records)
            print(records[-1], flush=True)
    report(records, arguments.report)


if __name__ == "__main__":
    main()
