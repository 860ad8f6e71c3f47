"""Poses by search: from random starts to two independent half sets, and the poses and maps that come of them."""

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
from cryoeq.domain.pose import Poses
from cryoeq.domain.randomness import Stream, stream_generator
from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.errors import DivergedError
from cryoeq.evaluation.symmetry import (
    MIXED_HANDS_SCORE,
    MIXED_HANDS_WARNING,
    find_symmetry,
    impose_symmetry,
    planar_symmetry_score,
)
from cryoeq.pipelines.build import build_growth_settings
from cryoeq.pipelines.decoder_map import decode_map
from cryoeq.pipelines.kept_steps import Keep, run_anew
from cryoeq.pipelines.known import KnownReconstruction, filter_by_halves
from cryoeq.pipelines.starts import MOST_ATTEMPTS, choose_start, follow, require_repeat
from cryoeq.training.growth import GrowthSettings, GrowthState, enlarge, finish, grow, settle
from cryoeq.training.local_refinement import RefinedPoses
from cryoeq.training.observed_images import ObservedImages, join, observe_all
from cryoeq.training.polishing import polish
from cryoeq.training.second_look import look_again, with_second_look

_LEAST_SHELL = 5
_JOINT_OVERSAMPLING = 3  # pixels of the box of the joint iterations per cycle of their last shell
_WORTH_CROPPING = 0.75  # of the particles' box, up to which that smaller one is used
_MIXED_FROM_SHELL = 9  # below, mixed hands cannot be told from a round map


@dataclass(frozen=True)
class SearchResult:
    """What the search found.

    Args:
        poses: of all particles against the map of all.
        half_poses: of all particles, each against the map of its half: for half maps that share nothing.
        half_set: 1 or 2 per particle.
        confidence: probability of the most probable pose (rlnMaxValueProbDistribution).
        rotation_sigma_rad: width of the posterior around it.
        maps: posterior-weighted maps, where the search reached Nyquist of the stored images; None where they are
            still to be made from the poses.
        figures: for ``job.json`` and the report.
        decoded: the map of an implicit decoder fitted to the poses; None where none was asked for.
    """

    poses: Poses
    half_poses: Poses
    half_set: Int[Tensor, " particles"]
    confidence: Float[Tensor, " particles"]
    rotation_sigma_rad: Float[Tensor, " particles"]
    maps: KnownReconstruction | None
    figures: dict[str, float]
    decoded: Volume | None = None


def search_poses(
    config: ReconstructConfig, dataset: ParticleDataset, device: torch.device, keep: Keep = run_anew
) -> Generator[Event, None, SearchResult]:
    """Find the structure from noise.

    Args:
        config: what to do.
        dataset: the particles, at the box where poses are inferred.
        device: where to compute.
        keep: of finished steps.

    Raises:
        DivergedError: nothing was found.
    """
    images = yield from read_images(dataset, device)
    half_set = split_half_sets(len(dataset), stream_generator(config.seed, Stream.HALF_SETS))
    settled, settings = yield from settle_from_noise(config, dataset, images, half_set, keep=keep)
    state = yield from keep("grown", follow(grow(settled, images, settings, seed=config.seed)))
    state = yield from keep("looked_again", _look_again(state, images, settings, config.seed))
    polished = follow(polish(state, images, settings, iterations=_polishing(config, images)))
    halves = yield from keep("polished", polished)
    yield from require_structure(config, dataset, images, settled, halves)
    joint = yield from keep("finished", follow(finish(halves, images, settings, seed=config.seed)))
    refined = yield from look_at_all(joint, images, settings, seed=config.seed)
    shared = dataset.box_size_px * dataset.pixel_size_angstrom / max(settings.settled_shells)
    yield Note(
        f"The half maps began with one map, up to {shared:.0f} Angstrom, and shared nothing since: "
        "only beyond it is their FSC a gold standard."
    )
    yield from check_hand(joint, dataset)
    result = collect(dataset, halves, joint, refined, searched_shell=settings.searched_shell)
    decoded = yield from decode_map(config, dataset, images, joint, refined)
    return replace(result, decoded=decoded)


