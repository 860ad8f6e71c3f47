"""Poses by search and encoder: the search finds a map at low resolution, an encoder learns it and takes over.

The search goes up to the joint map at low resolution, on all particles but those held out. The encoder learns from
renderings of that map; its proposals for every particle, refined locally, replace the global search at all later
resolutions. Particles whose proposals cannot be trusted go back to the exhaustive search, held-out ones excepted.
Where the search reaches the last shell of the particles, looking at every pose takes seconds and gives better maps
than one pose of each particle does: there the run ends as a search does, from the poses that the encoder gave.

The encoder learns from the joint map only, up to the radius at which the halves part. So does every first pose, as in
the search. Beyond that radius the half maps share nothing: each half's poses are refined against its own map.

At the end the encoder learns from the last map of the halves, and poses the held-out particles by one forward pass. How
far that is from their final poses is reported. No rendering has their CTFs, but they did add to the map.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.halfsets import split_half_sets
from cryoeq.domain.events import Event, Note, Progress
from cryoeq.domain.processes import is_first
from cryoeq.domain.randomness import Stream, stream_generator
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.io.checkpoint import save_checkpoint
from cryoeq.models.encoder import PoseEncoder
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.build_training import build_encoder, tell_degrees
from cryoeq.pipelines.compiling import compile_if_possible
from cryoeq.pipelines.kept_steps import Keep, run_anew
from cryoeq.pipelines.search import (
    SearchResult,
    check_hand,
    collect,
    look_at_all,
    read_images,
    require_structure,
    settle_from_noise,
)
from cryoeq.pipelines.starts import follow
from cryoeq.training.course_record import CourseRecord
from cryoeq.training.growth import GrowthSettings, GrowthState, finish, grow, refine_locally
from cryoeq.training.local_refinement import RefinedPoses
from cryoeq.training.observed_images import ObservedImages
from cryoeq.training.polishing import polish
from cryoeq.training.proposals import JudgedPoses, judge, propose_for_all
from cryoeq.training.rendering_lessons import (
    EncoderView,
    Lessons,
    LessonSettings,
    best_hypotheses,
    encoder_box_px,
    learn,
)
from cryoeq.training.second_look import search_rows
from cryoeq.training.taught_encoder import ENCODER_FILE, TaughtEncoder

_PROGRESS = "posing by the encoder"
CENTRED_STEPS, SHIFTED_STEPS = 800, 1400


@dataclass(frozen=True)
class _Hybrid:
    """All that the steps of a hybrid run share."""

    config: ReconstructConfig
    dataset: ParticleDataset
    images: ObservedImages
    settings: GrowthSettings
    encoder: PoseEncoder
    held_out: Int[Tensor, " held"]
    searched: Int[Tensor, " searched"]

    @property
    def radius(self) -> int:
        """Up to which the encoder sees."""
        return min(self.config.hybrid.shell, self.last_shell)

    @property
    def last_shell(self) -> int:
        """Of the particles."""
        return self.images.plane.box_size_px // 2 - 1

    @property
    def is_searchable(self) -> bool:
        """Whether the search reaches the last shell."""
        return self.settings.searched_shell >= self.last_shell

    @property
    def sigma_px(self) -> float:
        """Spread of the shifts."""
        return self.settings.shift_sigma_px


def search_and_learn(
    config: ReconstructConfig, dataset: ParticleDataset, run: RunFolder, device: torch.device, keep: Keep = run_anew
) -> Generator[Event, None, SearchResult]:
    """Find the structure from noise, and an encoder that poses particles by one forward pass.

    Args:
        config: what to do.
        dataset: the particles, at the box where poses are inferred.
        run: where ``encoder.pt`` goes.
        device: where to compute.
        keep: of finished steps of the search.

    Raises:
        DivergedError: nothing was found.
    """
    images = yield from read_images(dataset, device)
    half_set = split_half_sets(len(dataset), stream_generator(config.seed, Stream.HALF_SETS)).to(device)
    order = torch.randperm(len(dataset), generator=stream_generator(config.seed, Stream.HELD_OUT)).to(device)
    held_out, searched = order.split([count := round(config.hybrid.held_out * len(order)), len(order) - count])
    part = images.rows(searched)
    first, settings = yield from settle_from_noise(config, dataset, part, half_set[searched], keep=keep)
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(config.seed)
        radius = min(config.hybrid.shell, dataset.box_size_px // 2 - 1)
        encoder = build_encoder(config, encoder_box_px(radius)).to(device)
    yield from compile_if_possible(encoder, is_wanted=config.encoder.compiled)
    hybrid = _Hybrid(config, dataset, images, settings, encoder, held_out, searched)
    lessons = yield from _teach(hybrid, first.maps[0], course=0)
    state = yield from _take_over(hybrid, lessons.view, _with_all(first, searched, half_set))
    halves = yield from _refine_halves(hybrid, state)
    yield from require_structure(config, dataset, images.rows(searched), first, halves)
    merged = (halves.maps[0] + halves.maps[1]) / 2
    lessons = yield from _teach(hybrid, merged, course=1)
    proposals = propose_for_all(encoder, images.rows(held_out), lessons.view)
    passed, _ = best_hypotheses(proposals)
    if is_first():
        _save(hybrid, lessons, merged, run)
    joint, refined = yield from _refine_all(hybrid, halves)
    yield from check_hand(joint, dataset)
    searched_shell = settings.searched_shell if hybrid.is_searchable else 0
    result = collect(dataset, halves, joint, refined, searched_shell=searched_shell)
    return (yield from _report(hybrid, result, passed, refined))


def _teach(hybrid: _Hybrid, volume: Float[Tensor, "n n n"], *, course: int) -> Generator[Event, None, Lessons]:
    """The encoder learns a map from renderings with CTFs and noise of the searched particles."""
    asked = hybrid.config.hybrid
    images = hybrid.images.rows(hybrid.searched)
    view = EncoderView.of_map(images, volume, hybrid.radius, hybrid.sigma_px)
    lessons = Lessons.of_map(images, volume, view, hybrid.sigma_px)
    if course == 0 and hybrid.encoder.matched_fields:
        generator = stream_generator(hybrid.config.seed, Stream.FILTERS)
        hybrid.encoder.begin_with(lessons.slices(hybrid.encoder.matched_fields, generator))
    steps = asked.steps or (CENTRED_STEPS if view.is_centred else SHIFTED_STEPS)
    settings = LessonSettings(steps, asked.batch_size, asked.rate, asked.sharpness, asked.first_noise)
    if course > 0:
        settings = replace(settings, steps=asked.final_steps, rate=0.5 * asked.rate, first_noise=1.0)
    yield from learn(hybrid.encoder, lessons, settings, seed=hybrid.config.seed, course=course)
    yield from tell_degrees(hybrid.encoder)
    return lessons


def _with_all(
    first: GrowthState, searched: Int[Tensor, " searched"], half_set: Int[Tensor, " particles"]
) -> GrowthState:
    """The state of the searched particles as that of all; what is not known yet is as in the beginning."""
    count = len(half_set)

    def spread(values: Tensor, start: Tensor) -> Tensor:
        return start.to(values).index_copy(0, searched, values)

    return replace(
        first,
        half_set=half_set,
        rotations=spread(first.rotations, torch.eye(3).repeat(count, 1, 1)),
        shifts_px=spread(first.shifts_px, torch.zeros(count, 2)),
        confidence=spread(first.confidence, torch.zeros(count)),
        log_evidence=spread(first.log_evidence, torch.zeros(count)),
    )


def _take_over(hybrid: _Hybrid, view: EncoderView, state: GrowthState) -> Generator[Event, None, GrowthState]:
    """Every particle's most likely proposal against the first map; poses that the search found compete."""
    searched = hybrid.searched
    yield Progress(_PROGRESS, 0, 1)
    proposals = propose_for_all(hybrid.encoder, hybrid.images, view)
    every = torch.arange(len(hybrid.images), device=searched.device)
    judged = _judge(hybrid, state, every, (proposals.rotations, proposals.shifts_px))
    yield Progress(_PROGRESS, 1, 1, {"confidence": float(judged.confidence.mean())})
    state = _with_poses(state, judged)
    is_doubtful = judged.doubtful(hybrid.config.hybrid.least_confidence)
    rows = searched[is_doubtful[searched]]
    yield Note(
        f"The encoder's proposals can be trusted for {1 - len(rows) / max(1, len(searched)):.0%} of the particles; "
        f"{len(rows)} went back to the exhaustive search."
    )
    return (yield from _search_again(hybrid, state, rows, course=0))


