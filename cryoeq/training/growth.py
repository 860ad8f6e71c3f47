"""From a first map to the limit of the data: two independent half sets, refined shell by shell.

Each iteration poses every image against the map of its own half and makes that map anew; the halves' correlation says
how far the next iteration may look and how much of each shell is signal. Up to a radius the posterior over the whole
of SO(3) is summed; beyond it, or where that would cost too much, poses are refined locally. The halves never
share a map again after the first one, which is why their correlation can be trusted.

Independent halves: Scheres and Chen 2012, Nature Methods 9, 853-854. Weights from their correlation: Rosenthal and
Henderson 2003, J. Mol. Biol. 333, 721-745.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.events import Progress
from cryoeq.domain.processes import of_first, share_of_half
from cryoeq.domain.randomness import Stream, stream_generator
from cryoeq.geometry.disk_harmonics import disk_harmonics
from cryoeq.geometry.fourier import fft_map, ifft_map, pad_centred
from cryoeq.geometry.shells import fourier_shell_correlation
from cryoeq.geometry.so3 import random_rotations
from cryoeq.geometry.so3_grid import so3_grid
from cryoeq.physics.backprojection import WienerBackprojection
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.training.basin import Basin, low_pass, soft_sphere, support_radius
from cryoeq.training.expectation import Expectation, Posterior, expect, hexagonal_trials
from cryoeq.training.local_refinement import Reference, RefinedPoses, refine_poses
from cryoeq.training.observed_images import ObservedImages, shell_precision
from cryoeq.training.view_scores import PoseGrid, ViewScores

_FSC_RANGE = (1e-3, 0.999)
_RELIABLE = 0.143
_AHEAD = 2  # shells beyond the last reliable one that are looked at
_COARSE_SHELL = 10  # up to which views 15 degrees apart will do, and several shifts of each image are tried
_STEP = 4  # shells that the radius grows by at most
_GAIN, _PATIENCE = 0.003, 3  # relative growth of the evidence that counts, and iterations without it
_SHIFT_STEPS = 2  # of local refinement after each iteration, which is for the shifts
_SHIFT_FADING = 3.5  # trial shifts are the box over this and the radius apart
_INPLANE_PER_SHELL = 2.4  # half as many in-plane angles as this times the radius


@dataclass(frozen=True)
class GrowthSettings:
    """How to refine.

    Args:
        iterations: over the whole of SO(3), of the half sets.
        searched_shell: largest radius of those, in cycles per box.
        settled_shells: radii of the joint iterations before the halves part.
        further_iterations: as many more at the last of these radii, at most, while the evidence grows.
        settled_images: how many images take part in them, at most.
        n_shifts: trial shifts of each image while the radius is small.
        shift_sigma_px: spread of the shifts per axis; 0 for centred particles.
        particle_radius: of the mask, as a fraction of the box.
        symmetry: rotations of the point group; the identity alone for C1.
    """

    iterations: int
    searched_shell: int
    settled_shells: tuple[int, ...]
    further_iterations: int
    settled_images: int
    n_shifts: int
    shift_sigma_px: float
    particle_radius: float
    symmetry: Float[Tensor, "order 3 3"]


@dataclass(frozen=True)
class GrowthState:
    """Where the refinement stands.

    Args:
        maps: of the two half sets, filtered by their correlation.
        half_set: 1 or 2 per particle.
        rotations: most probable so far.
        shifts_px: most probable so far.
        confidence: probability of the most probable pose.
        log_evidence: of each image.
        fsc: correlation of the unfiltered half maps, within the mask.
        radius: of the next iteration.
        iteration: how many are done.
        sums: of the last iteration, from which the maps were made; None before the first.
    """

    maps: tuple[Float[Tensor, "n n n"], Float[Tensor, "n n n"]]
    half_set: Int[Tensor, " particles"]
    rotations: Float[Tensor, "particles 3 3"]
    shifts_px: Float[Tensor, "particles 2"]
    confidence: Float[Tensor, " particles"]
    log_evidence: Float[Tensor, " particles"]
    fsc: Float[Tensor, " shells"]
    radius: int
    iteration: int
    sums: tuple[WienerBackprojection, WienerBackprojection] | None = None

    @property
    def reliable_shell(self) -> int:
        """The last shell before the halves' correlation drops below 0.143."""
        below = (self.fsc[1:] < _RELIABLE).nonzero()
        return int(below[0]) if len(below) else len(self.fsc) - 1


