"""Launches, waits and bytes of a search on a pretended GPU, by stage: ``launches.py SMALL.star LARGE.star --work DIR``.

Both stacks are searched with all defaults, in batches as large as 16 GB allow. Of each stage the slope per particle and
the part that is fixed are told, and the bytes of 100,000 particles, of which no more than 4,000 take part in starts and
joint iterations. Launches and waits grow with iterations and batches, which small stacks have one of: their slope tells
how many iterations more the larger one took. Where a real GPU has one Triton kernel the plain evaluation of local
refinement stands in: figures with either are told.

    PRETENDED_CUDA=1 PYTHONPATH=tests python -m pretended_cuda tests/benchmarks/launches.py s240.star s720.star --work d
"""

import argparse
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Progress
from cryoeq.domain.particles import ParticleBatch
from cryoeq.io.particles import read_particles
from cryoeq.pipelines.reconstruct.reconstruct import reconstruct
from cryoeq.reconstruction import expectation, local_refinement, normal_equations, particle_scale
from cryoeq.runtime import batching
from pretended_cuda.machine import MACHINE

BATCHED: tuple[Any, ...] = (expectation, local_refinement, particle_scale)  # that batch by memory
MOST_NUMBERS = 2**30  # of a batch on a GPU whose memory does not end before
MANY, JOINT = 100_000, 4_000  # particles of a large stack, and those that take part in joint iterations
JOINT_STAGES = {"initial model", "consensus refinement"}
WHAT = "launches", "with_triton", "waits", "bytes", "bytes_with_triton"
TRITON_LAUNCHES, TRITON_BYTES = 2, 172  # of one evaluation of local refinement, of each coefficient at most


@dataclass
class Figures:
    """What was counted of a stage.

    Args:
        launches: kernels and copies.
        with_triton: the same, each plain evaluation of local refinement counted as the two launches of Triton's.
        waits: times that the host waited.
        bytes: read and written.
        bytes_with_triton: the same, with what Triton's kernel moves where no sample of the map is cached.
        events: of progress.
        flops: of matrix products, without evaluations of local refinement.
        coefficients: of images that local refinement evaluates.
        batches: that share the memory of a GPU.
        full_batches: the same, counted as parts of the largest batch that there is where memory does not end.
        images_read: from the files.
    """

    launches: int = 0
    with_triton: int = 0
    waits: int = 0
    bytes: int = 0
    bytes_with_triton: int = 0
    events: int = 0
    flops: int = 0
    coefficients: int = 0
    batches: int = 0
    full_batches: float = 0.0
    images_read: int = 0
    lines: Counter[str] = field(default_factory=Counter)
    waiting: Counter[str] = field(default_factory=Counter)


@contextmanager
def counted_evaluations() -> Iterator[Counter[str]]:
    """Plain evaluations of local refinement, and their launches, as they come."""
    seen, plain = Counter[str](), normal_equations.plain_normal_equations

    def counting(*arguments: Any) -> normal_equations.NormalEquations:
        before = MACHINE.kernels.total(), MACHINE.bytes.total(), MACHINE.flops.total()
        found = plain(*arguments)
        moved = MACHINE.bytes.total() - before[1] - TRITON_BYTES * arguments[0].precision.numel()
        coefficients, flops = arguments[0].precision.numel(), MACHINE.flops.total() - before[2]
        seen.update(
            calls=1, launches=MACHINE.kernels.total() - before[0], bytes=moved, flops=flops, coefficients=coefficients
        )
        return found

    normal_equations.plain_normal_equations = counting
    try:
        yield seen
    finally:
        normal_equations.plain_normal_equations = plain


@contextmanager
def counted_batches(numbers: int | None) -> Iterator[Counter[str]]:
    """Batches and images read, as they come; batches of a number of elements where that is given."""
    seen, stored = Counter[str](), ParticleDataset.stored
    saved = [(module, module.in_parallel, module.numbers_at_a_time) for module in BATCHED]

    def in_parallel(function: Callable[[Tensor], Any], batches: tuple[Tensor, ...]) -> Iterator[Any]:
        size = max(map(len, batches), default=1) * MOST_NUMBERS / (numbers or MOST_NUMBERS)
        seen.update(batches=len(batches), full_batches=sum(map(len, batches)) / size)  # type: ignore[arg-type]
        return batching.in_parallel(function, batches)

    def reading(dataset: ParticleDataset, rows: Tensor) -> ParticleBatch:
        seen.update(images_read=len(rows))
        return stored(dataset, rows)

    ParticleDataset.stored = reading
    for module in BATCHED:
        module.in_parallel = in_parallel
        if numbers is not None:
            module.numbers_at_a_time = lambda *_: numbers
    try:
        yield seen
    finally:
        ParticleDataset.stored = stored
        for module, parallel, at_a_time in saved:
            module.in_parallel, module.numbers_at_a_time = parallel, at_a_time


def by_line(counts: Counter[tuple[str, str]]) -> Counter[str]:
    found = Counter[str]()
    for (line, _), count in counts.items():
        found[line] += count
    return found


