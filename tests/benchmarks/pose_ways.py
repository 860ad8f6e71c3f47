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
from jaxtyping import Bool, Float, Int
from recorded_runs import Record
from scoring import read_truth
from torch import Tensor

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.geometry.disk_harmonics import disk_harmonics, support_radius
from cryoeq.geometry.fourier import crop_centred, fft_map, ifft_map
from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad
from cryoeq.pipelines.reconstruct.build import build_dataset, build_stack
from cryoeq.pipelines.reconstruct.build_autoencoder import build_encoder
from cryoeq.pipelines.reconstruct.hybrid import SHIFTED_STEPS
from cryoeq.reconstruction.expectation import disk_offsets, expectation_step
from cryoeq.reconstruction.local_refinement import Reference, refine_poses
from cryoeq.reconstruction.noise_model import noise_precision
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, cat_transforms, load_batches
from cryoeq.reconstruction.pose_likelihood import PoseGrid, PoseLikelihood
from cryoeq.runtime.random_streams import Stream, stream_generator
from cryoeq.training.synthetic.candidate_selection import RankedPoses, propose_poses_for_all, rank_candidates
from cryoeq.training.synthetic.encoder_input import EncoderInput, best_hypotheses, encoder_box_px
from cryoeq.training.synthetic.encoder_training import EncoderTrainingSettings, train_encoder
from cryoeq.training.synthetic.projections import ProjectionSimulator

CPU = torch.device("cpu")
SMALL_PX, COARSE_SHELL, SEARCHED_SHELL = 32, 10, 15
VIEWS_PER_SHELL, INPLANE_PER_SHELL = 0.4, 2.4
REACH, FADING = 3.0, 2.5  # trial shifts: of their spread; the box over this and the radius apart
LARGEST_MEASURED = 31
EXHAUSTIVE_IMAGES, EXHAUSTIVE_SHIFTS = 8, 4

T = TypeVar("T")
Found = tuple[Float[Tensor, "images 3 3"], Float[Tensor, "images 2"]]


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
        images: all of them, or up to some shell.
        volume: the map they show.
        shift_sigma_px: spread of the shifts per axis.
    """

    images: ParticleTransforms
    volume: Float[Tensor, "n n n"]
    shift_sigma_px: float

    @property
    def box_px(self) -> int:
        """Side of the map."""
        return self.volume.shape[-1]

    def rows(self, rows: Int[Tensor, " rows"]) -> "Scene":
        """Some of the images."""
        return replace(self, images=self.images.rows(rows))

    def small(self) -> "Scene":
        """All that steps up to shell 15 need, at 32 px."""
        cropped = ifft_map(crop_centred(fft_map(self.volume), SMALL_PX, 3))
        scale = SMALL_PX / self.box_px
        return Scene(self.images.within(SEARCHED_SHELL, SMALL_PX), cropped, scale * self.shift_sigma_px)


def timed(run: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds, and the result."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def healpix_order(radius: int) -> int:
    """Of views as close together, in shells of turn, as the product has them at its coarsest."""
    return math.ceil(math.log2(VIEWS_PER_SHELL * radius))


def shift_count(radius: int, scene: Scene) -> float:
    """How many trial shifts lie in the disk."""
    spacing = scene.box_px / (FADING * radius)
    return math.pi * (REACH * scene.shift_sigma_px / spacing) ** 2 / math.sqrt(0.75)


def refine_final_poses(
    scene: Scene, radius: int, trials: Float[Tensor, "images trials 2"], config: ReconstructConfig
) -> tuple[Step, Found]:
    """All poses of a grid at some shifts of each image: the cost per image, and the most probable pose and shift."""
    n, generator = scene.box_px, torch.Generator().manual_seed(radius)

    def build() -> tuple[ParticleTransforms, PoseLikelihood]:
        disk_harmonics.cache_clear()
        part = scene.images.within(radius, n)
        harmonics = disk_harmonics(n, radius, support_radius(config.search.particle_radius, n), CPU)
        angles, frame = 2 * round(INPLANE_PER_SHELL * radius), random_rotations(1, generator)[0]
        grid = PoseGrid.build(healpix_order(radius), angles, frame)
        return part, PoseLikelihood.build(
            scene.volume, grid, harmonics, noise_precision(scene.images, scene.volume, part)
        )

    fixed_s, (part, scores) = timed(build)
    images_s, events = timed(lambda: list(expectation_step(part, scores, trials, shift_sigma_px=scene.shift_sigma_px)))
    result = events[-1][1]
    if result is None:
        raise ValueError("there are no images")
    return Step(fixed_s, images_s / len(part)), (result.posterior.rotations, result.posterior.shifts_px)


def all_shifts(scene: Scene, radius: int) -> Float[Tensor, "images trials 2"]:
    """Trial shifts over the whole disk, as in the product's second look."""
    generator, spacing = torch.Generator().manual_seed(radius), scene.box_px / (FADING * radius)
    return disk_offsets(REACH * scene.shift_sigma_px, spacing, len(scene.images), generator, CPU)


