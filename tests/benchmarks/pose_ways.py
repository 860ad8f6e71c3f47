"""The ways of posing particles against one map, each step timed: what ``crossing.py`` compares.

Times are CPU seconds of this process.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from benchmark_sets import Simulated
from jaxtyping import Float, Int
from recorded_runs import Record
from scoring import read_truth
from torch import Tensor

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import result_of
from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.disk_harmonics import disk_harmonics, support_radius
from cryoeq.geometry.fourier import crop_centred, fft_map, ifft_map
from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad
from cryoeq.pipelines.reconstruct.build import build_dataset, build_stack
from cryoeq.pipelines.reconstruct.build_autoencoder import build_encoder
from cryoeq.pipelines.reconstruct.hybrid import SHIFTED_STEPS
from cryoeq.pipelines.reconstruct.particle_diameter import mask_radius
from cryoeq.reconstruction.expectation import disk_offsets, expectation_step, offset_step_px
from cryoeq.reconstruction.local_refinement import refine_poses
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, load_transforms
from cryoeq.reconstruction.pose_likelihood import PoseGrid, PoseLikelihood
from cryoeq.reconstruction.reference import Reference
from cryoeq.runtime.random_streams import Stream, stream_generator
from cryoeq.training.synthetic.candidate_selection import RankedPoses, propose_poses_for_all, rank_candidates
from cryoeq.training.synthetic.encoder_input import EncoderInput, best_hypotheses, encoder_box_px
from cryoeq.training.synthetic.encoder_training import EncoderTrainingSettings, train_encoder
from cryoeq.training.synthetic.projections import ProjectionSimulator

CPU = torch.device("cpu")
SMALL_PX, COARSE_SHELL, SEARCHED_SHELL = 32, 10, 15
VIEWS_PER_SHELL, INPLANE_PER_SHELL = 0.4, 2.4
REACH, OFFSETS_PER_WAVELENGTH = 3.0, 2.5  # of the search for offsets: radius over their standard deviation, spacing
LARGEST_MEASURED = 31
EXHAUSTIVE_IMAGES, EXHAUSTIVE_SHIFTS = 8, 4

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


def offset_count(radius: int, scene: Scene) -> float:
    """How many offsets lie in the disk."""
    spacing = offset_step_px(scene.box_px, radius, OFFSETS_PER_WAVELENGTH)
    return math.pi * (REACH * scene.shift_sigma_px / spacing) ** 2 / math.sqrt(0.75)


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


def train(small: Scene, config: ReconstructConfig) -> tuple[torch.nn.Module, EncoderInput, float]:
    """An encoder trained on the map, its preprocessing, and its last error on synthetic projections in degrees."""
    torch.manual_seed(config.seed)
    hybrid, encoder = config.hybrid, build_encoder(config, encoder_box_px(COARSE_SHELL))
    encoder_input = EncoderInput.from_map(small.particles, small.volume, COARSE_SHELL, small.shift_sigma_px)
    simulator = ProjectionSimulator.from_map(small.particles, small.volume, encoder_input, small.shift_sigma_px)
    if encoder.n_template_filters:
        generator = stream_generator(config.seed, Stream.FILTERS)
        encoder.init_filters_from(simulator.clean_slices(encoder.n_template_filters, generator))
    settings = EncoderTrainingSettings(
        hybrid.training_steps or SHIFTED_STEPS,
        hybrid.batch_size,
        hybrid.learning_rate,
        hybrid.concentration,
        hybrid.initial_noise_scale,
    )
    *_, last = train_encoder(encoder, simulator, settings, seed=config.seed)
    return encoder, encoder_input, last.metrics["synthetic_error_deg"]


def errors(found: PoseSet, truth: PoseSet) -> Record:
    """Distribution of the errors against the truth, in whose frame the map is."""
    angles = torch.rad2deg(rotation_angle_rad(found.rotations, truth.rotations))
    shifts = (found.shifts_px - truth.shifts_px).norm(dim=1)
    figures = {
        "median_deg": angles.median(), "mean_deg": angles.mean(), "share_beyond_30": (angles > 30).float().mean(),
        "shift_median_px": shifts.median(),
    }  # fmt: skip
    return {name: round(float(value), 4) for name, value in figures.items()}


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


def propose(small: Scene, config: ReconstructConfig) -> tuple[dict[str, Step], RankedPoses, Record]:
    """The encoder's way up to shell 10.

    Args:
        small: images and map at 32 px.
        config: defaults.
    """
    trained_s, (encoder, encoder_input, error_deg) = timed(lambda: train(small, config))
    forward_s, proposals = timed(lambda: propose_poses_for_all(encoder, small.particles, encoder_input))
    count, subset = len(small.particles), small.particles.within(COARSE_SHELL, SMALL_PX)
    candidates = PoseSet(proposals.rotations, proposals.shifts_px, SMALL_PX)

    def rank_first(count: int) -> RankedPoses:
        rows, reference = torch.arange(count), Reference.prepare(small.volume, small.particles)
        some = candidates.rows(rows)
        return rank_candidates(subset.rows(rows), reference, some, shift_sigma_px=small.shift_sigma_px)

    one_s, _ = timed(lambda: rank_first(1))
    all_s, ranked = timed(lambda: rank_first(count))
    steps = {  # names of the records
        "teaching": Step(trained_s, 0.0),
        "forward pass": Step(0.0, forward_s / count),
        "judging": Step(one_s, (all_s - one_s) / (count - 1)),
    }
    passed = PoseSet(*best_hypotheses(proposals), SMALL_PX)
    return steps, ranked, {"rendered_error_deg": round(error_deg, 2), "passed": passed}


def exhaustive(scene: Scene, config: ReconstructConfig) -> tuple[Step, Record]:
    """All poses and offsets up to the last shell: its cost from a few images and offsets, or from a smaller radius."""
    last = scene.box_px // 2 - 1
    radius = min(last, LARGEST_MEASURED)
    few = scene.rows(torch.arange(EXHAUSTIVE_IMAGES))
    offsets = torch.zeros(EXHAUSTIVE_IMAGES, EXHAUSTIVE_SHIFTS, 2)
    step, _ = search_grid(few, radius, offsets, config)
    views = 4 ** (healpix_order(last) - healpix_order(radius))
    growth = views * (last / radius) ** 2
    shifts = offset_count(last, scene)
    poses = 12 * 4 ** healpix_order(last) * 2 * round(INPLANE_PER_SHELL * last)
    facts = {"poses": poses, "shifts": round(shifts), "extrapolated_from_radius": radius if radius < last else None}
    return Step(growth * step.fixed_s, growth * step.image_s * shifts / EXHAUSTIVE_SHIFTS), facts


def compare(scene: Scene, truth: PoseSet, config: ReconstructConfig) -> Record:
    """Costs of all steps, and errors of all ways, for one box.

    Args:
        scene: images and map.
        truth: poses of the images.
        config: defaults.
    """
    small = scene.small()
    steps, searched = search(small, config)
    more, ranked, facts = propose(small, config)
    starts = {
        "search": searched,
        "encoder": ranked.refined.poses,
        "true poses": truth.in_box(SMALL_PX),
    }
    refining, ways = refine_to_end(scene, starts)
    steps |= more | {"local refinement": refining}
    steps["exhaustive"], exhausted = exhaustive(scene, config)
    is_doubtful = ranked.low_confidence(config.hybrid.min_confidence)
    doubtful, sure = is_doubtful.nonzero().squeeze(1), (~is_doubtful).nonzero().squeeze(1)
    ways["encoder + search"] = ways["encoder"].with_rows(doubtful, ways["search"].rows(doubtful))
    return {
        "images": len(scene.particles),
        "last_shell": scene.box_px // 2 - 1,
        "steps": {name: {key: round(value, 6) for key, value in asdict(step).items()} for name, step in steps.items()},
        "exhaustive": exhausted,
        "hybrid": config.hybrid.model_dump(),
        "doubtful_share": round(float(is_doubtful.float().mean()), 4),
        "rendered_error_deg": facts["rendered_error_deg"],
        "forward_pass": errors(facts["passed"], truth.in_box(SMALL_PX)),
        "errors": {name: errors(found, truth) for name, found in ways.items()},
        "errors_trusted": {name: errors(found.rows(sure), truth.rows(sure)) for name, found in ways.items()},
    }
