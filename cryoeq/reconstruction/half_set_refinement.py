"""Refinement of two half sets: sharing a consensus map at low resolution, then independently to the limit of the data.

Each iteration poses every particle against the map of its half set (E-step) and makes that map again (M-step). The half
maps' correlation sets the radius of the next iteration and the weight of each shell. Up to a radius the posterior over
all orientations is summed; beyond it, or where that would cost too much, poses are refined locally. Once split, the
half sets never share a map again, which is why their correlation can be trusted.

Independent half sets: Scheres and Chen 2012, Nature Methods 9, 853-854.
"""

from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.events import Event, Progress
from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.disk_harmonics import disk_harmonics, support_radius
from cryoeq.geometry.fourier import fft_map, ifft_map, pad_centred
from cryoeq.geometry.pointgroup import split_over_lattice
from cryoeq.physics.backprojection import WienerBackprojection
from cryoeq.reconstruction.expectation import EStep, Posterior, expectation_step, hexagonal_offsets, offset_step_px
from cryoeq.reconstruction.initial_model import InitialModel
from cryoeq.reconstruction.local_refinement import MAX_STEPS, RefinedPoses, refine_poses
from cryoeq.reconstruction.maximization import maximization_step, particle_mask
from cryoeq.reconstruction.particle_scale import update_scales
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.pose_likelihood import COARSE_SHELL, PoseLikelihood, pose_grid
from cryoeq.reconstruction.reference import References
from cryoeq.reconstruction.state import ConsensusMap, ParticlePoses, RefinementSettings, RefinementState
from cryoeq.runtime.distributed import all_gather, shard, shard_half_set
from cryoeq.runtime.random_streams import Stream, stream_generator, to_device_async

CONSENSUS_STAGE = "consensus refinement"
HALF_SETS_STAGE = "half-set refinement"
LOCAL_STAGE = "local refinement"
FINAL_STAGE = "final iteration"
_TOLERANCE, _PATIENCE = 0.003, 3  # relative gain in log-likelihood that counts, and iterations without one
_OFFSET_REFINEMENT_STEPS = 2  # of local refinement after each iteration, which is for the offsets
_OFFSETS_PER_WAVELENGTH = 3.5
_CHUNK_POINTS = 2**20


@dataclass(frozen=True)
class Iteration:
    """Stage and number of an iteration, for progress.

    Args:
        stage: name of the stage.
        number: number of the iteration, from 1.
        count: iterations of the stage.
    """

    stage: str
    number: int = 1
    count: int = 1

    def progress(self, done: int, total: int, metrics: dict[str, float] | None = None, *, before: int = 0) -> Progress:
        """After some of the particles, beside those of the other half set."""
        iteration = (self.number, self.count) if self.count > 1 else None
        return Progress(self.stage, before + done, total, metrics or {}, iteration)


