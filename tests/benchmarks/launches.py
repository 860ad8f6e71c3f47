"""Launches, waits and bytes of a search on a pretended GPU, by stage: ``launches.py SMALL.star LARGE.star --work DIR``.

Both stacks are searched with all defaults, once in batches as large as 16 GB allow, from which bytes and waits are
told, and once in batches so small that they repeat: what they have in common is the fixed part, the difference per
particle is the slope, which on a GPU with batches of 2^30 numbers is 512 times smaller. Where a real GPU has one Triton
kernel the plain evaluation of local refinement stands in, of which each counts as the two launches that it is there.

    PRETENDED_CUDA=1 PYTHONPATH=tests python -m pretended_cuda tests/benchmarks/launches.py s240.star s720.star --work d
"""

import argparse
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.events import Progress
from cryoeq.io.particles import read_particles
from cryoeq.pipelines.reconstruct.reconstruct import reconstruct
from cryoeq.reconstruction import normal_equations
from cryoeq.runtime import batching
from pretended_cuda.machine import MACHINE

SMALL_NUMBERS, H200_NUMBERS = 2**21, 2**30  # of a batch: where it repeats in a small stack, and the most on a GPU
MANY = 100_000
WHAT = "launches", "plain", "waits", "bytes"
TRITON_LAUNCHES = 2  # of one evaluation of local refinement


@dataclass
class Figures:
    """What was counted of a stage.

    Args:
        launches: kernels and copies; of a plain evaluation of local refinement as many as Triton's.
        plain: launches of plain evaluations, which are not among them.
        waits: times that the host waited.
        bytes: read and written; those of plain evaluations too.
        events: of progress.
    """

    launches: int = 0
    plain: int = 0
    waits: int = 0
    bytes: int = 0
    events: int = 0
    lines: Counter[str] = field(default_factory=Counter)
    waiting: Counter[str] = field(default_factory=Counter)


@contextmanager
def counted_evaluations() -> Iterator[Counter[str]]:
    """Plain evaluations of local refinement, and their launches, as they come."""
    seen, plain = Counter[str](), normal_equations.plain_normal_equations

    def counting(*arguments: Any) -> normal_equations.NormalEquations:
        before = MACHINE.kernels.total()
        found = plain(*arguments)
        seen.update(calls=1, launches=MACHINE.kernels.total() - before)
        return found

    normal_equations.plain_normal_equations = counting
    try:
        yield seen
    finally:
        normal_equations.plain_normal_equations = plain


def by_line(counts: Counter[tuple[str, str]]) -> Counter[str]:
    found = Counter[str]()
    for (line, _), count in counts.items():
        found[line] += count
    return found


def counted(star: Path, output: Path, options: tuple[str, ...] = ()) -> dict[str, Figures]:
    """Figures of each stage of a search.

    Args:
        star: the particles.
        output: folder of the run.
        options: settings as KEY=VALUE.
    """
    shutil.rmtree(output, ignore_errors=True)
    config = load_config(
        ReconstructConfig,
        overrides=options,
        explicit={"particles": star, "output": output, "device": "cuda", "seed": 100},
    )
    stages: dict[str, Figures] = {}

    def state(evaluations: Counter[str]) -> tuple[Counter[str], Counter[str], int, Counter[str]]:
        return by_line(MACHINE.kernels), by_line(MACHINE.waits), MACHINE.bytes.total(), Counter(evaluations)

    with counted_evaluations() as evaluations:
        before, stage = state(evaluations), "start"
        for event in reconstruct(config):
            now = state(evaluations)
            stage = event.stage if isinstance(event, Progress) else stage
            figures = stages.setdefault(stage, Figures())
            plain = now[3]["launches"] - before[3]["launches"]
            calls = now[3]["calls"] - before[3]["calls"]
            figures.launches += now[0].total() - before[0].total() - plain + TRITON_LAUNCHES * calls
            figures.plain += plain
            figures.waits += now[1].total() - before[1].total()
            figures.bytes += now[2] - before[2]
            figures.lines.update(now[0] - before[0])
            figures.waiting.update(now[1] - before[1])
            figures.events += isinstance(event, Progress)
            before = now
    return stages


def totals(stages: dict[str, Figures]) -> Counter[str]:
    """Sums over all stages."""
    return Counter({what: sum(getattr(one, what) for one in stages.values()) for what in WHAT})


def counted_stack(star: Path, work: Path, options: tuple[str, ...]) -> dict[str, Any]:
    """Number of particles, and figures in batches as large as memory allows and in small ones."""
    large = counted(star, work / "run", options)
    with batches_of(SMALL_NUMBERS):
        small = counted(star, work / "run", options)
    return {"star": str(star), "count": len(read_particles(star).table), "large": large, "small": small}


@contextmanager
def batches_of(numbers: int) -> Iterator[None]:
    """Batches of no more than so many numbers."""
    before = batching._MAX_NUMBERS
    batching._MAX_NUMBERS = numbers
    try:
        yield
    finally:
        batching._MAX_NUMBERS = before


def line_through(few: dict[str, Any], many: dict[str, Any], batches: str, what: str) -> tuple[float, float]:
    """Slope per particle and fixed part."""
    first, second = totals(few[batches])[what], totals(many[batches])[what]
    slope = (second - first) / (many["count"] - few["count"])
    return slope, first - slope * few["count"]


def summary(few: dict[str, Any], many: dict[str, Any]) -> Iterator[str]:
    """What a search of many particles has, from two stacks."""
    for what, batches, scale in (
        ("launches", "small", SMALL_NUMBERS / H200_NUMBERS), ("waits", "large", 1.0), ("bytes", "large", 1.0),
    ):  # fmt: skip
        slope, fixed = line_through(few, many, batches, what)
        of_many = fixed + MANY * slope * scale
        yield f"{what}: {slope * scale:.4g} a particle, {fixed:.5g} fixed, {of_many:.5g} of {MANY:,}"


def table(stages: dict[str, Figures]) -> Iterator[str]:
    """One row for each stage."""
    yield "| stage | events | launches | plain evaluations | waits | GB |"
    yield "|---|---|---|---|---|---|"
    for stage, one in stages.items():
        row = stage, one.events, one.launches, one.plain, one.waits, f"{one.bytes / 1e9:.2f}"
        yield f"| {' | '.join(map(str, row))} |"
    found = totals(stages)
    yield f"| all | | {found['launches']} | {found['plain']} | {found['waits']} | {found['bytes'] / 1e9:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stars", nargs="+", type=Path, help="particles.star, or a small and a large one")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="JSON file for all figures, line by line")
    parser.add_argument("--set", dest="options", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    found = [counted_stack(star, arguments.work, tuple(arguments.options)) for star in arguments.stars]
    for one in found:
        sys.stdout.write("\n".join([f"{one['count']} particles", *table(one["large"]), ""]))
    if len(found) == 2:
        sys.stdout.write("\n".join([*summary(*found), ""]))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, default=asdict, indent=1) + "\n")


if __name__ == "__main__":
    main()
