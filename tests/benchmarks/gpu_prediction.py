"""What a search would take on a GPU: counted on a pretended one, and carried over by a model. Nothing is measured.

    python tests/benchmarks/gpu_prediction.py --work DIR       counts; recorded beside this file, an hour on one core
    python tests/benchmarks/gpu_prediction.py --report         the tables of what is recorded, in ``gpu.md`` too

Launches L, bytes B and FLOPs F of each stage are counted (``launches.py``) for n0 particles in whole batches, for n0
in small ones, and for n1 in whole ones. With N batches in all, and N_full(n) of them for n particles where a batch has
2^30 tensor elements, or the part of them that a card has memory for::

    L(n) = L(n0) + (n - n0) (L(n1) - L(n0)) / (n1 - n0) + N_full(n) (L(n0, small) - L(n0)) / (N(n0, small) - N(n0))
    B(n), F(n) linear in n; of initial models and consensus refinement in min(n, 4,000), which these take
    seconds   = max(L x launch, B / bandwidth + F / rate) for each stage

Normal equations of local refinement are one Triton kernel: 330 FLOPs and up to 172 bytes a coefficient
(``local_refinement.md``). K classes: K times L's part by batches, B and F of all stages that score views. G GPUs: B, F
and N over G; their messages (8 MB an iteration) take less than 0.1 s in all. Reading: images read times the time of one
reader, measured here, over the readers, beside the copy of the pixels at 25 GB/s.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from recorded_runs import CRYOEQ

from cryoeq.data.dataset import ParticleDataset
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.io.particles import read_particles
from cryoeq.io.text import read_json, write_json
from cryoeq.reconstruction.particle_transforms import POWER_ORDERS, power_radii

Figures = dict[str, float]  # counted, by name
MOST_NUMBERS = 2**30  # tensor elements of a batch on a GPU whose memory does not end before
RESULTS = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).with_name("gpu.md")
MODEL = Path(__file__).parents[2] / "data_samples" / "1wcm_ca.pdb.gz"
FEW, MANY = {64: 240, 128: 240}, {64: 720, 128: 480}
SMALL_BATCH = {64: 2**21, 128: 2**22}
ONCE = {"initial model", "consensus refinement"}  # of this number of particles at most:
MOST_IN_CONSENSUS = 4000
OF_ONE_CLASS = {"reading", "reconstructing", "looking for junk", "local refinement", "full-box refinement"}
FUSED_FLOPS = 330
LAUNCH_S = 8e-6
COPY_BYTES_S = 25e9
HOST_FIXED_S, HOST_S_PER_PARTICLE = 15.0, 4e-5  # start, pictures, report; tables read, written and kept


@dataclass(frozen=True)
class Card:
    """What a card reaches, not its peak.

    Args:
        name: of the card.
        bytes_s: of memory.
        flop_s: of float32 products.
        memory_bytes: its memory.
        readers: threads that read for it.
    """

    name: str
    bytes_s: float
    flop_s: float
    memory_bytes: float
    readers: int


H200 = Card("H200", 0.8 * 4.8e12, 0.6 * 67e12, 141e9, 8)
SMALL_CARD = Card("24 GB card", 0.8 * 1.0e12, 0.6 * 82e12, 24e9, 8)


def main() -> None:
    """Count what is not recorded, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for particles and runs")
    parser.add_argument("--report", action="store_true", help="only the tables of what is recorded")
    given = parser.parse_args()
    records: dict[str, Any] = read_json(RESULTS) if RESULTS.is_file() else {}
    if not given.report:
        for box in (64, 128):
            _count(given.work, box, records)
    sys.stdout.write(tables(records))


def _count(work: Path, box: int, records: dict[str, Any]) -> None:
    """The three counts of a box, and the time of a reader."""
    folder = work / f"particles_{box}"
    if not (folder / "particles.star").is_file():
        options = ["--box", str(box), "-n", str(MANY[box]), "--snr", "0.5", "--shift-sigma", "5", "--seed", "100"]
        subprocess.run([CRYOEQ, "simulate", str(MODEL), "-o", str(folder), *options], check=True)
    few = _first(folder, FEW[box])
    cases = {
        "few": (few, MOST_NUMBERS), "few, small batches": (few, SMALL_BATCH[box]),
        "many": (folder / "particles.star", MOST_NUMBERS),
    }  # fmt: skip
    for name, (star, numbers) in cases.items():
        if f"{box}, {name}" not in records:
            records[f"{box}, {name}"] = _counted(star, work / f"run_{box}_{name.replace(', ', '_')}", numbers)
            write_json(RESULTS, records)
    if f"{box}, reader" not in records:
        records[f"{box}, reader"] = _reader_s(folder / "particles.star")
        write_json(RESULTS, records)