def counted(star: Path, output: Path, options: tuple[str, ...] = (), numbers: int | None = None) -> dict[str, Figures]:
    """Figures of each stage of a search.

    Args:
        star: the particles.
        output: folder of the run.
        options: settings as KEY=VALUE.
        numbers: tensor elements that a batch may have; None as many as there is memory for.
    """
    shutil.rmtree(output, ignore_errors=True)
    config = load_config(
        ReconstructConfig,
        overrides=options,
        explicit={"particles": star, "output": output, "device": "cuda", "seed": 100},
    )
    stages: dict[str, Figures] = {}
    with counted_evaluations() as evaluations, counted_batches(numbers) as batches:

        def state() -> tuple[Counter[str], Counter[str], Counter[str]]:
            sums = Counter(bytes=MACHINE.bytes.total(), flops=MACHINE.flops.total(), **batches)
            sums.update({f"plain {name}": count for name, count in evaluations.items()})
            return by_line(MACHINE.kernels), by_line(MACHINE.waits), sums

        before, stage = state(), "start"
        for event in reconstruct(config):
            now = state()
            stage = event.stage if isinstance(event, Progress) else stage
            add(stages.setdefault(stage, Figures()), now[0] - before[0], now[1] - before[1], now[2] - before[2])
            stages[stage].events += isinstance(event, Progress)
            before = now
    return stages


def add(figures: Figures, kernels: Counter[str], waits: Counter[str], sums: Counter[str]) -> None:
    """Count what was seen between two events.

    Args:
        figures: what it is added to.
        kernels: of each line.
        waits: of each line.
        sums: all that has no line.
    """
    launches = kernels.total()
    figures.launches += launches
    figures.with_triton += launches - sums["plain launches"] + TRITON_LAUNCHES * sums["plain calls"]
    figures.waits += waits.total()
    figures.bytes += sums["bytes"]
    figures.bytes_with_triton += sums["bytes"] - sums["plain bytes"]
    figures.flops += sums["flops"] - sums["plain flops"]
    figures.coefficients += sums["plain coefficients"]
    figures.batches += sums["batches"]
    figures.full_batches += sums["full_batches"]
    figures.images_read += sums["images_read"]
    figures.lines.update(kernels)
    figures.waiting.update(waits)


def line_through(few: Figures, many: Figures, what: str, counts: tuple[int, int]) -> tuple[float, float]:
    """Slope per particle and fixed part of a stage."""
    slope = (getattr(many, what) - getattr(few, what)) / (counts[1] - counts[0])
    return slope, getattr(few, what) - slope * counts[0]


def summary(stages: list[dict[str, Figures]], counts: tuple[int, int]) -> Iterator[str]:
    """Slope and fixed part of each stage, and bytes of many particles."""
    yield f"| stage | {' | '.join(f'{what} a particle, fixed' for what in WHAT)} | bytes of {MANY:,} |"
    yield "|---|" + "---|" * (len(WHAT) + 1)
    many = 0.0
    for stage in stages[1]:
        lines = [line_through(stages[0].get(stage, Figures()), stages[1][stage], what, counts) for what in WHAT]
        slope, fixed = lines[WHAT.index("bytes")]
        of_many = fixed + slope * (JOINT if stage in JOINT_STAGES else MANY)
        many += of_many
        yield f"| {stage} | {' | '.join(f'{one:.4g}, {other:.5g}' for one, other in lines)} | {of_many:.4g} |"
    yield f"| all |{' |' * len(WHAT)} {many:.4g} |"


def table(stages: dict[str, Figures]) -> Iterator[str]:
    """One row for each stage."""
    yield "| stage | events | launches | with Triton | waits | GB | with Triton |"
    yield "|---|---|---|---|---|---|---|"
    rows = [(stage, one.events, *(getattr(one, what) for what in WHAT)) for stage, one in stages.items()]
    for *row, size, less in [*rows, ("all", "", *(sum(row[2 + place] for row in rows) for place in range(len(WHAT))))]:
        yield f"| {' | '.join(map(str, row))} | {size / 1e9:.2f} | {less / 1e9:.2f} |"


def main() -> None:
    """Count, and print what was counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stars", nargs="+", type=Path, help="particles.star, or a small and a large one")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--numbers", type=int, help="tensor elements of a batch [as many as there is memory for]")
    parser.add_argument("--output", type=Path, help="JSON file for all figures, line by line")
    parser.add_argument("--set", dest="options", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    found, counts = [], []
    for star in arguments.stars:
        counts.append(len(read_particles(star).table))
        found.append(counted(star, arguments.work / "run", tuple(arguments.options), arguments.numbers))
        sys.stdout.write("\n".join([f"{counts[-1]} particles", *table(found[-1]), ""]))
        sys.stdout.flush()
    if len(found) == 2:
        sys.stdout.write("\n".join([*summary(found, (counts[0], counts[1])), ""]))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, default=vars, indent=1) + "\n")


if __name__ == "__main__":
    main()
