"""Local refinement of poses against a map, and the width of their likelihood.

Levenberg's and Marquardt's damped Gauss-Newton steps on rotation (so(3), on the left of A) and shift together, all
images at once. The derivative of a slice comes from the gradient of the map's transform, itself the transform of the
map times the coordinates, so it is as smooth as the slices are. Curvature at the end gives the width of the posterior.

Marquardt 1963, J. Soc. Ind. Appl. Math. 11, 431-441. Laplace's method: MacKay 2003, Information Theory, Inference and
Learning Algorithms, chapter 27.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import rotation_from_vector
from cryoeq.physics.projection import sample_slices
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
        channels: transform of the map and its gradient, from ``Reference.with_gradient``.
        weights: inverse noise variance of each coefficient, times its multiplicity (2 for a Friedel pair).
        shift_sigma_px: standard deviation of the prior of offsets; 0 for centred particles.
    """

    channels: Float[Tensor, "8 m m m"]
    weights: Float[Tensor, " points"]
    shift_sigma_px: float


@dataclass(frozen=True)
class _Local:
    """The log-likelihood around some poses: value, gradient and Gauss-Newton curvature of minus it.

    Over rotation (radians, in the frame of the image) and shift.
    """

    value: Float[Tensor, " batch"]
    gradient: Float[Tensor, "batch 5"]
    curvature: Float[Tensor, "batch 5 5"]

    def where(self, accepted: Tensor, other: "_Local") -> "_Local":
        """This one for accepted images, the other for the rest."""
        return _Local(
            torch.where(accepted, self.value, other.value),
            torch.where(accepted[:, None], self.gradient, other.gradient),
            torch.where(accepted[:, None, None], self.curvature, other.curvature),
        )

    @property
    def rotation_sigma_rad(self) -> Float[Tensor, " batch"]:
        """Standard deviation of the rotation about all three axes together (Laplace)."""
        covariance, _ = torch.linalg.inv_ex(self.curvature + 1e-6 * torch.eye(5, device=self.curvature.device))
        return torch.diagonal(covariance, dim1=1, dim2=2)[:, :3].sum(1).clamp(min=0).sqrt()


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
    target = _Target(reference.with_gradient, reference.weights(particles.plane), shift_sigma_px)

    def refine(batch: Int[Tensor, " batch"]) -> RefinedPoses:
        return _refine(particles.rows(rows[batch]), target, poses.rows(batch), steps)

    local = shard(torch.arange(len(rows), device=particles.device))
    batches = local.split(max(1, points // len(particles.plane))) if len(local) > 0 else ()
    none = RefinedPoses(poses.rows(local[:0]), reference.precision[:0], reference.precision[:0])
    return all_gather(RefinedPoses.cat([none, *in_parallel(refine, batches)]), local, len(rows))


def _refine(particles: ParticleTransforms, target: _Target, poses: PoseSet, steps: int) -> RefinedPoses:
    rotations, shifts, free = poses.rotations, poses.shifts_px, 5 if target.shift_sigma_px > 0 else 3
    damping = torch.full((len(particles),), _FIRST_DAMPING, device=rotations.device)
    here = _evaluate(particles, target, rotations, shifts)
    for _ in range(steps):
        rotate, move = _step(here, damping, free)
        there_rotations, there_shifts = rotation_from_vector(rotate) @ rotations, shifts + move
        there = _evaluate(particles, target, there_rotations, there_shifts)
        accepted = there.value > here.value
        rotations = torch.where(accepted[:, None, None], there_rotations, rotations)
        shifts = torch.where(accepted[:, None], there_shifts, shifts)
        here = there.where(accepted, here)
        damping = torch.where(accepted, 0.3 * damping, 8 * damping)
    return RefinedPoses(PoseSet(rotations, shifts, poses.box_size_px), here.value, here.rotation_sigma_rad)


def _step(
    here: _Local, damping: Float[Tensor, " batch"], free: int
) -> tuple[Float[Tensor, "batch 3"], Float[Tensor, "batch 2"]]:
    """Rotation vector and shift of the next step, neither of them long."""
    curvature = here.curvature[:, :free, :free]
    diagonal = torch.diagonal(curvature, dim1=1, dim2=2) * damping[:, None] + 1e-6
    step = torch.linalg.solve(curvature + torch.diag_embed(diagonal), here.gradient[:, :free])
    rotate, move = step[:, :3], torch.nn.functional.pad(step[:, 3:], (0, 5 - free))
    angle = rotate.norm(dim=1, keepdim=True)
    return rotate * (_MAX_STEP_RAD / angle.clamp(min=_MAX_STEP_RAD)), move.clamp(-_MAX_STEP_PX, _MAX_STEP_PX)


def _evaluate(
    particles: ParticleTransforms,
    target: _Target,
    rotations: Float[Tensor, "batch 3 3"],
    shifts_px: Float[Tensor, "batch 2"],
) -> _Local:
    """Images centred by their offsets against slices; the residual is that of the centred image."""
    plane, weights, shift_sigma_px = particles.plane, target.weights, target.shift_sigma_px
    slices, gradient = _sample(target.channels, rotations, plane)
    centred = particles.centred(shifts_px)
    kx, ky = plane.coords.to(slices.real.dtype).unbind(1)
    # A small rotation w takes k to -w x k in the frame of the image: the slice changes by -w.(k x gradient).
    shift_ramp = slices * (2j * math.pi / plane.box_size_px)
    columns = [
        -ky * gradient[2], kx * gradient[2], ky * gradient[0] - kx * gradient[1], shift_ramp * kx, shift_ramp * ky,
    ]  # fmt: skip
    jacobian = torch.view_as_real(torch.stack(columns, 1))
    residual = torch.view_as_real(centred - particles.ctf_squared * slices) * weights[:, None]
    value = (centred * slices.conj()).real @ weights - 0.5 * (particles.ctf_squared * slices.abs().square()) @ weights
    slope = torch.einsum("bjpr,bpr->bj", jacobian, residual)
    scaled = (jacobian * (particles.ctf_squared * weights).sqrt()[:, None, :, None]).flatten(2)
    curvature = scaled @ scaled.transpose(1, 2)
    if shift_sigma_px > 0:
        tightness = shift_sigma_px**-2
        value = value - 0.5 * tightness * shifts_px.square().sum(1)
        slope = slope - torch.nn.functional.pad(tightness * shifts_px, (3, 0))
        curvature = curvature + tightness * torch.diag(curvature.new_tensor([0.0, 0.0, 0.0, 1.0, 1.0]))
    return _Local(value, slope, curvature)


def _sample(
    channels: Float[Tensor, "8 m m m"], rotations: Float[Tensor, "batch 3 3"], plane: HalfPlane
) -> tuple[Complex[Tensor, "batch points"], Complex[Tensor, "3 batch points"]]:
    """Slices, and the gradient of the map's transform at their coefficients in the frame of the image."""
    sampled = sample_slices(channels, rotations, plane)
    values = torch.complex(sampled[:4], sampled[4:])
    gradient = torch.einsum("bij,jbp->ibp", rotations.to(values.dtype), values[1:])
    return values[0], gradient