def _first(folder: Path, count: int) -> Path:
    """A star file of the first particles."""
    lines = (folder / "particles.star").read_text().splitlines()
    rows = [number for number, line in enumerate(lines) if "@" in line]
    path = folder / f"first_{count}.star"
    path.write_text("\n".join([*lines[: rows[0]], *(lines[row] for row in rows[:count])]) + "\n")
    return path


def _counted(star: Path, run: Path, numbers: int) -> dict[str, Figures]:
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    output = run.with_suffix(".json")
    command = [sys.executable, "-m", "pretended_cuda", str(here / "launches.py"), str(star), "--work", str(run)]
    command += ["--numbers", str(numbers), "--set", "input.shift_sigma_angstrom=5", "--output", str(output)]
    environment = os.environ | {"PRETENDED_CUDA": "1", "PYTHONPATH": path}
    subprocess.run(command, check=True, stdout=sys.stderr, env=environment)
    (stages,) = read_json(output)
    return {
        name: {figure: count for figure, count in figures.items() if isinstance(count, int | float) and count}
        for name, figures in stages.items()
    }


def _reader_s(star: Path) -> float:
    """CPU seconds in which one thread reads an image for a GPU: the least of five."""
    stack = read_particles(star, with_poses=False)
    dataset = ParticleDataset.open(stack, cache_bytes=0)
    rows, least = torch.arange(len(dataset)), float("inf")
    for _ in range(5):
        before = time.process_time()
        dataset.stored(rows)
        least = min(least, (time.process_time() - before) / len(rows))
    return least


@dataclass(frozen=True)
class Stage:
    """A stage of a search of some particles on some card: launches, bytes and FLOPs, of each GPU.

    Args:
        launches: kernels launched.
        bytes: read and written, not counting caches.
        flops: of matrix products and normal equations.
        images_read: from the files.
    """

    launches: float
    bytes: float
    flops: float
    images_read: float

    def device_s(self, card: Card) -> float:
        """Seconds in which a card moves the bytes and computes."""
        return self.bytes / card.bytes_s + self.flops / card.flop_s

    def seconds(self, card: Card, read_s: float, box: int) -> float:
        """Seconds of the stage: the longest of launching, computing, reading and copying.

        Args:
            card: the card.
            read_s: of an image by one thread.
            box: side of the images.
        """
        reading = self.images_read * max(read_s / card.readers, 4 * box**2 / COPY_BYTES_S)
        return max(self.launches * LAUNCH_S, self.device_s(card), reading)

    def bound(self, card: Card, read_s: float, box: int) -> str:
        """What the stage waits for."""
        if self.seconds(card, read_s, box) > max(self.launches * LAUNCH_S, self.device_s(card)):
            return "reading"
        if self.launches * LAUNCH_S > self.device_s(card):
            return "launches"
        return "bytes" if self.bytes / card.bytes_s > self.flops / card.flop_s else "FLOPs"


def stages(
    records: dict[str, Any], box: int, n: int, card: Card, *, classes: int = 1, gpus: int = 1
) -> dict[str, Stage]:
    """The stages of a search, predicted.

    Args:
        records: what was counted.
        box: side of the images in pixels.
        n: number of particles.
        card: the card, by whose memory batches end.
        classes: number of classes.
        gpus: cards that share the work.
    """
    few, small, many = (records[f"{box}, {name}"] for name in ("few", "few, small batches", "many"))
    share = min(1.0, 0.8 * card.memory_bytes / 32 / MOST_NUMBERS)  # of the largest batch, by memory
    return {
        name: _stage(name, few[name], small.get(name, {}), many.get(name, {}), box, n, share, classes, gpus)
        for name in few
        if few[name]
    }