Steps = Generator[tuple[Progress, GrowthState], None, GrowthState]


def begin_growth(
    basin: Basin,
    images: ObservedImages,
    half_set: Int[Tensor, " particles"],
    settings: GrowthSettings,
    first_shell: int,
) -> GrowthState:
    """Both halves at the first map."""
    n, device = images.plane.box_size_px, images.matched.device
    volume = ifft_map(pad_centred(fft_map(basin.volume), n, 3)) * _mask(n, settings, device)
    count = len(images)
    nothing = torch.zeros(count, device=device)
    return GrowthState(
        maps=(volume, volume),
        half_set=half_set.to(device),
        rotations=torch.eye(3, device=device).repeat(count, 1, 1),
        shifts_px=basin.shifts_px,
        confidence=nothing,
        log_evidence=nothing,
        fsc=torch.zeros(n // 2 + 1, device=device),
        radius=first_shell,
        iteration=0,
    )


def enlarge(state: GrowthState, box_size_px: int) -> GrowthState:
    """The state in a larger box: the same maps and poses, nothing known beyond the smaller one's shells.

    Args:
        state: in any box.
        box_size_px: of the particles.
    """
    n = state.maps[0].shape[-1]
    if n == box_size_px:
        return state
    first, second = (ifft_map(pad_centred(fft_map(volume), box_size_px, 3)) for volume in state.maps)
    fsc = torch.nn.functional.pad(state.fsc, (0, box_size_px // 2 - n // 2))
    return replace(state, maps=(first, second), shifts_px=state.shifts_px * (box_size_px / n), fsc=fsc, sums=None)


def settle(state: GrowthState, images: ObservedImages, settings: GrowthSettings, *, seed: int) -> Steps:
    """Joint iterations at low resolution, on at most ``settled_images`` particles, until the evidence stands still."""
    order = torch.randperm(len(images), generator=stream_generator(seed, Stream.BASIN_IMAGES))
    rows = order[: settings.settled_images].to(state.half_set.device)
    for radius in settings.settled_shells:
        state = yield from _iterate(replace(state, radius=radius), images, settings, seed=seed, joint_rows=rows)
    best, waited = float(state.log_evidence[rows].mean()), 0
    for _ in range(settings.further_iterations):
        if waited == _PATIENCE:
            break
        state = yield from _iterate(state, images, settings, seed=seed, joint_rows=rows)
        evidence = float(state.log_evidence[rows].mean())
        waited = 0 if evidence > best + _GAIN * abs(best) else waited + 1
        best = max(best, evidence)
    return state


def grow(state: GrowthState, images: ObservedImages, settings: GrowthSettings, *, seed: int) -> Steps:
    """Iterate over the half sets; the state after each iteration, or within one the state before it.

    The sums of the last iteration reach the last shell that is searched, even where its poses come from fewer shells.
    """
    for left in reversed(range(settings.iterations)):
        state = yield from _iterate(state, images, settings, seed=seed, sums_to_end=left == 0)
    return state


def finish(state: GrowthState, images: ObservedImages, settings: GrowthSettings, *, seed: int) -> Steps:
    """One iteration of all images against the mean of both maps, whose poses are better than those of the halves."""
    merged = (state.maps[0] + state.maps[1]) / 2
    every = torch.arange(len(images), device=state.half_set.device)
    state = replace(state, maps=(merged, merged))
    return (yield from _iterate(state, images, settings, seed=seed, joint_rows=every, sums_to_end=True))


def refine_locally(
    images: ObservedImages, maps: tuple[Float[Tensor, "n n n"], Float[Tensor, "n n n"]], state: GrowthState,
    radius: int, shift_sigma_px: float, *, steps: int = 5,
) -> RefinedPoses:  # fmt: skip
    """Poses of all images at the nearest maximum of their likelihood, each against the map of its half.

    Args:
        images: all of them.
        maps: of the two half sets.
        state: half sets, and poses to start from.
        radius: up to which images and maps are compared.
        shift_sigma_px: spread of the shifts per axis; 0 leaves them as they are.
        steps: of Gauss and Newton.
    """
    parts, rows = [], []
    n = images.plane.box_size_px
    for half, volume in enumerate(maps, 1):
        chosen = (state.half_set == half).nonzero().squeeze(1)
        part = images.within(radius, n).rows(chosen)
        reference = Reference.build(volume, part.plane, map_precision(images, volume, part))
        parts.append(
            refine_poses(
                part,
                reference,
                state.rotations[chosen],
                state.shifts_px[chosen],
                shift_sigma_px=shift_sigma_px,
                steps=steps,
            )
        )
        rows.append(chosen)
    order = torch.cat(rows).argsort()
    return RefinedPoses.join(parts).rows(order)


def _iterate(
    state: GrowthState,
    images: ObservedImages,
    settings: GrowthSettings,
    *,
    seed: int,
    joint_rows: Int[Tensor, " rows"] | None = None,
    sums_to_end: bool = False,
) -> Steps:
    """Pose images against the map of their half, and make the maps anew; jointly where rows are given."""
    n, radius = images.plane.box_size_px, min(state.radius, settings.searched_shell)
    # Shells beyond the radius add nothing to the scores, since the maps have nothing there, but belong to the sums.
    reach = settings.searched_shell if sums_to_end else radius
    part = images.within(reach, n)
    harmonics = disk_harmonics(n, reach, support_radius(settings.particle_radius, n), part.matched.device)
    generator = stream_generator(seed, Stream.GROWTH, state.iteration)
    grid = pose_grid(radius, generator, part.matched.device)
    n_shifts = settings.n_shifts if radius <= _COARSE_SHELL else 1
    stage = "refining the halves" if joint_rows is None else "refining all"
    every = torch.arange(len(images), device=state.half_set.device) if joint_rows is None else joint_rows
    halves = [every[state.half_set[every] == half] for half in (1, 2)]
    own = [share_of_half(rows, half) for half, rows in enumerate(halves, 1)]
    posteriors = [Posterior.of_none(state.half_set.device)]
    sums = [WienerBackprojection.empty(n, device=part.matched.device) for _ in own]
    for half, rows in enumerate(own):
        spacing = n / (_SHIFT_FADING * radius)
        trials = hexagonal_trials(state.shifts_px[rows], spacing, n_shifts, generator)
        if len(rows) == 0:  # another process's
            continue
        volume = state.maps[half]
        scores = ViewScores.build(volume, grid, harmonics, map_precision(images, volume, part))
        result: Expectation | None = None
        for done, found in expect(part.rows(rows), scores, trials, shift_sigma_px=settings.shift_sigma_px):
            result = found
            yield Progress(stage, half * len(own[0]) + done, len(own[0]) + len(own[1])), state
        if result is None:
            raise ValueError("a half set is empty")
        posteriors.append(result.posterior)
        sums[half] = WienerBackprojection(n, 2, scores.insert(result.sums, 2 * n, settings.symmetry))
    posterior = Posterior.join(posteriors).gathered(torch.cat(own), len(images))
    state = _with_posterior(state, posterior, torch.cat(halves))
    first, second = (part.of_all_processes() for part in sums)
    state = with_maps(state, (first, second), settings, reach, is_joint=joint_rows is not None)
    if settings.shift_sigma_px > 0:
        refined = refine_locally(images, state.maps, state, radius, settings.shift_sigma_px, steps=_SHIFT_STEPS)
        state = replace(state, shifts_px=refined.shifts_px)
    state = replace(state, iteration=state.iteration + 1)
    yield Progress(stage, len(every), len(every), _figures(state, torch.cat(halves))), state
    return state


def pose_grid(radius: int, generator: torch.Generator, device: torch.device) -> PoseGrid:
    """A grid as fine as a radius needs, turned at random."""
    order = 2 if radius <= _COARSE_SHELL else 3
    offset = 2 * math.pi * float(torch.rand(1, generator=generator))
    return PoseGrid.build(
        order, 2 * round(_INPLANE_PER_SHELL * radius), random_rotations(1, generator, device)[0], offset
    )


def _with_posterior(state: GrowthState, posterior: Posterior, rows: Int[Tensor, " rows"]) -> GrowthState:
    """What is known of all particles, anew for some rows."""
    return replace(
        state,
        rotations=state.rotations.index_copy(0, rows, posterior.rotations[rows]),
        shifts_px=state.shifts_px.index_copy(0, rows, posterior.shifts_px[rows]),
        confidence=state.confidence.index_copy(0, rows, posterior.confidence[rows]),
        log_evidence=state.log_evidence.index_copy(0, rows, posterior.log_evidence[rows]),
    )


def with_maps(
    state: GrowthState,
    sums: tuple[WienerBackprojection, WienerBackprojection],
    settings: GrowthSettings,
    radius: int,
    *,
    is_joint: bool,
) -> GrowthState:
    """Maps from sums, weighted by how well the halves agree; jointly one map for both."""
    n = sums[0].box_size_px
    mask = _mask(n, settings, state.rotations.device)
    raw = [part.most_probable(1e-3 * part.shell_weights.clamp(min=1e-12)) * mask for part in sums]
    fsc = of_first(fourier_shell_correlation(raw[0], raw[1]).to(mask))
    fsc[radius + 1 :] = 0.0  # there is only what the mask brings there
    signal_to_noise = _signal_to_noise(fsc)[: n // 2]

    def filtered(part: WienerBackprojection, ratio: Tensor) -> Tensor:
        return of_first(low_pass(part.most_probable((part.shell_weights / ratio).clamp(min=1e-12)) * mask, radius))

    if is_joint:
        merged = filtered(sums[0] + sums[1], 2 * signal_to_noise)
        return replace(state, maps=(merged, merged), sums=sums)
    maps = (filtered(sums[0], signal_to_noise), filtered(sums[1], signal_to_noise))
    state = replace(state, maps=maps, fsc=fsc, sums=sums)
    ahead = min(state.reliable_shell + _AHEAD, radius + _STEP, n // 2 - 1)
    return replace(state, radius=max(state.radius, ahead))


def _signal_to_noise(fsc: Float[Tensor, " shells"]) -> Float[Tensor, " shells"]:
    """Of a half map, per shell; shell 0 is a single number and says nothing, so it is taken as its neighbour."""
    reliable = torch.cat([fsc[1:2], fsc[1:]]).clamp(*_FSC_RANGE)
    return reliable / (1 - reliable)


def map_precision(
    images: ObservedImages, volume: Float[Tensor, "n n n"], part: ObservedImages
) -> Float[Tensor, " points"]:
    """Inverse noise variance of each coefficient of ``part``, given a map of all images."""
    # The steps between shells are too coarse for the first ones: power falls steeply within them.
    projections = extract_slices(prepare_slices(volume), so3_grid(1, 1, device=volume.device), images.plane)
    noise = images.noise_variance(projections.abs().square().mean(0))
    return shell_precision(noise)[part.plane.shells]


def _mask(n: int, settings: GrowthSettings, device: torch.device) -> Float[Tensor, "n n n"]:
    return soft_sphere(n, settings.particle_radius * n - 1, 3.0, device)


def _figures(state: GrowthState, rows: Int[Tensor, " rows"]) -> dict[str, float]:
    return {
        "radius": float(state.radius),
        "reliable shell": float(state.reliable_shell),
        "log evidence": float(state.log_evidence[rows].mean()),
        "confidence": float(state.confidence[rows].mean()),
    }
