"""A search of particles against one map, each step timed, as ``views.py`` and ``local_refinement.py`` compare it.

Times are CPU seconds of this process.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from benchmark_sets import Simulated
from jaxtyping import Float, Int
from scoring import read_truth
from torch import Tensor

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import result_of
from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.disk_harmonics import disk_harmonics, support_radius
from cryoeq.geometry.fourier import crop_centred, fft_map, ifft_map
from cryoeq.geometry.so3 import random_rotations
from cryoeq.pipelines.reconstruct.build import build_dataset, build_stack
from cryoeq.pipelines.reconstruct.particle_diameter import mask_radius
from cryoeq.reconstruction.expectation import disk_offsets, expectation_step, offset_step_px
from cryoeq.reconstruction.local_refinement import refine_poses
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, load_transforms
from cryoeq.reconstruction.pose_likelihood import PoseGrid, PoseLikelihood
from cryoeq.reconstruction.reference import Reference

CPU = torch.device("cpu")
SMALL_PX, COARSE_SHELL, SEARCHED_SHELL = 32, 10, 15
VIEWS_PER_SHELL, INPLANE_PER_SHELL = 0.4, 2.4
REACH, OFFSETS_PER_WAVELENGTH = 3.0, 2.5  # of the search for offsets: radius over their standard deviation, spacing

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """What a step costs: once, and for each image, in CPU seconds."""

    fixed_s: float = 0.0
    image_s: float = 0.0

    def __add__(self, other: "Step") -> "Step":
        return Step(self.fixed_s + other.fixed_s, self.image_s + other.image_s)

    def at(self, count: int) -> float:
        """CPU seconds for some images."""
        return self.fixed_s + count * self.image_s


@dataclass(frozen=True)
class Scene:
    """Images and the true map at one box; shifts are in pixels of it.

    Args:
        particles: CTF-multiplied transforms of all particles, or up to some shell.
        volume: the map they show.
        shift_sigma_px: standard deviation of the shifts per axis.
    """

    particles: ParticleTransforms
    volume: Float[Tensor, "n n n"]
    shift_sigma_px: float

    @property
    def box_px(self) -> int:
        """Side of the map."""
        return self.volume.shape[-1]

    def rows(self, rows: Int[Tensor, " rows"]) -> "Scene":
        """Some of the images."""
        return replace(self, particles=self.particles.rows(rows))

    def small(self) -> "Scene":
        """All that steps up to shell 15 need, at 32 px."""
        cropped = ifft_map(crop_centred(fft_map(self.volume), SMALL_PX, 3))
        scale = SMALL_PX / self.box_px
        return Scene(self.particles.within(SEARCHED_SHELL, SMALL_PX), cropped, scale * self.shift_sigma_px)


def timed(run: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds, and the result."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def healpix_order(radius: int) -> int:
    """Of views as close together, in shells of turn, as the product has them at its coarsest."""
    return math.ceil(math.log2(VIEWS_PER_SHELL * radius))


def search_grid(
    scene: Scene, radius: int, offsets_px: Float[Tensor, "images offsets 2"], config: ReconstructConfig
) -> tuple[Step, PoseSet]:
    """All poses of a grid at some offsets of each image: the cost per image, and the most probable pose and offset."""
    n, generator = scene.box_px, torch.Generator().manual_seed(radius)

    def build() -> tuple[ParticleTransforms, PoseLikelihood]:
        disk_harmonics.cache_clear()
        subset = scene.particles.within(radius, n)
        harmonics = disk_harmonics(n, radius, support_radius(mask_radius(config, float(n)), n), CPU)
        angles, frame = 2 * round(INPLANE_PER_SHELL * radius), random_rotations(1, generator)[0]
        grid = PoseGrid.build(healpix_order(radius), angles, frame)
        return subset, PoseLikelihood.build(Reference.prepare(scene.volume, scene.particles), grid, harmonics)

    fixed_s, (subset, likelihood) = timed(build)
    steps = expectation_step(subset, likelihood, offsets_px, shift_sigma_px=scene.shift_sigma_px)
    images_s, result = timed(lambda: result_of(steps))
    return Step(fixed_s, images_s / len(subset)), result.posterior.poses


def all_offsets(scene: Scene, radius: int) -> Float[Tensor, "images offsets 2"]:
    """Offsets over the whole disk, as in global re-alignment."""
    generator, spacing = (
        torch.Generator().manual_seed(radius),
        offset_step_px(scene.box_px, radius, OFFSETS_PER_WAVELENGTH),
    )
    return disk_offsets(REACH * scene.shift_sigma_px, spacing, len(scene.particles), generator, CPU)


def refine(scene: Scene, radius: int, starts: Mapping[str, PoseSet]) -> tuple[Step, dict[str, PoseSet]]:
    """Local refinement up to a radius from several starts: the mean cost of one, and all results."""
    subset = scene.particles.within(radius, scene.box_px)
    fixed_s, reference = timed(lambda: Reference.prepare(scene.volume, scene.particles))
    images_s, found = 0.0, {}
    for name, start in starts.items():
        passed_s, refined = timed(partial(refine_poses, subset, reference, start, shift_sigma_px=scene.shift_sigma_px))
        images_s, found[name] = images_s + passed_s, refined.poses
    return Step(fixed_s, images_s / len(subset) / len(starts)), found


def refine_to_end(scene: Scene, starts: Mapping[str, PoseSet]) -> tuple[Step, dict[str, PoseSet]]:
    """Local refinement at shell 15, about twice as far, and so on to the last shell.

    Args:
        scene: at the full box.
        starts: poses by way, in the small box.
    """
    last = scene.box_px // 2 - 1
    step, small = refine(scene.small(), SEARCHED_SHELL, starts)
    found = {name: poses.in_box(scene.box_px) for name, poses in small.items()}
    doublings = round(math.log2(last / SEARCHED_SHELL))
    for done in range(1, doublings + 1):
        more, found = refine(scene, round(SEARCHED_SHELL * (last / SEARCHED_SHELL) ** (done / doublings)), found)
        step += more
    return step, found


def search(small: Scene, config: ReconstructConfig) -> tuple[dict[str, Step], PoseSet]:
    """All poses and shifts up to shell 10, refined there; all poses up to shell 15 at the shift found."""
    coarse, found = search_grid(small, COARSE_SHELL, all_offsets(small, COARSE_SHELL), config)
    local, refined = refine(small, COARSE_SHELL, {"search": found})
    fine, found = search_grid(small, SEARCHED_SHELL, refined["search"].shifts_px[:, None], config)
    return {"all poses and shifts, shell 10": coarse + local, "all poses, shell 15": fine}, found


def open_scene(folder: Path, config: ReconstructConfig) -> tuple[Scene, PoseSet]:
    """Images, true map in their grey scale, and true poses.

    Args:
        folder: of the set.
        config: how images are read.
    """
    truth = read_truth(folder)
    dataset: ParticleDataset = build_dataset(config, build_stack(config, with_poses=False), None)
    particles = result_of(load_transforms(dataset, CPU))
    volume = truth.volume.values * (dataset.preprocessing.sign / (dataset.preprocessing.scale or 1.0))
    scene = Scene(particles, volume, Simulated().shift_of_box * dataset.box_size_px)
    return scene, PoseSet.from_angstrom(truth.poses, dataset.pixel_size_angstrom, dataset.box_size_px)