def _search_again(
    hybrid: _Hybrid, state: GrowthState, rows: Int[Tensor, " rows"], *, course: int
) -> Generator[Event, None, GrowthState]:
    """All poses and shifts of some particles, against a map that the halves share; the better of old and new pose."""
    if len(rows) == 0:
        return state
    yield Progress("searching again", 0, len(rows))
    generator = stream_generator(hybrid.config.seed, Stream.HELD_OUT, 1 + course)
    found = search_rows(hybrid.images, rows, state.maps[0], hybrid.settings, generator)
    judged = _judge(hybrid, state, rows, (found.rotations[:, None], found.shifts_px[:, None]))
    yield Progress("searching again", len(rows), len(rows))
    return _with_poses(state, judged, rows)


def _judge(
    hybrid: _Hybrid, state: GrowthState, rows: Int[Tensor, " rows"], others: tuple[Tensor, Tensor]
) -> JudgedPoses:
    """The most likely of the present pose and others, against the one map that there is at low resolution."""
    part = hybrid.images.within(hybrid.radius, hybrid.images.plane.box_size_px).rows(rows)
    rotations = torch.cat([state.rotations[rows][:, None], others[0]], 1)
    shifts = torch.cat([state.shifts_px[rows][:, None], others[1]], 1)
    return judge(hybrid.images, part, state.maps[0], (rotations, shifts), shift_sigma_px=hybrid.sigma_px)