def settle_from_noise(
    config: ReconstructConfig, dataset: ParticleDataset, images: ObservedImages, half_set: Int[Tensor, " particles"],
    *, keep: Keep = run_anew,
) -> Generator[Event, None, tuple[GrowthState, GrowthSettings]]:  # fmt: skip
    """From random starts to a joint map at low resolution, before the halves part; its axes those of its symmetry.

    Args:
        config: what to do.
        dataset: pixel size and box of the particles.
        images: those that are searched.
        half_set: 1 or 2 for each of them.
        keep: of finished steps.

    Raises:
        DivergedError: nothing was found.
    """
    settings = build_growth_settings(config, dataset)
    # Without symmetry until its axes are known: pseudo-symmetric maps must not be trapped in it.
    small, free = _at_low_resolution(images, settings)
    for attempt in range(MOST_ATTEMPTS):
        state = yield from choose_start(config, dataset, small, free, half_set, attempt=attempt, keep=keep)
        state = yield from keep(f"settled_{attempt}", follow(settle(state, small, free, seed=config.seed)))
        state = yield from _look_again(state, small, free, config.seed)
        state = enlarge(state, images.plane.box_size_px)
        score = _mixed_hands(state, dataset, min(state.radius, settings.searched_shell))
        if score is None or attempt == MOST_ATTEMPTS - 1:
            break
        yield Note(f"The map shows both hands (score {score:.2f}): once more, from other random starts.")
    if config.search.symmetry != "C1":
        state = yield from _place_axes(config, dataset, state)
    return state, settings


