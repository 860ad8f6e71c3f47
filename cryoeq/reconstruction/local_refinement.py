"""Local refinement of poses against a map, and the width of their likelihood.

Levenberg's and Marquardt's damped Gauss-Newton steps on rotation (so(3), on the left of A) and shift together, until
none gains any more (``normal_equations``, on GPUs one kernel). Curvature at the end gives the width of the posterior.
What torch does for all images at once, a compiled kernel does image by image on CPUs (``compiled_refinement``).

Marquardt 1963, J. Soc. Ind. Appl. Math. 11, 431-441. Laplace's method: MacKay 2003, Information Theory, Inference and
Learning Algorithms, chapter 27.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.so3 import rotation_from_vector
from cryoeq.reconstruction.normal_equations import (
    FIRST_DAMPING,
    MAX_STEP_PX,
    MAX_STEP_RAD,
    MIN_GAIN,
    PARAMETERS,
    NormalEquations,
    WeightedImages,
    is_fused,
    normal_equations,
)
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.reference import Reference
from cryoeq.runtime.batching import in_parallel, numbers_at_a_time
from cryoeq.runtime.distributed import gather_shards, shard

MAX_STEPS = 5
CHUNK_POINTS_ON_CPU = 2**17
NUMBERS_PER_POINT = 64  # in torch: residual, Jacobian, the samples behind them: complex, and copies of them
_MOST = 3 * 2**30  # numbers of a batch on a GPU, whose largest tensor has 36 for each 64
_FUSED_NUMBERS_PER_POINT = 8  # in one kernel: nothing but the images, their precision, and copies of them
_STEPS_BETWEEN_LOOKS = 5  # at whether all images have converged, for which a GPU must have finished its queue


@dataclass(frozen=True)
class RefinedPoses(ParticleRows):
    """Poses at the maximum of their likelihood nearest to the initial ones.

    Args:
        poses: refined poses.
        log_likelihood: log-likelihood of each pose, up to a constant of the image.
        rotation_sigma_rad: standard deviation of the rotation about all three axes together, from the curvature
            (Laplace).
    """

    poses: PoseSet
    log_likelihood: Float[Tensor, " particles"]
    rotation_sigma_rad: Float[Tensor, " particles"]


def refine_poses(
    particles: ParticleTransforms,
    reference: Reference,
    poses: PoseSet,
    *,
    shift_sigma_px: float,
    steps: int = MAX_STEPS,
    rows: Int[Tensor, " rows"] | None = None,
) -> RefinedPoses:
    """Refine the poses of particles, which the processes of a job share.

    Args:
        particles: particles up to the radius of the comparison.
        reference: the map.
        poses: initial pose of each particle to refine; offsets stay where ``shift_sigma_px`` is 0.
        shift_sigma_px: standard deviation of the normal prior of offsets, per axis; 0 for centred particles.
        steps: most Gauss-Newton steps; an image ends sooner where no step gains any more.
        rows: particles to refine, copied a batch at a time only; None for all.
    """
    rows = torch.arange(len(particles), device=particles.device) if rows is None else rows
    per_point, most = (_FUSED_NUMBERS_PER_POINT, None) if is_fused(particles.device) else (NUMBERS_PER_POINT, _MOST)
    points = numbers_at_a_time(particles.device, CHUNK_POINTS_ON_CPU * per_point, most) // per_point
    weights = reference.weights(particles.plane)
    is_compiled = particles.device.type == "cpu" and reference.padded.dtype == torch.complex64

    def refine(batch: Int[Tensor, " batch"]) -> RefinedPoses:
        observed, start = WeightedImages.of(particles.rows(rows[batch]), weights), poses.rows(batch)
        if is_compiled:
            from cryoeq.reconstruction.compiled_refinement import compiled_refinement as refine_batch  # numba: 0.2 s
        else:
            refine_batch = refine_in_torch
        rotations, shifts_px, found = refine_batch(
            observed, reference.padded, start.rotations, start.shifts_px, shift_sigma_px=shift_sigma_px, steps=steps
        )
        return RefinedPoses(PoseSet(rotations, shifts_px, poses.box_size_px), found.value, found.rotation_sigma_rad)

    local = shard(torch.arange(len(rows), device=particles.device))
    batches = local.split(max(1, points // len(particles.plane))) if len(local) > 0 else ()
    refined = [*in_parallel(refine, batches)]
    if not refined:  # another process's
        refined = [RefinedPoses(poses.rows(local), reference.precision[:0], reference.precision[:0])]
    return gather_shards(RefinedPoses.cat(refined), len(rows))


def refine_in_torch(
    observed: WeightedImages,
    padded: Complex[Tensor, "m m m"],
    rotations: Float[Tensor, "batch 3 3"],
    shifts_px: Float[Tensor, "batch 2"],
    *,
    shift_sigma_px: float,
    steps: int,
) -> tuple[Float[Tensor, "batch 3 3"], Float[Tensor, "batch 2"], NormalEquations]:
    """Damped Gauss-Newton steps, all images at once; one that has converged stays where it is.

    Args:
        observed: the images.
        padded: oversampled transform of the map.
        rotations: initial rotations, RELION's matrices A.
        shifts_px: initial offsets.
        shift_sigma_px: standard deviation of the prior of offsets; where it is 0 they stay.
        steps: most Gauss-Newton steps.

    Returns:
        Rotations, offsets, and the normal equations there.
    """
    damping = torch.full((len(rotations),), FIRST_DAMPING, device=rotations.device)
    is_active = torch.ones_like(damping, dtype=torch.bool)
    here = normal_equations(observed, padded, rotations, shifts_px).with_shift_prior(shifts_px, shift_sigma_px)
    for taken in range(steps):
        step = _step(here, damping, PARAMETERS if shift_sigma_px > 0 else 3)
        is_active = is_active & (here.predicted_gain(step) >= MIN_GAIN)
        is_time = taken % _STEPS_BETWEEN_LOOKS == _STEPS_BETWEEN_LOOKS - 1 and taken < steps - 1
        if is_time and not is_active.any():
            break
        there_rotations, there_shifts = rotation_from_vector(step[:, :3]) @ rotations, shifts_px + step[:, 3:]
        there = normal_equations(observed, padded, there_rotations, there_shifts)
        there = there.with_shift_prior(there_shifts, shift_sigma_px)
        accepted = is_active & (there.value > here.value)
        rotations = torch.where(accepted[:, None, None], there_rotations, rotations)
        shifts_px = torch.where(accepted[:, None], there_shifts, shifts_px)
        here = there.where(accepted, here)
        damping = torch.where(accepted, 0.3 * damping, 8 * damping)
    return rotations, shifts_px, here


def _step(here: NormalEquations, damping: Float[Tensor, " batch"], free: int) -> Float[Tensor, "batch 5"]:
    """Rotation vector and shift of the next step, neither of them long."""
    curvature = here.curvature[:, :free, :free]
    diagonal = torch.diagonal(curvature, dim1=1, dim2=2) * damping[:, None] + 1e-6
    step, _ = torch.linalg.solve_ex(curvature + torch.diag_embed(diagonal), here.gradient[:, :free])
    rotate, move = step[:, :3], torch.nn.functional.pad(step[:, 3:], (0, PARAMETERS - free))
    angle = rotate.norm(dim=1, keepdim=True)
    rotate = rotate * (MAX_STEP_RAD / angle.clamp(min=MAX_STEP_RAD))
    return torch.cat([rotate, move.clamp(-MAX_STEP_PX, MAX_STEP_PX)], dim=1)
