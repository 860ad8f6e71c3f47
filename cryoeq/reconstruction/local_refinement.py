"""Local refinement of poses against a map, and the width of their likelihood.

Levenberg's and Marquardt's damped Gauss-Newton steps on rotation (so(3), on the left of A) and shift together, all
images at once (``normal_equations``). Curvature at the end gives the width of the posterior.

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
from cryoeq.reconstruction.normal_equations import NormalEquations, WeightedImages, normal_equations
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.reference import Reference
from cryoeq.runtime.batching import in_parallel, numbers_at_a_time
from cryoeq.runtime.distributed import all_gather, shard

_FIRST_DAMPING = 0.1
_MAX_STEP_RAD = 0.15
_MAX_STEP_PX = 1.0
CHUNK_POINTS_ON_CPU = 2**17
NUMBERS_PER_POINT = 64  # residual, Jacobian of five columns, eight channels of slices: complex, and copies of them


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


@dataclass(frozen=True)
class _Target:
    """Map, noise and prior of a local refinement.

    Args:
        padded: oversampled transform of the map.
        weights: inverse noise variance of each coefficient, times its multiplicity (2 for a Friedel pair).
        shift_sigma_px: standard deviation of the prior of offsets; 0 for centred particles.
    """

    padded: Complex[Tensor, "m m m"]
    weights: Float[Tensor, " points"]
    shift_sigma_px: float

    def evaluate(
        self, observed: WeightedImages, rotations: Float[Tensor, "batch 3 3"], shifts_px: Float[Tensor, "batch 2"]
    ) -> NormalEquations:
        """Likelihood and prior around some poses."""
        found = normal_equations(observed, self.padded, rotations, shifts_px)
        return found.with_shift_prior(shifts_px, self.shift_sigma_px)


def refine_poses(
    particles: ParticleTransforms,
    reference: Reference,
    poses: PoseSet,
    *,
    shift_sigma_px: float,
    steps: int = 5,
    rows: Int[Tensor, " rows"] | None = None,
) -> RefinedPoses:
    """Refine the poses of particles, which the processes of a job share.

    Args:
        particles: particles up to the radius of the comparison.
        reference: the map.
        poses: initial pose of each particle to refine; offsets stay where ``shift_sigma_px`` is 0.
        shift_sigma_px: standard deviation of the normal prior of offsets, per axis; 0 for centred particles.
        steps: Gauss-Newton steps.
        rows: particles to refine, copied a batch at a time only; None for all.
    """
    rows = torch.arange(len(particles), device=particles.device) if rows is None else rows
    points = numbers_at_a_time(particles.device, CHUNK_POINTS_ON_CPU * NUMBERS_PER_POINT) // NUMBERS_PER_POINT
    target = _Target(reference.padded, reference.weights(particles.plane), shift_sigma_px)

    def refine(batch: Int[Tensor, " batch"]) -> RefinedPoses:
        return _refine(particles.rows(rows[batch]), target, poses.rows(batch), steps)

    local = shard(torch.arange(len(rows), device=particles.device))
    batches = local.split(max(1, points // len(particles.plane))) if len(local) > 0 else ()
    none = RefinedPoses(poses.rows(local[:0]), reference.precision[:0], reference.precision[:0])
    return all_gather(RefinedPoses.cat([none, *in_parallel(refine, batches)]), local, len(rows))


def _refine(particles: ParticleTransforms, target: _Target, poses: PoseSet, steps: int) -> RefinedPoses:
    rotations, shifts, free = poses.rotations, poses.shifts_px, 5 if target.shift_sigma_px > 0 else 3
    damping = torch.full((len(particles),), _FIRST_DAMPING, device=rotations.device)
    observed = WeightedImages.of(particles, target.weights)
    here = target.evaluate(observed, rotations, shifts)
    for _ in range(steps):
        rotate, move = _step(here, damping, free)
        there_rotations, there_shifts = rotation_from_vector(rotate) @ rotations, shifts + move
        there = target.evaluate(observed, there_rotations, there_shifts)
        accepted = there.value > here.value
        rotations = torch.where(accepted[:, None, None], there_rotations, rotations)
        shifts = torch.where(accepted[:, None], there_shifts, shifts)
        here = there.where(accepted, here)
        damping = torch.where(accepted, 0.3 * damping, 8 * damping)
    return RefinedPoses(PoseSet(rotations, shifts, poses.box_size_px), here.value, here.rotation_sigma_rad)


def _step(
    here: NormalEquations, damping: Float[Tensor, " batch"], free: int
) -> tuple[Float[Tensor, "batch 3"], Float[Tensor, "batch 2"]]:
    """Rotation vector and shift of the next step, neither of them long."""
    curvature = here.curvature[:, :free, :free]
    diagonal = torch.diagonal(curvature, dim1=1, dim2=2) * damping[:, None] + 1e-6
    step = torch.linalg.solve(curvature + torch.diag_embed(diagonal), here.gradient[:, :free])
    rotate, move = step[:, :3], torch.nn.functional.pad(step[:, 3:], (0, 5 - free))
    angle = rotate.norm(dim=1, keepdim=True)
    return rotate * (_MAX_STEP_RAD / angle.clamp(min=_MAX_STEP_RAD)), move.clamp(-_MAX_STEP_PX, _MAX_STEP_PX)