def _at_low_resolution(images: ObservedImages, settings: GrowthSettings) -> tuple[ObservedImages, GrowthSettings]:
    """Images and settings of the joint iterations: without symmetry, and in a smaller box where that saves work."""
    settings = replace(settings, symmetry=torch.eye(3)[None])
    n, box = images.plane.box_size_px, 2 * (_JOINT_OVERSAMPLING * max(settings.settled_shells) // 2)
    if box > _WORTH_CROPPING * n:
        return images, settings
    last, ratio = box // 2 - 1, box / n
    cropped = replace(
        settings,
        searched_shell=min(settings.searched_shell, last),
        shift_sigma_px=settings.shift_sigma_px * ratio,
    )
    return images.within(last, box), cropped


def read_images(dataset: ParticleDataset, device: torch.device) -> Generator[Event, None, ObservedImages]:
    """All particles, as a search needs them."""
    parts = []
    for done, part in observe_all(dataset, device):
        parts.append(part)
        yield Progress("reading", done, len(dataset))
    return join(parts)


def look_at_all(
    joint: GrowthState, images: ObservedImages, settings: GrowthSettings, *, seed: int
) -> Generator[Event, None, RefinedPoses]:
    """Final poses, up to the last shell: refined locally, those that fit worst after a second look at every pose.

    Args:
        joint: all particles against the map of all.
        images: all of them.
        settings: as for the search.
        seed: of the run.
    """
    yield Progress("second look", 0, 1)
    look = look_again(joint, images, settings, images.plane.box_size_px // 2 - 1, seed=seed)
    yield Progress("second look", 1, 1, {"changed": float(look.changed.float().mean())})
    return look.refined


def _look_again(
    state: GrowthState, images: ObservedImages, settings: GrowthSettings, seed: int
) -> Generator[Event, None, GrowthState]:
    if settings.shift_sigma_px == 0:  # all shifts are known, and every pose is looked at in every iteration
        return state
    yield Progress("second look", 0, 1)
    state = with_second_look(state, images, settings, seed=seed)
    yield Progress("second look", 1, 1)
    return state


def _place_axes(
    config: ReconstructConfig, dataset: ParticleDataset, state: GrowthState
) -> Generator[Event, None, GrowthState]:
    """Turn the map to the axes of its point group and average it over the group; shifts follow the new centre."""
    name, pixel = config.search.symmetry, dataset.pixel_size_angstrom
    volume = Volume(state.maps[0].cpu(), pixel)
    fit = find_symmetry(volume, name)
    yield Note(f"Symmetry {name}: the map agrees with its turned copies with a correlation of {fit.correlation:.2f}.")
    imposed = impose_symmetry(volume, name, fit).values.to(state.maps[0])
    rotations = state.rotations @ fit.rotation.T.to(state.rotations)
    moved = (rotations @ (fit.shift_angstrom / pixel).to(rotations))[:, :2]
    return replace(state, maps=(imposed, imposed), rotations=rotations, shifts_px=state.shifts_px + moved)


def _polishing(config: ReconstructConfig, images: ObservedImages) -> int:
    """Local iterations, where the search cannot reach the last shell."""
    last = images.plane.box_size_px // 2 - 1
    return config.search.polishing_iterations if last > config.search.searched_shell else 0


def require_structure(
    config: ReconstructConfig,
    dataset: ParticleDataset,
    images: ObservedImages,
    settled: GrowthState,
    halves: GrowthState,
) -> Generator[Event, None, None]:
    """Stop where nothing shows that the map is right: neither the half maps, nor another random start.

    Args:
        config: what to do.
        dataset: pixel size and box of the particles.
        images: those that were searched.
        settled: the state before the halves parted.
        halves: the half sets at their end.

    Raises:
        DivergedError: there is no structure.
    """
    if halves.reliable_shell < _LEAST_SHELL:
        raise DivergedError(
            f"the search found no structure: the independent half maps agree to shell {halves.reliable_shell} only",
            f"Expected a map that both halves of the particles show to shell {_LEAST_SHELL} at least",
            "Try another --seed, or more or cleaner particles, and check CTF, contrast and pixel size",
        )
    settings = build_growth_settings(config, dataset)
    shared, last = max(settings.settled_shells), dataset.box_size_px // 2 - 1
    # One shell more is what a mask makes of the shells that they share.
    if halves.reliable_shell <= min(shared + 1, last - 1) and config.search.starts > 1:
        yield from require_repeat(config, dataset, *_at_low_resolution(images, settings), settled)


def check_hand(joint: GrowthState, dataset: ParticleDataset) -> Generator[Event, None, None]:
    """Say what is known of the hand, and warn of mixed hands."""
    score = _mixed_hands(joint, dataset, joint.reliable_shell)
    if score is not None:
        yield Note(
            f"The map has a mirror plane or an inversion centre (score {score:.2f}): {MIXED_HANDS_WARNING}. "
            "Run again with another --seed and compare.",
            "warning",
        )
    yield Note(
        "The hand of the map cannot be told from projections: its mirror image explains the particles equally well "
        "(--both-hands writes both)."
    )


def _mixed_hands(state: GrowthState, dataset: ParticleDataset, shell: int) -> float | None:
    """The score of the map's best mirror plane or inversion centre, where it is the sign of mixed hands."""
    if shell < _MIXED_FROM_SHELL:
        return None
    score = planar_symmetry_score(Volume(state.maps[0].cpu(), dataset.pixel_size_angstrom))
    return score if score > MIXED_HANDS_SCORE else None


def collect(
    dataset: ParticleDataset, halves: GrowthState, joint: GrowthState, refined: RefinedPoses, *, searched_shell: int
) -> SearchResult:
    """What is handed on: poses of all particles, those of the halves, figures; maps where all shells were searched.

    Args:
        dataset: the particles, at the box where poses were inferred.
        halves: the half sets at their end.
        joint: all particles against one map.
        refined: poses of all particles.
        searched_shell: up to which the joint sums reach, 0 where there are none; beyond it they hold nothing.
    """
    pixel, n = dataset.pixel_size_angstrom, dataset.box_size_px
    poses, half_poses = (Poses(part.rotations.cpu(), part.shifts_px.cpu() * pixel) for part in (refined, halves))
    is_searched = n == dataset.table.box_size_px and searched_shell >= n // 2 - 1
    sigma, confidence = refined.rotation_sigma_rad.cpu(), joint.confidence.cpu()
    figures = {
        "log_evidence": float(joint.log_evidence.mean()),
        "median_rotation_sigma_deg": math.degrees(float(sigma.median())),
    }
    maps = _maps(halves, joint, pixel) if is_searched else None
    return SearchResult(poses, half_poses, halves.half_set.cpu(), confidence, sigma, maps, figures)


def _maps(halves: GrowthState, joint: GrowthState, pixel_size_angstrom: float) -> KnownReconstruction:
    """Maps from the posterior-weighted sums, unfiltered but for that of all particles."""
    if halves.sums is None or joint.sums is None:
        raise ValueError("there are no sums before the first iteration")
    first, second = (Volume(sums.reconstruct().cpu(), pixel_size_angstrom) for sums in halves.sums)
    every = Volume((joint.sums[0] + joint.sums[1]).reconstruct().cpu(), pixel_size_angstrom)
    return filter_by_halves(every, HalfMaps(first, second))
