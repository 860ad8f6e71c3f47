"""A million particles over thousands of stacks: ``python tests/benchmarks/million.py --work DIR``.

Makes a star file of 1,000,000 rows over 2,000 stacks of noise (4 GB), then measures, each in a process of its own with
its peak memory: the table written and read, the particles opened, the time to the first training step, and images read
in the order of the files, in the order of a training, and at random, beside plain reads of the same files. starfile and
gemmi write and read a smaller table beside cryoeq.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

BOX_PX, ANGPIX = 32, 6.0
_BATCH = 256
_READ = 200_000  # images that are read to measure the rate; as many at random would take minutes
_BLOCK = 2**23
Figures = dict[str, float]


def make_stacks(folder: Path, stacks: int, images: int) -> None:
    """Stacks of the same noise."""
    from cryoeq.io.mrc_header import ValueStatistics, build_header

    header = build_header((images, BOX_PX, BOX_PX), ANGPIX, ValueStatistics(0, 0, 0, 0), is_stack=True, label="")
    noise = np.random.default_rng(0).standard_normal((images, BOX_PX, BOX_PX), dtype=np.float32).tobytes()
    for number in range(stacks):
        path = folder / "Extract" / "job012" / f"micrograph_{number:05d}.mrcs"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(header + noise)


def make_table(rows: int, stacks: int) -> object:
    """Twenty columns, as RELION's Extract and Refine3D leave them."""
    from cryoeq.io.star import StarTable, decimals, text_column

    random, per_stack = np.random.default_rng(0), -(-rows // stacks)
    number, stack = np.arange(rows) % per_stack + 1, np.arange(rows) // per_stack
    pairs = list(zip(number.tolist(), stack.tolist(), strict=True))
    particles = {
        "rlnImageName": text_column([f"{i:06d}@Extract/job012/micrograph_{s:05d}.mrcs" for i, s in pairs]),
        "rlnMicrographName": text_column([f"MotionCorr/job002/Movies/micrograph_{s:05d}.mrc" for _, s in pairs]),
        "rlnOpticsGroup": np.full(rows, "1"),
    }
    uniform = (
        "CoordinateX", "CoordinateY", "DefocusU", "DefocusV", "DefocusAngle", "PhaseShift", "CtfMaxResolution",
        "CtfFigureOfMerit", "AngleRot", "AngleTilt", "AnglePsi", "OriginXAngst", "OriginYAngst", "NormCorrection",
        "LogLikeliContribution", "MaxValueProbDistribution",
    )  # fmt: skip
    particles |= {f"rln{name}": decimals(random.uniform(0, 180, rows)) for name in uniform}
    particles["rlnRandomSubset"] = np.where(np.arange(rows) % 2, "1", "2")
    numbers = {
        "Voltage": 300.0, "SphericalAberration": 2.7, "AmplitudeContrast": 0.1, "ImagePixelSize": ANGPIX,
    }  # fmt: skip
    optics = {"rlnOpticsGroup": np.array(["1"]), "rlnOpticsGroupName": np.array(["opticsGroup1"])}
    optics |= {f"rln{name}": decimals(np.array([value])) for name, value in numbers.items()}
    optics |= {"rlnImageSize": np.array([str(BOX_PX)]), "rlnImageDimensionality": np.array(["2"])}
    return StarTable(optics, particles)


def _timed(work: Callable[[], object]) -> tuple[Figures, object]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return {
        "wall_s": round(time.perf_counter() - wall, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }, result


def write_own(work: Path, rows: int, stacks: int) -> Figures:
    """The table written; its making is not counted."""
    from cryoeq.io.star import write_star

    table = make_table(rows, stacks)
    return _timed(lambda: write_star(work / f"{rows}.star", table))[0]


def read_own(work: Path, rows: int, _: int) -> Figures:
    """The table read."""
    from cryoeq.io.star import read_star

    return _timed(lambda: read_star(work / f"{rows}.star"))[0]


def rewrite(work: Path, rows: int, _: int) -> Figures:
    """Particles opened (table, CTF, poses, headers of all stacks), and written with other poses."""
    from cryoeq.io.particles import read_particles, write_particle_star

    opened, stack = _timed(lambda: read_particles(work / f"{rows}.star", with_poses=True))
    poses = replace(stack.table.poses, shifts_angstrom=stack.table.poses.shifts_angstrom + 1)
    written, _ = _timed(
        lambda: write_particle_star(work / "posed.star", stack.star, poses, half_set=stack.table.half_set)
    )
    return {f"opened_{name}": value for name, value in opened.items()} | written


def first_step(work: Path, rows: int, _: int) -> Figures:
    """From the start of the program to the first step of an amortized training."""
    from cryoeq.config.reconstruct import ReconstructConfig
    from cryoeq.domain.events import Progress
    from cryoeq.pipelines.reconstruct.reconstruct import reconstruct

    settings = {
        "particles": work / f"{rows}.star", "output": work / "run", "pose_inference": "amortized", "device": "cpu",
        "input": {"working_box_px": 16, "contrast": "keep"}, "training": {"epochs": 1},
    }  # fmt: skip

    def work_until_step() -> None:
        for event in reconstruct(ReconstructConfig.model_validate(settings)):
            if isinstance(event, Progress) and event.stage == "training":
                return

    return _timed(work_until_step)[0]


def reading(work: Path, rows: int, _: int) -> Figures:
    """Images read and preprocessed in three orders, beside plain reads of the same files; MB of pixels a second."""
    from cryoeq.data.dataset import ParticleDataset
    from cryoeq.io.particles import read_particles

    stack = read_particles(work / f"{rows}.star", ignore_ctf=True)
    dataset = ParticleDataset.open(stack, sign=1, cache_bytes=0)
    shuffled = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    orders = {
        "in_order": torch.arange(rows),
        "by_neighbours": dataset.locality_order(shuffled),
        "at_random": shuffled[: _READ // 10],
    }
    figures: Figures = {}
    for name, order in orders.items():
        chosen = order[:_READ]
        cost, _ = _timed(lambda chosen=chosen: [None for _ in dataset.batches_of(chosen.split(_BATCH))])
        figures[f"{name}_mb_per_s"] = round(len(chosen) * BOX_PX**2 * 4 / 1e6 / cost["wall_s"], 1)
        figures[f"{name}_mb_per_cpu_s"] = round(len(chosen) * BOX_PX**2 * 4 / 1e6 / cost["cpu_s"], 1)
    paths = stack.table.stack_paths[: -(-_READ * len(stack.table.stack_paths) // rows)]
    size = sum(path.stat().st_size for path in paths)
    cost, _ = _timed(lambda: [_read_plainly(path) for path in paths])
    plain = {"plain_mb_per_s": round(size / 1e6 / max(cost["wall_s"], 0.01), 1)}
    return figures | plain | {"plain_mb_per_cpu_s": round(size / 1e6 / max(cost["cpu_s"], 0.01), 1)}


def _read_plainly(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(_BLOCK):
            pass


def read_gemmi(work: Path, rows: int, _: int) -> Figures:
    """The table read by gemmi, its columns as Python lists."""
    import gemmi

    def read() -> object:
        block = gemmi.cif.read(str(work / f"{rows}.star"))["particles"]
        return [list(block.find_loop(tag)) for tag in block[0].loop.tags]

    return _timed(read)[0]


def write_gemmi(work: Path, rows: int, stacks: int) -> Figures:
    """The table written by gemmi from lists."""
    import gemmi

    table = make_table(rows, stacks)
    columns = [column.tolist() for column in table.particles.values()]

    def write() -> None:
        document = gemmi.cif.Document()
        loop = document.add_new_block("particles").init_loop("_", list(table.particles))
        loop.set_all_values(columns)
        document.write_file(str(work / "gemmi.star"))

    return _timed(write)[0]


def read_starfile(work: Path, rows: int, _: int) -> Figures:
    """The table read by starfile."""
    import starfile

    return _timed(lambda: starfile.read(work / f"{rows}.star", always_dict=True))[0]


def write_starfile(work: Path, rows: int, _: int) -> Figures:
    """The table written by starfile, as it had read it."""
    import starfile

    blocks = starfile.read(work / f"{rows}.star", always_dict=True)
    return _timed(lambda: starfile.write(blocks, work / "starfile.star"))[0]


OURS = (write_own, read_own, rewrite, first_step, reading)
BESIDE = (write_own, read_own, write_gemmi, read_gemmi, write_starfile, read_starfile)


def main() -> None:
    """All steps, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="empty folder; 4.5 GB are written")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--stacks", type=int, default=2_000)
    parser.add_argument("--rows-beside", type=int, default=100_000, help="of the table for gemmi and starfile")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--step", help="this one alone, its figures on standard output")
    asked = parser.parse_args()
    if asked.step:
        print(json.dumps(globals()[asked.step](asked.work, asked.rows, asked.stacks)))
        return
    make_stacks(asked.work, asked.stacks, -(-asked.rows // asked.stacks))
    results: dict[str, object] = {
        "date": datetime.now(UTC).isoformat(timespec="minutes"), "python": platform.python_version(),
        "numpy": np.__version__, "torch": torch.__version__, "cores": os.cpu_count(), "rows": asked.rows,
        "stacks": asked.stacks, "rows_beside": asked.rows_beside,
    }  # fmt: skip
    for rows, steps in ((asked.rows, OURS), (asked.rows_beside, BESIDE)):
        for step in steps:
            options = ["--work", asked.work, "--rows", rows, "--stacks", asked.stacks, "--step", step.__name__]
            command = [sys.executable, __file__, *map(str, options)]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            figures = json.loads(said.splitlines()[-1]) | {"load": round(os.getloadavg()[0], 1)}
            results |= {f"{step.__name__}, {rows:,} rows": figures}
            print(step.__name__, rows, figures, flush=True)
            asked.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