def _stage(
    name: str, few: Figures, small: Figures, many: Figures, box: int, n: int, share: float, classes: int, gpus: int
) -> Stage:
    n0, n1 = FEW[box], MANY[box]
    count = min(n, MOST_IN_CONSENSUS) if name in ONCE else n
    times = 1 if name in OF_ONE_CLASS else classes

    def at(figures: Figures, key: str) -> float:
        return figures.get(key, 0.0)

    def linear(key: str) -> float:
        slope = max(0.0, (at(many, key) - at(few, key)) / (n1 - n0))
        return (at(few, key) + slope * (count - n0)) / gpus * times

    more = at(small, "batches") - at(few, "batches")
    per_batch = max(0.0, (at(small, "with_triton") - at(few, "with_triton")) / more) if more > 0 else 0.0
    full = at(small, "full_batches") * count / n0 / share / gpus * times
    slope = max(0.0, (at(many, "with_triton") - at(few, "with_triton")) / (n1 - n0))
    return Stage(
        at(few, "with_triton") + slope * (count - n0) + per_batch * full,
        linear("bytes_with_triton"),
        linear("flops") + FUSED_FLOPS * linear("coefficients"),
        at(few, "images_read") / n0 * n / gpus,
    )


def particle_bytes(box: int) -> int:
    """Memory that a particle's transform takes at a box, for as long as it is searched or refined."""
    plane = HalfPlane.up_to(box, box / 2 - 1)
    return 12 * len(plane) + 8 * POWER_ORDERS * len(power_radii(plane.last_radius))


def total_s(records: dict[str, Any], box: int, n: int, card: Card, classes: int, gpus: int) -> float | None:
    """Seconds from files to poses and maps; None where the particles do not fit.

    Args:
        records: what was counted.
        box: side of the images in pixels.
        n: number of particles.
        card: the card.
        classes: number of classes.
        gpus: cards that share the work; each keeps all particles.
    """
    if n * particle_bytes(box) > 0.8 * card.memory_bytes:
        return None
    found = stages(records, box, n, card, classes=classes, gpus=gpus)
    read_s = records[f"{box}, reader"]
    return HOST_FIXED_S + HOST_S_PER_PARTICLE * n + sum(stage.seconds(card, read_s, box) for stage in found.values())


def tables(records: dict[str, Any]) -> str:
    """The tables of the page."""
    lines = []
    for box in (64, 128):
        lines += [
            f"100,000 particles of {box} px, one class, one GPU:", "",
            "| stage | launches | TB | TFLOP | H200: launches, device, stage s | bound by "
            "| 24 GB card: device, stage s | bound by | measured |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]  # fmt: skip
        read_s = records[f"{box}, reader"]
        large, little = (stages(records, box, 100_000, card) for card in (H200, SMALL_CARD))
        for name, stage in large.items():
            other = little[name]
            lines.append(
                f"| {name} | {stage.launches:,.0f} | {stage.bytes / 1e12:.2f} | {stage.flops / 1e12:.1f} "
                f"| {stage.launches * LAUNCH_S:.1f}, {stage.device_s(H200):.1f}, "
                f"{stage.seconds(H200, read_s, box):.1f} "
                f"| {stage.bound(H200, read_s, box)} "
                f"| {other.device_s(SMALL_CARD):.1f}, {other.seconds(SMALL_CARD, read_s, box):.1f} "
                f"| {other.bound(SMALL_CARD, read_s, box)} | – |"
            )
        seconds = {card: sum(s.seconds(card, read_s, box) for s in found.values())
                   for card, found in ((H200, large), (SMALL_CARD, little))}  # fmt: skip
        host = HOST_FIXED_S + HOST_S_PER_PARTICLE * 100_000
        launches = sum(stage.launches for stage in large.values())
        lines += [
            f"| in all, with {host:.0f} s of the host | {launches:,.0f} "
            f"| {sum(stage.bytes for stage in large.values()) / 1e12:.2f} "
            f"| {sum(stage.flops for stage in large.values()) / 1e12:.1f} | {seconds[H200] + host:.0f} | "
            f"| {seconds[SMALL_CARD] + host:.0f} | | – |",
            "",
        ]
    lines += [
        "Seconds from files to poses and maps; –: the transforms of all particles do not fit.", "",
        "| particles | box px | classes | H200 | 8 H200 | 24 GB card | 8 of them | measured |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for n in (100_000, 1_000_000):
        for box in (64, 128):
            for classes in (1, 4):
                found = [
                    total_s(records, box, n, card, classes, gpus) for card in (H200, SMALL_CARD) for gpus in (1, 8)
                ]
                figures = " | ".join("–" if one is None else f"{one:,.0f}" for one in found)
                lines.append(f"| {n:,} | {box} | {classes} | {figures} | – |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
