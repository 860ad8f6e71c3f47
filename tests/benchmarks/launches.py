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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.events import Progress
from cryoeq.io.particles import read_particles
from cryoeq.pipelines.reconstruct.reconstruct import reconstruct
from cryoeq.reconstruction import normal_equations
from pretended_cuda.machine import MACHINE

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
    """

    launches: int = 0
    with_triton: int = 0
    waits: int = 0
    bytes: int = 0
    bytes_with_triton: int = 0
    events: int = 0
    lines: Counter[str] = field(default_factory=Counter)
    waiting: Counter[str] = field(default_factory=Counter)


@contextmanager
def counted_evaluations() -> Iterator[Counter[str]]:
    """Plain evaluations of local refinement, and their launches, as they come."""
    seen, plain = Counter[str](), normal_equations.plain_normal_equations

    def counting(*arguments: Any) -> normal_equations.NormalEquations:
        before = MACHINE.kernels.total(), MACHINE.bytes.total()
        found = plain(*arguments)
        moved = MACHINE.bytes.total() - before[1] - TRITON_BYTES * arguments[0].precision.numel()
        seen.update(calls=1, launches=MACHINE.kernels.total() - before[0], bytes=moved)
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
            launches = now[0].total() - before[0].total()
            figures.launches += launches
            figures.with_triton += launches - plain + TRITON_LAUNCHES * calls
            figures.waits += now[1].total() - before[1].total()
            figures.bytes += now[2] - before[2]
            figures.bytes_with_triton += now[2] - before[2] - (now[3]["bytes"] - before[3]["bytes"])
            figures.lines.update(now[0] - before[0])
            figures.waiting.update(now[1] - before[1])
            figures.events += isinstance(event, Progress)
            before = now
    return stages


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
    parser.add_argument("--output", type=Path, help="JSON file for all figures, line by line")
    parser.add_argument("--set", dest="options", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    found, counts = [], []
    for star in arguments.stars:
        counts.append(len(read_particles(star).table))
        found.append(counted(star, arguments.work / "run", tuple(arguments.options)))
        sys.stdout.write("\n".join([f"{counts[-1]} particles", *table(found[-1]), ""]))
        sys.stdout.flush()
    if len(found) == 2:
        sys.stdout.write("\n".join([*summary(found, (counts[0], counts[1])), ""]))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, default=vars, indent=1) + "\n")


if __name__ == "__main__":
    main()