def _with_poses(state: GrowthState, judged: JudgedPoses, rows: Int[Tensor, " rows"] | None = None) -> GrowthState:
    places = torch.arange(len(state.half_set), device=state.half_set.device) if rows is None else rows
    return replace(
        state,
        rotations=state.rotations.index_copy(0, places, judged.refined.rotations),
        shifts_px=state.shifts_px.index_copy(0, places, judged.refined.shifts_px),
        confidence=state.confidence.index_copy(0, places, judged.confidence),
        log_evidence=state.log_evidence.index_copy(0, places, judged.refined.log_likelihood),
    )


def _refine_halves(hybrid: _Hybrid, state: GrowthState) -> Generator[Event, None, GrowthState]:
    """The independent half sets, over all poses where the search reaches the last shell, else locally."""
    images, settings, config = hybrid.images, hybrid.settings, hybrid.config
    if hybrid.is_searchable:
        return (yield from follow(grow(state, images, settings, seed=config.seed)))
    return (yield from follow(polish(state, images, settings, iterations=config.hybrid.iterations)))


def _refine_all(hybrid: _Hybrid, halves: GrowthState) -> Generator[Event, None, tuple[GrowthState, RefinedPoses]]:
    """All particles against the map of all; those held out are searched too."""
    images, settings, seed = hybrid.images, hybrid.settings, hybrid.config.seed
    if hybrid.is_searchable:
        joint = yield from follow(finish(halves, images, settings, seed=seed))
        return joint, (yield from look_at_all(joint, images, settings, seed=seed))
    merged = (halves.maps[0] + halves.maps[1]) / 2
    joint = yield from _search_again(hybrid, replace(halves, maps=(merged, merged)), hybrid.held_out, course=1)
    yield Progress("refining locally", 0, 1)
    refined = refine_locally(images, joint.maps, joint, hybrid.last_shell, hybrid.sigma_px)
    yield Progress("refining locally", 1, 1)
    return joint, refined


def _report(
    hybrid: _Hybrid, result: SearchResult, passed: Float[Tensor, "held 3 3"], refined: RefinedPoses
) -> Generator[Event, None, SearchResult]:
    """How far the forward pass of held-out particles is from their final poses."""
    figures = dict(result.figures)
    if not hybrid.is_searchable:  # there is no evidence of all particles: that would take a search of all
        figures.pop("log_evidence")
    if len(passed) > 0:
        error_rad = rotation_angle_rad(passed, refined.rotations[hybrid.held_out]).median()
        figures["held_out_median_deg"] = math.degrees(float(error_rad))
        yield Note(
            f"One forward pass of the encoder poses the {len(passed)} held-out particles to within a median of "
            f"{figures['held_out_median_deg']:.1f} degrees of their final poses."
        )
    return replace(result, figures=figures)


def _save(hybrid: _Hybrid, lessons: Lessons, volume: Float[Tensor, "n n n"], run: RunFolder) -> None:
    """All that posing other particles needs, and what the last course was made of."""
    dataset, asked = hybrid.dataset, hybrid.config.hybrid
    taught = TaughtEncoder(
        hybrid.encoder,
        lessons.view,
        hybrid.radius,
        dataset.box_size_px,
        dataset.pixel_size_angstrom,
        has_ctf=dataset.table.ctf is not None,
    )
    record = CourseRecord(
        volume=volume,
        sigma=lessons.sigma,
        searched=hybrid.searched,
        shift_sigma_px=lessons.shift_sigma_px,
        seed=hybrid.config.seed,
        course=1,
        steps=asked.final_steps,
        batch_size=asked.batch_size // lessons.view.looks_per_lesson,
    )
    save_checkpoint(run.path(ENCODER_FILE), {**taught.to_state(), "course": record.to_state()})