def refine(scene: Scene, radius: int, starts: Mapping[str, Found]) -> tuple[Step, dict[str, Found]]:
    """Local refinement up to a radius from several starts: the mean cost of one, and all results."""
    part = scene.images.within(radius, scene.box_px)
    fixed_s, reference = timed(
        lambda: Reference.build(scene.volume, part.plane, noise_precision(scene.images, scene.volume, part))
    )
    images_s, found = 0.0, {}
    for name, start in starts.items():
        passed_s, refined = timed(partial(refine_poses, part, reference, *start, shift_sigma_px=scene.shift_sigma_px))
        images_s, found[name] = images_s + passed_s, (refined.rotations, refined.shifts_px)
    return Step(fixed_s, images_s / len(part) / len(starts)), found


def refine_to_end(scene: Scene, starts: Mapping[str, Found]) -> tuple[Step, dict[str, Found]]:
    """Local refinement at shell 15, about twice as far, and so on to the last shell.

    Args:
        scene: at the full box.
        starts: poses by way, their shifts in pixels of the small box.
    """
    last = scene.box_px // 2 - 1
    step, small = refine(scene.small(), SEARCHED_SHELL, starts)
    scale = scene.box_px / SMALL_PX
    found = {name: (rotations, scale * shifts) for name, (rotations, shifts) in small.items()}
    doublings = round(math.log2(last / SEARCHED_SHELL))
    for done in range(1, doublings + 1):
        more, found = refine(scene, round(SEARCHED_SHELL * (last / SEARCHED_SHELL) ** (done / doublings)), found)
        step += more
    return step, found


def search(small: Scene, config: ReconstructConfig) -> tuple[dict[str, Step], Found]:
    """All poses and shifts up to shell 10, refined there; all poses up to shell 15 at the shift found."""
    coarse, found = refine_final_poses(small, COARSE_SHELL, all_shifts(small, COARSE_SHELL), config)
    local, refined = refine(small, COARSE_SHELL, {"search": found})
    fine, found = refine_final_poses(small, SEARCHED_SHELL, refined["search"][1][:, None], config)
    return {"all poses and shifts, shell 10": coarse + local, "all poses, shell 15": fine}, found


def teach(small: Scene, config: ReconstructConfig) -> tuple[torch.nn.Module, EncoderInput, float]:
    """An encoder that has learnt the map, how it sees, and its last error on renderings in degrees."""
    torch.manual_seed(config.seed)
    asked, encoder = config.hybrid, build_encoder(config, encoder_box_px(COARSE_SHELL))
    view = EncoderInput.of_map(small.images, small.volume, COARSE_SHELL, small.shift_sigma_px)
    lessons = ProjectionSimulator.of_map(small.images, small.volume, view, small.shift_sigma_px)
    if encoder.n_template_filters:
        encoder.init_filters_from(
            lessons.slices(encoder.n_template_filters, stream_generator(config.seed, Stream.FILTERS))
        )
    settings = EncoderTrainingSettings(
        asked.steps or SHIFTED_STEPS, asked.batch_size, asked.rate, asked.concentration, asked.initial_noise_scale
    )
    *_, last = train_encoder(encoder, lessons, settings, seed=config.seed)
    return encoder, view, last.metrics["synthetic_error_deg"]


def errors(found: Found, truth: Found) -> Record:
    """Spread of the errors against the truth, in whose frame the map is."""
    angles = torch.rad2deg(rotation_angle_rad(found[0], truth[0]))
    shifts = (found[1] - truth[1]).norm(dim=1)
    figures = {
        "median_deg": angles.median(), "mean_deg": angles.mean(), "share_beyond_30": (angles > 30).float().mean(),
        "shift_median_px": shifts.median(),
    }  # fmt: skip
    return {name: round(float(value), 4) for name, value in figures.items()}


def open_scene(folder: Path, config: ReconstructConfig) -> tuple[Scene, Found]:
    """Images, true map in their grey scale, and true poses.

    Args:
        folder: of the set.
        config: how images are read.
    """
    truth = read_truth(folder)
    dataset: ParticleDataset = build_dataset(config, build_stack(config, with_poses=False), None)
    images = cat_transforms([part for _, part in load_batches(dataset, CPU)])
    volume = truth.volume.values * (dataset.preprocessing.sign / (dataset.preprocessing.scale or 1.0))
    shifts_px = truth.poses.shifts_angstrom / dataset.pixel_size_angstrom
    scene = Scene(images, volume, Simulated().shift_of_box * dataset.box_size_px)
    return scene, (truth.poses.rotations, shifts_px)


