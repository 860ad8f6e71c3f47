"""Multi-start: random restarts of the initial model until the best one is reproduced."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.events import Event, Note
from cryoeq.domain.volume import Volume
from cryoeq.errors import DivergedError
from cryoeq.geometry.disk_harmonics import disk_harmonics, support_radius
from cryoeq.geometry.fourier import crop_centred, fft_map, ifft_map
from cryoeq.geometry.pointgroup import frames_of_polyhedral_group
from cryoeq.geometry.shells import fourier_shell_correlation, remove_round_part
from cryoeq.maps.alignment import align_map, mirror_map, rotate_map
from cryoeq.reconstruction.expectation import EStep, expectation_step, pose_posterior
from cryoeq.reconstruction.half_set_refinement import begin_refinement, consensus_rows, refine_consensus
from cryoeq.reconstruction.initial_model import InitialModel, estimate_initial_model
from cryoeq.reconstruction.noise_model import shell_precision
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.pose_likelihood import PoseLikelihood, pose_grid
from cryoeq.reconstruction.reference import Reference
from cryoeq.reconstruction.settings import AbInitioSettings
from cryoeq.reconstruction.state import Checkpointer, RefinementState, no_checkpoints
from cryoeq.runtime.device import torch_threads
from cryoeq.runtime.distributed import all_gather, shard
from cryoeq.runtime.random_streams import Stream, stream_generator

MAX_RESTARTS = 2  # multi-starts, where the map of the first is of mixed hands
_OVERSAMPLING = 3  # pixels of the consensus refinement's box per cycle of its last shell
_WORTH_CROPPING = 0.75  # fraction of the particles' box up to which that smaller box is used
_TRIAL_ITERATIONS = 3  # of consensus refinement, after which random starts are compared
# Mean FSC, without the spherical average that all maps of noise share, from which two starts found the same map: 0.94
# to 0.99 on 1WCM, 8BK7 (D2) and 7L2I (C4) at SNR 0.1, 0.31 to 0.40 on images of noise.
_MIN_FSC = 0.7
_SHELLS = slice(2, 7)
# A start that is better than all others by this much per particle, in nats, and by three times what these differ, is
# worth twice the starts: on a small stack with junk one start of four found 1WCM, 12.6 against 8.8, 8.8 and 9.0. Of
# images of noise four starts differ by 0.04 in all.
_STANDS_OUT, _TIMES_THEIR_RANGE = 0.5, 3.0
_COMPARISON = 2**31  # number of an iteration that no refinement reaches: all starts are compared on one grid
# Two consensus maps are compared where a wrong one has detail of its own: 0.97 on 1WCM at SNR 0.1, found; 0.25 at SNR
# 0.03, not found, where trial maps had agreed by 0.85 over the first shells.
MIN_DETAIL_FSC = 0.5
_DETAIL_SHELLS = slice(5, 11)

EStepFactory = Callable[[int], EStep]  # the E-step of a random start, or of another step of the run, by its number


def exhaustive_e_steps(number: int) -> EStep:
    """The E-step over all poses, which keeps nothing."""
    del number
    return expectation_step


def at_low_resolution(
    particles: ParticleTransforms, settings: AbInitioSettings
) -> tuple[ParticleTransforms, AbInitioSettings]:
    """Particles and settings of the consensus refinement, in a smaller box where that saves work.

    Without symmetry, unless it is imposed from the start.

    Args:
        particles: CTF-multiplied transforms of all particles.
        settings: settings of the reconstruction.
    """
    refinement = settings.refinement
    if not settings.starts_symmetric:
        # Without symmetry until its axes are known: pseudo-symmetric maps must not be trapped in it.
        refinement = replace(refinement, symmetry=torch.eye(3)[None])
    n, box = particles.plane.box_size_px, 2 * (_OVERSAMPLING * refinement.shared_shell // 2)
    if box > _WORTH_CROPPING * n:
        return particles, replace(settings, refinement=refinement)
    last, sigma_px = box // 2 - 1, refinement.shift_sigma_px * (box / n)
    max_shell = min(refinement.max_exhaustive_shell, last)
    cropped = replace(
        settings,
        refinement=replace(refinement, max_exhaustive_shell=max_shell, shift_sigma_px=sigma_px),
        initial_model=replace(
            settings.initial_model, last_shell=min(settings.initial_model.last_shell, last), shift_sigma_px=sigma_px
        ),
    )
    return particles.within(last, box), cropped


def run_multi_start(
    particles: ParticleTransforms,
    half_set: Int[Tensor, " particles"],
    settings: AbInitioSettings,
    *,
    restart: int = 0,
    checkpoint: Checkpointer = no_checkpoints,
    e_steps: EStepFactory = exhaustive_e_steps,
) -> Generator[Event, None, RefinementState]:
    """Random starts until that of the highest likelihood is reproduced; each is refined for a few iterations.

    Where the likelihood of the best stands out above all others, up to twice as many starts are made.

    Args:
        particles: CTF-multiplied transforms of all particles, in the box of the consensus refinement.
        half_set: half set of each particle, 1 or 2.
        settings: settings of the consensus refinement, from ``at_low_resolution``.
        restart: number of this multi-start, each with its own random starts.
        checkpoint: checkpointer that saves each start.
        e_steps: the E-step of each start.

    Raises:
        DivergedError: no two starts agree.
    """
    shells = settings.refinement.consensus_shells[:_TRIAL_ITERATIONS]
    trial = replace(settings, refinement=replace(settings.refinement, consensus_shells=shells, max_extra_iterations=0))
    candidates: list[tuple[float, RefinementState]] = []
    agreement, count = -1.0, settings.max_starts
    numbers = [*range(restart * count, (restart + 1) * count)]
    further = (2 * MAX_RESTARTS + 1 + restart) * count  # numbers that no other start has
    for start in numbers:
        state = yield from checkpoint(f"initial_model_{start}", _start(particles, half_set, trial, start, e_steps))
        candidates.append((log_likelihood_at_one_noise(state, particles, settings), state))
        candidates.sort(key=lambda candidate: -candidate[0])
        if len(candidates) >= settings.min_starts:
            last_shell = settings.initial_model.last_shell
            compared = _symmetric_shells(last_shell) if settings.starts_symmetric else _SHELLS
            best, *others = [_first_shells(candidate, last_shell) for _, candidate in candidates]
            agreement = max((_agreement(best, other, settings, compared, _MIN_FSC) for other in others), default=1.0)
        if agreement > _MIN_FSC:
            break
        if len(candidates) == count and _stands_out([value for value, _ in candidates]):
            numbers.extend(range(further, further + count))  # the loop goes on with these
    if len(candidates) > 1:
        values = ", ".join(f"{value:.2f}" for value, _ in candidates)
        yield Note(
            f"{len(candidates)} random starts, log-likelihood per particle {values} (higher is better); mean FSC of "
            f"the best with another: {agreement:.2f}."
        )
    _require_agreement(agreement, len(candidates))
    return candidates[0][1]


def _stands_out(values: list[float]) -> bool:
    """Whether the first of some log-likelihoods, in falling order, is far above all others."""
    if len(values) < 3:
        return False
    best, second, last = values[0], values[1], values[-1]
    return best - second > max(_STANDS_OUT, _TIMES_THEIR_RANGE * (second - last))


def log_likelihood_at_one_noise(
    state: RefinementState, particles: ParticleTransforms, settings: AbInitioSettings
) -> float:
    """Mean log-likelihood per particle of a map, at a noise that is the same for all maps.

    The noise that a map leaves of the particles is its own: the likelihoods of two maps, each at its own noise, say
    which has the lower noise in its first shells, not which is right. At the variance of the images, signal included,
    they can be compared.

    Args:
        state: map and offsets of the particles.
        particles: CTF-multiplied transforms of all particles, of which as many take part as in the consensus
            refinement.
        settings: settings of the reconstruction.
    """
    refinement, n, device = settings.refinement, particles.plane.box_size_px, particles.device
    radius = min(state.radius, refinement.max_exhaustive_shell)
    harmonics = disk_harmonics(n, radius, support_radius(refinement.mask_radius, n), device)
    generator = stream_generator(settings.seed, Stream.REFINEMENT, _COMPARISON)
    grid = pose_grid(radius, generator, device, refinement.symmetry)
    precision = shell_precision(particles.total_variance)[harmonics.plane.shells]
    likelihood = PoseLikelihood.build(Reference.build(state.reference.mean, precision), grid, harmonics)
    rows = consensus_rows(particles, refinement, seed=settings.seed)
    local = shard(rows)
    offsets = state.poses.shifts_px[local][:, None]
    posterior = pose_posterior(
        particles.within(radius, n), likelihood, offsets, rows=local, shift_sigma_px=refinement.shift_sigma_px
    )
    return float(all_gather(posterior, local, len(particles)).log_evidence[rows].mean())


def verify_with_another_start(
    particles: ParticleTransforms, found: RefinementState, settings: AbInitioSettings
) -> Generator[Event, None, None]:
    """Run a whole new ab initio reconstruction up to the consensus, and stop where it ends in another map.

    Args:
        particles: CTF-multiplied transforms of all particles, in the box of the consensus refinement.
        found: state after the consensus refinement to be verified.
        settings: settings of the consensus refinement, from ``at_low_resolution``.

    Raises:
        DivergedError: the maps differ in their detail.
    """
    unused = MAX_RESTARTS * settings.max_starts
    state = yield from _start(particles, found.half_set, settings, unused)
    agreement = detail_agreement(found, state, settings)
    shared = settings.refinement.resolution_angstrom(settings.refinement.shared_shell)
    doubt = f"the half maps agree no further than {shared:.0f} Å, up to which they shared a reference"
    if agreement < MIN_DETAIL_FSC:
        raise DivergedError(
            f"no structure was found: {doubt}, and another random start converged to a different map (mean FSC "
            f"{agreement:.2f} in its detail)",
            f"Expected half maps that agree beyond it, or a second map with a mean FSC of {MIN_DETAIL_FSC} or more",
            "Give more or cleaner particles; check CTF, contrast, pixel size and --shift-sigma",
        )
    yield Note(f"Although {doubt}, another random start converged to the same map (mean FSC {agreement:.2f}).")


def detail_agreement(found: RefinementState, other: RefinementState, settings: AbInitioSettings) -> float:
    """Mean FSC of two maps of two random starts, aligned, either hand, in shells where wrong ones differ.

    Args:
        found: one of them.
        other: the other.
        settings: settings of the consensus refinement.
    """
    last = settings.refinement.shared_shell
    maps = _first_shells(found, last), _first_shells(other, last)
    return _agreement(*maps, settings, _DETAIL_SHELLS, MIN_DETAIL_FSC)


def _start(
    particles: ParticleTransforms,
    half_set: Int[Tensor, " particles"],
    settings: AbInitioSettings,
    start: int,
    e_steps: EStepFactory = exhaustive_e_steps,
) -> Generator[Event, None, RefinementState]:
    """One random start: an initial model and its consensus refinement."""
    e_step = e_steps(start)
    model = yield from _initial_model(particles, settings, start, e_step)
    last_shell = settings.initial_model.last_shell
    state = begin_refinement(model, particles, half_set, settings.refinement, last_shell)
    return (yield from refine_consensus(state, particles, settings.refinement, seed=settings.seed, e_step=e_step))


def _initial_model(
    particles: ParticleTransforms, settings: AbInitioSettings, start: int, e_step: EStep
) -> Generator[Event, None, InitialModel]:
    first, seed = settings.initial_model, settings.seed
    with torch_threads(1):  # its tensors are so small that two threads would wait for each other
        return (yield from estimate_initial_model(particles, first, seed=seed, start=start, e_step=e_step))


def _first_shells(state: RefinementState, last_shell: int) -> Volume:
    cropped = ifft_map(crop_centred(fft_map(state.reference.mean.cpu()), 2 * (last_shell + 1), 3))
    return Volume(remove_round_part(cropped), 1.0)


def _symmetric_shells(last_shell: int) -> slice:
    """The shells in which what is not round in a symmetric map is to be seen."""
    return slice(last_shell // 2, last_shell + 1)


def _agreement(best: Volume, other: Volume, settings: AbInitioSettings, shells: slice, enough: float) -> float:
    """Mean FSC of two maps after alignment over rotation and shift; of the other hand too, where that is too little."""
    agreement = -1.0
    for moved in _placements(other, best, settings):
        agreement = max(agreement, float(fourier_shell_correlation(moved, best.values)[shells].mean()))
        if agreement > enough:
            break
    return agreement


def _placements(moving: Volume, fixed: Volume, settings: AbInitioSettings) -> Iterator[Float[Tensor, "n n n"]]:
    """A map as near to another as it may be, in its own hand and in the other one."""
    if settings.starts_symmetric and settings.is_polyhedral:  # both are on the axes of their group
        for hand in (moving.values, ifft_map(fft_map(moving.values).conj())):
            for frame in frames_of_polyhedral_group(settings.symmetry):
                yield rotate_map(hand, frame, torch.zeros(3))
    else:
        for candidate in (moving, replace(moving, values=mirror_map(moving.values))):
            yield align_map(candidate, fixed, with_hand=False).apply(candidate).values


def _require_agreement(agreement: float, count: int) -> None:
    if agreement < _MIN_FSC:
        raise DivergedError(
            f"ab initio reconstruction was not reproducible: {count} random starts converged to different maps (best "
            f"pairwise mean FSC {agreement:.2f})",
            f"Expected a mean FSC above {_MIN_FSC}; noise alone gives 0.3 to 0.4",
            "Check CTF, contrast, pixel size and --shift-sigma; give more or cleaner particles; or search longer: "
            "--set search.initial_model.iterations=600 --set search.multi_start.max=8",
        )
