"""A second look at the particles that fit worst: every pose and every shift, whatever they were given before.

Iterations follow each particle's shift only a little way, and a wrong pose has a best shift of its own, so some
particles are trapped between the two. Against a good map they stand out by their low evidence.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoeq.domain.processes import share_of
from cryoeq.domain.randomness import Stream, stream_generator
from cryoeq.geometry.disk_harmonics import disk_harmonics
from cryoeq.training.basin import support_radius
from cryoeq.training.expectation import Posterior, disk_trials, expect
from cryoeq.training.growth import GrowthSettings, GrowthState, map_precision, pose_grid
from cryoeq.training.local_refinement import Reference, RefinedPoses, refine_poses
from cryoeq.training.observed_images import ObservedImages
from cryoeq.training.view_scores import ViewScores

_SHELL = 10  # radius of the search, and of the first local refinement, which starts from a coarse grid
_SHARE = 1 / 3  # of the particles, those with the lowest evidence
_REACH = 3.0  # of the spread of the shifts
_FADING = 2.5  # trial shifts are the box over this and the radius apart


@dataclass(frozen=True)
class SecondLook:
    """Poses after the second look.

    Args:
        refined: of all particles, the better of both poses.
        changed: where it is the new one.
    """

    refined: RefinedPoses
    changed: Bool[Tensor, " particles"]


def look_again(
    state: GrowthState, images: ObservedImages, settings: GrowthSettings, radius: int, *, seed: int
) -> SecondLook:
    """Refine all poses locally, and search for better ones of the particles that fit worst.

    Args:
        state: maps, poses and evidence so far.
        images: all of them.
        settings: as for the iterations.
        radius: of the local refinement that decides.
        seed: of the run.
    """
    generator = stream_generator(seed, Stream.SECOND_LOOK, state.iteration)
    halves = [(state.half_set == half).nonzero().squeeze(1) for half in (1, 2)]
    parts: list[RefinedPoses] = []
    changes: list[Tensor] = []
    for rows, volume in zip(halves, state.maps, strict=True):
        before = _refine(images, rows, volume, (state.rotations[rows], state.shifts_px[rows]), radius, settings)
        count = round(_SHARE * len(rows)) if settings.shift_sigma_px > 0 else 0
        worst = state.log_evidence[rows].argsort()[:count]
        if count:
            found = search_rows(images, rows[worst], volume, settings, generator)
            start = (found.rotations, found.shifts_px)
            middle = _refine(images, rows[worst], volume, start, min(_SHELL, radius), settings)
            start = (middle.rotations, middle.shifts_px)
            after = _refine(images, rows[worst], volume, start, radius, settings)
            better = after.log_likelihood > before.log_likelihood[worst]
            before = _replace_rows(before, worst[better], after, better)
            changes.append(rows[worst[better]])
        parts.append(before)
    order = torch.cat(halves).argsort()
    changed = torch.zeros_like(state.half_set, dtype=torch.bool)
    changed[torch.cat([*changes, order[:0]])] = True
    return SecondLook(RefinedPoses.join(parts).rows(order), changed)


def with_second_look(state: GrowthState, images: ObservedImages, settings: GrowthSettings, *, seed: int) -> GrowthState:
    """The state with the poses and shifts that a second look at its own radius finds better; others stay."""
    radius = min(state.radius, settings.searched_shell)
    look = look_again(state, images, settings, radius, seed=seed)
    return replace(
        state,
        rotations=torch.where(look.changed[:, None, None], look.refined.rotations, state.rotations),
        shifts_px=torch.where(look.changed[:, None], look.refined.shifts_px, state.shifts_px),
    )


def _refine(
    images: ObservedImages,
    rows: Int[Tensor, " rows"],
    volume: Float[Tensor, "n n n"],
    start: tuple[Tensor, Tensor],
    radius: int,
    settings: GrowthSettings,
) -> RefinedPoses:
    part = images.within(radius, images.plane.box_size_px)
    reference = Reference.build(volume, part.plane, map_precision(images, volume, part))
    return refine_poses(part.rows(rows), reference, *start, shift_sigma_px=settings.shift_sigma_px)


def search_rows(
    images: ObservedImages,
    rows: Int[Tensor, " rows"],
    volume: Float[Tensor, "n n n"],
    settings: GrowthSettings,
    generator: torch.Generator,
) -> Posterior:
    """The most probable of all poses and shifts, at low resolution."""
    n = images.plane.box_size_px
    radius = min(_SHELL, settings.searched_shell)
    part = images.within(radius, n)
    device = volume.device
    harmonics = disk_harmonics(n, radius, support_radius(settings.particle_radius, n), device)
    grid = pose_grid(radius, generator, device)
    scores = ViewScores.build(volume, grid, harmonics, map_precision(images, volume, part))
    spacing = n / (_FADING * radius)
    reach = _REACH * settings.shift_sigma_px
    trials = (
        disk_trials(reach, spacing, len(rows), generator, device)
        if reach > 0
        else torch.zeros(len(rows), 1, 2, device=device)
    )
    own = share_of(torch.arange(len(rows), device=rows.device))
    *_, (_, result) = expect(part.rows(rows[own]), scores, trials[own], shift_sigma_px=settings.shift_sigma_px)
    if result is None:
        raise ValueError("there are no images")
    return result.posterior.gathered(own, len(rows))


def _replace_rows(
    poses: RefinedPoses, rows: Int[Tensor, " rows"], others: RefinedPoses, keep: Bool[Tensor, " others"]
) -> RefinedPoses:
    return RefinedPoses(
        *(
            getattr(poses, name).index_copy(0, rows, getattr(others, name)[keep])
            for name in RefinedPoses.__dataclass_fields__
        )
    )