def propose(small: Scene, config: ReconstructConfig) -> tuple[dict[str, Step], RankedPoses, Record]:
    """The encoder's way up to shell 10.

    Args:
        small: images and map at 32 px.
        config: defaults.
    """
    taught_s, (encoder, view, rendered_deg) = timed(lambda: teach(small, config))
    forward_s, proposals = timed(lambda: propose_poses_for_all(encoder, small.images, view))
    every, part = len(small.images), small.images.within(COARSE_SHELL, SMALL_PX)

    def judge_first(count: int) -> RankedPoses:
        some = proposals.rotations[:count], proposals.shifts_px[:count]
        rows = part.rows(torch.arange(count))
        return rank_candidates(small.images, rows, small.volume, some, shift_sigma_px=small.shift_sigma_px)

    one_s, _ = timed(lambda: judge_first(1))
    all_s, judged = timed(lambda: judge_first(every))
    steps = {
        "teaching": Step(taught_s, 0.0),
        "forward pass": Step(0.0, forward_s / every),
        "judging": Step(one_s, (all_s - one_s) / (every - 1)),
    }
    facts = {"synthetic_error_deg": round(rendered_deg, 2), "passed": best_hypotheses(proposals)}
    return steps, judged, facts


def exhaustive(scene: Scene, config: ReconstructConfig) -> tuple[Step, Record]:
    """All poses and shifts up to the last shell: its cost from a few images and shifts, or from a smaller radius."""
    last = scene.box_px // 2 - 1
    radius = min(last, LARGEST_MEASURED)
    few = scene.rows(torch.arange(EXHAUSTIVE_IMAGES))
    trials = torch.zeros(EXHAUSTIVE_IMAGES, EXHAUSTIVE_SHIFTS, 2)
    step, _ = refine_final_poses(few, radius, trials, config)
    views = 4 ** (healpix_order(last) - healpix_order(radius))
    growth = views * (last / radius) ** 2
    shifts = shift_count(last, scene)
    poses = 12 * 4 ** healpix_order(last) * 2 * round(INPLANE_PER_SHELL * last)
    facts = {"poses": poses, "shifts": round(shifts), "extrapolated_from_radius": radius if radius < last else None}
    return Step(growth * step.fixed_s, growth * step.image_s * shifts / EXHAUSTIVE_SHIFTS), facts


def compare(scene: Scene, truth: Found, config: ReconstructConfig) -> Record:
    """Costs of all steps, and errors of all ways, for one box.

    Args:
        scene: images and map.
        truth: poses of the images.
        config: defaults.
    """
    small = scene.small()
    steps, searched = search(small, config)
    more, judged, facts = propose(small, config)
    starts = {
        "search": searched,
        "encoder": (judged.refined.rotations, judged.refined.shifts_px),
        "true poses": (truth[0], truth[1] * (SMALL_PX / scene.box_px)),
    }
    refining, ways = refine_to_end(scene, starts)
    steps |= more | {"local refinement": refining}
    steps["exhaustive"], exhausted = exhaustive(scene, config)
    doubtful = judged.doubtful(config.hybrid.least_confidence)
    ways["encoder + search"] = mixed(doubtful, ways["search"], ways["encoder"])
    sure = (~doubtful).nonzero().squeeze(1)
    return {
        "images": len(scene.images),
        "last_shell": scene.box_px // 2 - 1,
        "steps": {name: {key: round(value, 6) for key, value in asdict(step).items()} for name, step in steps.items()},
        "exhaustive": exhausted,
        "hybrid": config.hybrid.model_dump(),
        "doubtful_share": round(float(doubtful.float().mean()), 4),
        "synthetic_error_deg": facts["synthetic_error_deg"],
        "forward_pass": errors(facts["passed"], truth),
        "errors": {name: errors(found, truth) for name, found in ways.items()},
        "errors_trusted": {name: errors(of_rows(found, sure), of_rows(truth, sure)) for name, found in ways.items()},
    }


def mixed(choice: Bool[Tensor, " images"], first: Found, second: Found) -> Found:
    """Poses of the first where chosen, else of the second."""
    return torch.where(choice[:, None, None], first[0], second[0]), torch.where(choice[:, None], first[1], second[1])


def of_rows(found: Found, rows: Int[Tensor, " rows"]) -> Found:
    """Some of the poses."""
    return found[0][rows], found[1][rows]