def begin_refinement(
    model: InitialModel,
    particles: ParticleTransforms,
    half_set: Int[Tensor, " particles"],
    settings: RefinementSettings,
    first_shell: int,
) -> RefinementState:
    """Both half sets at the initial model.

    Args:
        model: the initial model.
        particles: CTF-multiplied transforms of all particles.
        half_set: half set of each particle, 1 or 2.
        settings: settings of the refinement.
        first_shell: radius of the first iteration, in cycles per box.
    """
    n, device = particles.plane.box_size_px, particles.device
    volume = ifft_map(pad_centred(fft_map(model.volume), n, 3)) * particle_mask(n, settings, device)
    poses = replace(PoseSet.identity(len(particles), n, device), shifts_px=model.shifts_px)
    return RefinementState(
        reference=ConsensusMap(volume),
        half_set=half_set.to(device),
        particles=ParticlePoses.unknown(poses),
        fsc=torch.zeros(n // 2 + 1, device=device),
        radius=first_shell,
        iteration=0,
    )


def refine_consensus(
    state: RefinementState,
    particles: ParticleTransforms,
    settings: RefinementSettings,
    *,
    seed: int,
    e_step: EStep = expectation_step,
) -> Generator[Event, None, RefinementState]:
    """Iterations of all particles against one map at low resolution, until the log-likelihood converges.

    Args:
        state: state with one reference for both half sets.
        particles: CTF-multiplied transforms of all particles, of which ``max_particles`` take part.
        settings: settings of the refinement.
        seed: random seed of the run.
        e_step: the E-step of its iterations.
    """
    rows = consensus_rows(particles, settings, seed=seed)
    references, shells = References(particles), settings.consensus_shells
    count = len(shells) + settings.max_extra_iterations
    for number, radius in enumerate(shells, 1):
        iteration = Iteration(CONSENSUS_STAGE, number, count)
        state = yield from em_iteration(
            replace(state, radius=radius), references, settings, iteration, seed=seed, rows=rows, e_step=e_step
        )
    best, waited = float(state.particles.log_evidence[rows].mean()), 0
    for number in range(len(shells) + 1, count + 1):
        if waited == _PATIENCE:
            break
        iteration = Iteration(CONSENSUS_STAGE, number, count)
        state = yield from em_iteration(state, references, settings, iteration, seed=seed, rows=rows, e_step=e_step)
        log_likelihood = float(state.particles.log_evidence[rows].mean())
        waited = 0 if log_likelihood > best + _TOLERANCE * abs(best) else waited + 1
        best = max(best, log_likelihood)
    return state


def consensus_rows(particles: ParticleTransforms, settings: RefinementSettings, *, seed: int) -> Int[Tensor, " rows"]:
    """The particles that take part in consensus iterations, the same of all random starts.

    Args:
        particles: CTF-multiplied transforms of all particles.
        settings: settings of the refinement.
        seed: random seed of the run.
    """
    return _first_of_order(len(particles), settings.max_particles, seed, particles.device)


@lru_cache(maxsize=4)
def _first_of_order(count: int, most: int, seed: int, device: torch.device) -> Int[Tensor, " rows"]:
    """The same tensor each time, so that what was found out of these rows is found again."""
    order = torch.randperm(count, generator=stream_generator(seed, Stream.INITIAL_MODEL_IMAGES))
    return to_device_async(order[:most].clone(), device)


@lru_cache(maxsize=4)
def _ascending(rows: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """Likewise."""
    return rows.sort().values


def refine_half_sets(
    state: RefinementState, particles: ParticleTransforms, settings: RefinementSettings, *, seed: int
) -> Generator[Event, None, RefinementState]:
    """Iterations of two independent half sets over all orientations.

    The sums of the last iteration reach the last shell that is searched, even where its poses come from fewer shells.

    Args:
        state: state to start from; its half sets are split here, if they share a reference.
        particles: CTF-multiplied transforms of all particles.
        settings: settings of the refinement.
        seed: random seed of the run.
    """
    state, references, count = state.split(), References(particles), settings.iterations
    for number in range(1, count + 1):
        iteration = Iteration(HALF_SETS_STAGE, number, count)
        update_scales(state, references)
        state = yield from em_iteration(state, references, settings, iteration, seed=seed, sums_to_end=number == count)
    return state


def final_iteration(
    state: RefinementState, particles: ParticleTransforms, settings: RefinementSettings, *, seed: int
) -> Generator[Event, None, RefinementState]:
    """One iteration of all particles against the mean of both half maps, for better poses than those of the half sets.

    Args:
        state: state after half-set refinement.
        particles: CTF-multiplied transforms of all particles.
        settings: settings of the refinement.
        seed: random seed of the run.
    """
    iteration, references = Iteration(FINAL_STAGE), References(particles)
    update_scales(state, references)
    return (yield from em_iteration(state.merged(), references, settings, iteration, seed=seed, sums_to_end=True))


def refine_half_sets_locally(
    state: RefinementState, particles: ParticleTransforms, settings: RefinementSettings, *, iterations: int
) -> Generator[Event, None, RefinementState]:
    """Local iterations of two independent half sets beyond the exhaustive search, to a larger radius each time.

    Args:
        state: state after the exhaustive search; its half sets are split here, if they share a reference.
        particles: CTF-multiplied transforms of all particles.
        settings: settings of the refinement.
        iterations: number of iterations.
    """
    state, references = state.split(), References(particles)
    for number in range(1, iterations + 1):
        radius = state.radius
        update_scales(state, references)
        refined = refine_locally(state, references, radius, settings.shift_sigma_px)
        state = state.with_poses(refined.poses)
        state = maximization_step(state, sum_half_sets(state, references, settings, radius), settings, radius)
        yield Progress(LOCAL_STAGE, number, iterations, _resolutions(state, settings), (number, iterations))
    return state


def refine_locally(
    state: RefinementState,
    references: References,
    radius: int,
    shift_sigma_px: float,
    *,
    steps: int = MAX_STEPS,
    rows: Int[Tensor, " rows"] | None = None,
    rescales: bool = False,
) -> RefinedPoses:
    """Poses of particles at the nearest maximum of their likelihood, each against the map of its half set.

    Args:
        state: maps, half sets and initial poses.
        references: prepared references of the maps.
        radius: resolution of the comparison, in cycles per box.
        shift_sigma_px: standard deviation of the offsets per axis; 0 leaves them unchanged.
        steps: most Gauss-Newton steps.
        rows: particles to refine, in ascending order; None for all.
        rescales: whether the particles get the scales of their initial poses first, one half set after the other.
    """
    refined, order = [], []
    for half, members, volume in state.halves(rows):
        if rescales:
            update_scales(state, references, (half,))
        particles = references.particles.within(radius, references.particles.plane.box_size_px)
        poses = state.poses.rows(members)
        refine = partial(refine_poses, shift_sigma_px=shift_sigma_px, steps=steps, rows=members)
        refined.append(refine(particles, references.of(volume), poses))  # which is in no variable: it may be freed
        order.append(members)
    return RefinedPoses.cat(refined).rows(torch.cat(order).argsort())


def em_iteration(
    state: RefinementState,
    references: References,
    settings: RefinementSettings,
    iteration: Iteration,
    *,
    seed: int,
    rows: Int[Tensor, " rows"] | None = None,
    sums_to_end: bool = False,
    e_step: EStep = expectation_step,
) -> Generator[Event, None, RefinementState]:
    """E-step and M-step: particles against the map of their half set, and new maps from their posterior.

    Args:
        state: maps, half sets and poses before the iteration.
        references: prepared references of the maps.
        settings: settings of the refinement.
        iteration: stage and number of the iteration, for progress.
        seed: random seed of the run.
        rows: particles that take part; None for all.
        sums_to_end: True where the sums reach the last shell of the exhaustive search, beyond the radius.
        e_step: the E-step.
    """
    particles, device = references.particles, references.particles.device
    n, radius = particles.plane.box_size_px, min(state.radius, settings.max_exhaustive_shell)
    # Shells beyond the radius add nothing to the likelihood, since the maps have nothing there, but belong to the sums.
    reach = settings.max_exhaustive_shell if sums_to_end else radius
    subset = particles.within(reach, n)
    harmonics = disk_harmonics(n, reach, support_radius(settings.mask_radius, n), device)
    generator = stream_generator(seed, Stream.REFINEMENT, state.iteration)
    grid = pose_grid(radius, generator, device, settings.symmetry)
    n_offsets = settings.n_offsets if radius <= COARSE_SHELL else 1
    step_px = offset_step_px(n, radius, _OFFSETS_PER_WAVELENGTH)
    halves = [(members, shard_half_set(members, half), volume) for half, members, volume in state.halves(rows)]
    total = sum(len(local) for _, local, _ in halves)
    posteriors, done = [Posterior.empty(n, device)], 0
    sums = [WienerBackprojection.empty(n, device=device) for _ in halves]
    for half, (_, local, volume) in enumerate(halves):
        offsets = hexagonal_offsets(state.poses.shifts_px[local], step_px, n_offsets, generator)
        if len(local) == 0:  # another process's
            continue
        likelihood = PoseLikelihood.build(references.of(volume), grid, harmonics)
        result = yield from e_step(
            subset,
            likelihood,
            offsets,
            rows=local,
            shift_sigma_px=settings.shift_sigma_px,
            progress=partial(iteration.progress, total=total, before=done),
        )
        done += len(local)
        posteriors.append(result.posterior)
        sums[half] = likelihood.insert(result.sums, symmetry=settings.symmetry)
    found = Posterior.cat(posteriors)
    posed = ParticlePoses(found.poses, found.confidence, found.log_evidence)
    posed = all_gather(posed, torch.cat([local for _, local, _ in halves]), len(particles))
    all_rows = torch.cat([members for members, _, _ in halves])
    references.release()
    state = replace(state, particles=state.particles.with_rows(all_rows, posed.rows(all_rows)))
    state = maximization_step(state, (sums[0].all_reduced(), sums[1].all_reduced()), settings, reach)
    if settings.shift_sigma_px > 0:
        refined = None if rows is None else _ascending(rows)
        state = _refine_offsets(state, references, radius, settings.shift_sigma_px, refined)
    state = replace(state, iteration=state.iteration + 1)
    yield iteration.progress(total, total, _metrics(state, settings, all_rows))
    return state


def _refine_offsets(
    state: RefinementState,
    references: References,
    radius: int,
    shift_sigma_px: float,
    posed: Int[Tensor, " posed"] | None,
) -> RefinementState:
    """The state with refined offsets of the particles that were posed; the others have no view to refine them at."""
    steps = _OFFSET_REFINEMENT_STEPS
    refined = refine_locally(state, references, radius, shift_sigma_px, steps=steps, rows=posed)
    shifts_px = refined.poses.shifts_px
    if posed is not None:
        shifts_px = state.poses.shifts_px.index_copy(0, posed, shifts_px)
    return state.with_poses(replace(state.poses, shifts_px=shifts_px))


def sum_half_sets(
    state: RefinementState, references: References, settings: RefinementSettings, radius: int
) -> tuple[WienerBackprojection, WienerBackprojection]:
    """Sums over each half set, every particle at its pose.

    Args:
        state: poses and half sets, and the maps that give the noise.
        references: prepared references of the maps.
        settings: settings of the refinement.
        radius: radius of the sums, in cycles per box.
    """
    first, second = (
        _sum_half_set(state, rows, references.precision_of(volume), references.particles, settings, radius)
        for _, rows, volume in state.halves()
    )
    return first, second


def _sum_half_set(
    state: RefinementState,
    rows: Int[Tensor, " rows"],
    precision: Float[Tensor, " points"],
    particles: ParticleTransforms,
    settings: RefinementSettings,
    radius: int,
) -> WienerBackprojection:
    """Sums over one half set at one pose each."""
    n = particles.plane.box_size_px
    subset = particles.within(radius, n)
    precision = precision[: len(subset.plane)]
    sums = WienerBackprojection.empty(n, device=particles.device)
    # On the CPU, which waits for nothing.
    cosets, on_lattice = split_over_lattice(settings.symmetry.cpu().to(precision.dtype))
    cosets = to_device_async(cosets, precision.device)
    for batch_rows in torch.split(shard(rows), max(1, _CHUNK_POINTS // len(subset.plane))):
        batch, poses = subset.rows(batch_rows), state.poses.rows(batch_rows)
        ctf_multiplied, ctf_squared = batch.centred(poses.shifts_px) * precision, batch.ctf_squared * precision
        for element in cosets:
            rotations: Float[Tensor, "rows 3 3"] = poses.rotations @ element
            sums.add_(ctf_multiplied, ctf_squared, rotations, subset.plane)
    return sums.symmetrised(on_lattice).all_reduced()


def _resolutions(state: RefinementState, settings: RefinementSettings) -> dict[str, float]:
    resolutions = {"resolution_limit_angstrom": settings.resolution_angstrom(state.radius)}
    if state.resolution_shell > 0:  # half sets that share a reference have no independent correlation yet
        resolutions["fsc_resolution_angstrom"] = settings.resolution_angstrom(state.resolution_shell)
    return resolutions


def _metrics(state: RefinementState, settings: RefinementSettings, rows: Int[Tensor, " rows"]) -> dict[str, float]:
    particles = state.particles
    means = torch.stack([particles.log_evidence[rows].mean(), particles.confidence[rows].mean()]).tolist()
    return {**_resolutions(state, settings), "log_likelihood": means[0], "max_probability": means[1]}
