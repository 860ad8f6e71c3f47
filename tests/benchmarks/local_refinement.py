"""What local refinement costs and how well it ends: one core, simulated particles, the true map.

    OMP_NUM_THREADS=1 python tests/benchmarks/local_refinement.py --work DIR
    OMP_NUM_THREADS=1 python tests/benchmarks/local_refinement.py --work DIR --boxes 64 --counts 400 --seeds 3,4 --far

Particles of 1WCM (SNR 0.1, shifts of 5 % of the box), all coefficients below Nyquist. Starts are the true poses turned
about each axis by a normal angle of 120 degrees over the box, that is two samples of the last shell, and moved by
0.4 px; ``--far``: by 300 degrees over the box and 1 px. Times are CPU seconds of one thread, the least of some repeats,
after a first call, which may compile. Beside them stand the bytes of the map and the image that an evaluation asks for
and its operations, counted in the compiled kernel, as shares of what a copy and a matrix product of this machine reach
in the same run. The first evaluation includes the copy of the images; the next is what one step more costs. Errors are
right if their median is 0.89 of the standard deviation.
"""

import argparse
import math
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from ab_initio import listed, markdown_table
from benchmark_sets import Simulated, prepare
from pose_ways import SMALL_PX, Scene, open_scene, refine_to_end, timed
from throughput import Ceiling, Settings, measure_ceiling

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.so3 import rotation_angle_rad, rotation_from_vector
from cryoeq.io.text import write_text
from cryoeq.reconstruction.local_refinement import RefinedPoses, refine_poses
from cryoeq.reconstruction.reference import Reference

BOXES_PX, COUNTS = (32, 64, 128, 256), (1000, 400, 200, 40)
REPEATS = 3
# Of one coefficient in one evaluation of the compiled kernel: 20 complex samples, the image and its precision;
# position, interpolation and its slopes, gradient in the frame of the image, phases, and the 21 sums.
BYTES, OPERATIONS = 20 * 8 + 8 + 4, 25 + 120 + 40 + 16 + 70
COSTS = [
    "box px", "coefficients", "map, once, s", "ms a particle", "ms, all radii", "ns a coefficient, first evaluation",
    "next evaluation", "MB asked for an evaluation", "of the bandwidth", "of the FLOPs",
]  # fmt: skip
ERRORS = [
    "box px", "seed", "start, median", "rotation error: median, mean", "shift error, px", "log-likelihood",
    "sigma, median", "error over sigma, median",
]  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A set, what one refinement of it cost, and where it ended.

    Args:
        box_px: side of the images.
        points: coefficients of an image.
        prepared_s: CPU seconds for the map.
        particle_s: CPU seconds per particle, all steps.
        first_s: of the first evaluation.
        next_s: of one evaluation more.
        all_radii_s: from shell 15 to the last, as ``crossing.py`` counts it; 0 where that is the last.
        refined: the poses.
        truth: the right ones.
        start_deg: median error of the starts.
    """

    box_px: int
    points: int
    prepared_s: float
    particle_s: float
    first_s: float
    next_s: float
    all_radii_s: float
    refined: RefinedPoses
    truth: PoseSet
    start_deg: float


def moved(truth: PoseSet, turn_deg: float, distance_px: float) -> PoseSet:
    """Poses off by normal angles about each axis, and normal distances."""
    generator, count = torch.Generator().manual_seed(1), len(truth.rotations)
    turns = torch.randn(count, 3, generator=generator) * math.radians(turn_deg)
    moves = distance_px * torch.randn(count, 2, generator=generator)
    rotations = rotation_from_vector(turns) @ truth.rotations
    return replace(truth, rotations=rotations, shifts_px=truth.shifts_px + moves)


def least(run: Callable[[], object]) -> float:
    """CPU seconds of the fastest of some repeats."""
    return min(timed(run)[0] for _ in range(REPEATS))


def measure(scene: Scene, truth: PoseSet, *, is_far: bool) -> Found:
    """One set.

    Args:
        scene: images and the true map.
        truth: their poses.
        is_far: start farther away.
    """
    n, count = scene.box_px, len(scene.particles)
    particles = scene.particles.within(n // 2 - 1, n)
    prepared_s, reference = timed(lambda: Reference.prepare(scene.volume, scene.particles))
    start = moved(truth, (300 if is_far else 120) / n, 1.0 if is_far else 0.4)
    refine = partial(refine_poses, particles, reference, shift_sigma_px=scene.shift_sigma_px)
    few = torch.arange(min(2, count))
    compiled_s, _ = timed(lambda: refine(start.rows(few), rows=few))
    refined = refine(start)
    first_s, second_s = (least(partial(refine, start, steps=steps)) / count for steps in (0, 1))
    angles = torch.rad2deg(rotation_angle_rad(start.rotations, truth.rotations))
    small = {"start": moved(truth.in_box(SMALL_PX), 120 / SMALL_PX, 0.4)}
    all_radii = refine_to_end(scene, small)[0].image_s if n > SMALL_PX else 0.0
    return Found(
        n,
        len(particles.plane),
        prepared_s + compiled_s,
        least(lambda: refine(start)) / count,
        first_s,
        second_s - first_s,
        all_radii,
        refined,
        truth,
        float(angles.median()),
    )


def cost_row(found: Found, ceiling: Ceiling) -> list[str]:
    """Cells of what a set cost."""
    evaluation_s = found.next_s / found.points
    return [
        str(found.box_px),
        f"{found.points:,}",
        f"{found.prepared_s:.1f}",
        f"{1e3 * found.particle_s:.2f}",
        f"{1e3 * found.all_radii_s:.2f}" if found.all_radii_s else "–",
        f"{1e9 * found.first_s / found.points:.0f}",
        f"{1e9 * evaluation_s:.0f}",
        f"{BYTES * found.points / 1e6:.2f}",
        f"{BYTES / evaluation_s / ceiling.bytes_per_s:.2f}",
        f"{OPERATIONS / evaluation_s / ceiling.flops_per_s:.2f}",
    ]


def error_row(found: Found, seed: int) -> list[str]:
    """Cells of where it ended."""
    refined, truth = found.refined, found.truth
    angles = rotation_angle_rad(refined.poses.rotations, truth.rotations)
    apart = (refined.poses.shifts_px - truth.shifts_px).norm(dim=1)
    degrees = torch.rad2deg(angles)
    near = angles / refined.rotation_sigma_rad
    return [
        str(found.box_px),
        str(seed),
        f"{found.start_deg:.2f}°",
        f"{degrees.median():.3f}° {degrees.mean():.3f}°",
        f"{apart.median():.4f}",
        f"{refined.log_likelihood.double().mean():.2f}",
        f"{torch.rad2deg(refined.rotation_sigma_rad).median():.3f}°",
        f"{near.square().median().sqrt():.2f}",
    ]


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for sets")
    parser.add_argument("--boxes", type=listed, default=tuple(map(str, BOXES_PX)), help="in pixels, even, from 32 on")
    parser.add_argument("--counts", type=listed, default=tuple(map(str, COUNTS)), help="particles of each box")
    parser.add_argument("--seeds", type=listed, default=("0",), help="of the simulations")
    parser.add_argument("--far", action="store_true", help="starts farther away")
    parser.add_argument("--table", type=Path, help="write the tables to this file as Markdown")
    given = parser.parse_args()
    torch.set_num_threads(1)
    ceiling = measure_ceiling(Settings((), (), torch.device("cpu"), REPEATS, time.process_time))
    costs, errors = [], []
    for box, count in zip(map(int, given.boxes), map(int, given.counts), strict=False):
        for seed in map(int, given.seeds):
            name = f"local{box}_{count}_{seed}"
            folder = prepare(name, given.work.resolve(), Simulated(box_px=box, count=count, seed=seed))
            config = ReconstructConfig(particles=folder / "particles.star", output=given.work / "none")
            found = measure(*open_scene(folder, config), is_far=given.far)
            costs.append(cost_row(found, ceiling))
            errors.append(error_row(found, seed))
            print(f"{name}: {costs[-1][3]} ms a particle", flush=True)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    machine = f"{ceiling.bytes_per_s / 1e9:.0f} GB/s, {ceiling.flops_per_s / 1e9:.0f} GFLOP/s"
    head = f"{machine}, load {os.getloadavg()[0]:.1f}, peak {peak_mib:.0f} MiB"
    text = f"{head}\n\n{markdown_table(COSTS, costs)}\n{markdown_table(ERRORS, errors)}"
    print(f"\n{text}")
    if given.table:
        write_text(given.table, text)


if __name__ == "__main__":
    main()
