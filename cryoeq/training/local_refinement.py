"""Continuous refinement of the pose of each image against a map, and how well the image determines it.

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

from cryoeq.domain.processes import gathered, share_of
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import rotation_from_vector
from cryoeq.physics.projection import prepare_slices, sample_slices
from cryoeq.training.observed_images import ObservedImages
from cryoeq.training.parallel import in_parallel, numbers_at_a_time

_FIRST_DAMPING = 0.1
_LARGEST_STEP_RAD = 0.15
_LARGEST_STEP_PX = 1.0
_CHUNK_POINTS_CPU = 2**17
_NUMBERS_PER_POINT = 64  # residual, Jacobian of five columns, eight channels of slices: complex, and copies of them


@dataclass(frozen=True)
class RefinedPoses:
    """Poses at the maximum of their likelihood nearest to where they started.

    Args:
        rotations: RELION's matrices A.
        shifts_px: in pixels of the images' box.
        log_likelihood: up to a constant of the image.
        rotation_sigma_rad: standard deviation of the rotation about all three axes together, from the curvature
            (Laplace).
    """

    rotations: Float[Tensor, "particles 3 3"]
    shifts_px: Float[Tensor, "particles 2"]
    log_likelihood: Float[Tensor, " particles"]
    rotation_sigma_rad: Float[Tensor, " particles"]

    @classmethod
    def join(cls, parts: "list[RefinedPoses]") -> "RefinedPoses":
        """Of several batches."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def rows(self, rows: Int[Tensor, " rows"]) -> "RefinedPoses":
        """Some of the particles."""
        return RefinedPoses(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def gathered(self, rows: Int[Tensor, " particles"], count: int) -> "RefinedPoses":
        """Of all processes, in the order of the rows.

        Args:
            rows: those that this process has refined.
            count: of rows in all.
        """
        found = (self.rotations, self.shifts_px, self.log_likelihood, self.rotation_sigma_rad)
        return RefinedPoses(*gathered(found, rows, count))


@dataclass(frozen=True)
class Reference:
    """A map and its gradient in Fourier space, and the noise to weigh residuals by.

    Args:
        padded: real parts, then imaginary parts, of the oversampled transform and its derivatives along x, y, z.
        weighted_precision: inverse noise variance of each coefficient, times how often it counts.
    """

    padded: Float[Tensor, "8 m m m"]
    weighted_precision: Float[Tensor, " points"]

    @classmethod
    def build(
        cls, volume: Float[Tensor, "n n n"], plane: HalfPlane, precision: Float[Tensor, " points"]
    ) -> "Reference":
        """Prepare a map.

        Args:
            volume: the map.
            plane: coefficients that are compared.
            precision: of each of them.
        """
        n = volume.shape[-1]
        x = torch.arange(n, dtype=volume.dtype, device=volume.device) - n // 2
        maps = [volume, volume * x, volume * x[:, None], volume * x[:, None, None]]
        transforms = torch.stack([prepare_slices(values) for values in maps])
        transforms[1:] *= -2j * math.pi / n
        return cls(torch.cat([transforms.real, transforms.imag]), precision * plane.weights)


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
    images: ObservedImages,
    reference: Reference,
    rotations: Float[Tensor, "particles 3 3"],
    shifts_px: Float[Tensor, "particles 2"],
    *,
    shift_sigma_px: float,
    steps: int = 5,
) -> RefinedPoses:
    """Refine the poses of all images, which the processes of a job share out.

    Args:
        images: up to the radius of the reference.
        reference: the map.
        rotations: where to start.
        shifts_px: where to start; left as they are when ``shift_sigma_px`` is 0.
        shift_sigma_px: of the normal prior of shifts, per axis; 0 for particles that are centred.
        steps: of Gauss and Newton.
    """
    numbers = numbers_at_a_time(rotations.device, _CHUNK_POINTS_CPU * _NUMBERS_PER_POINT)
    points = numbers // _NUMBERS_PER_POINT

    def refine(rows: Int[Tensor, " rows"]) -> RefinedPoses:
        return _refine(images.rows(rows), reference, (rotations[rows], shifts_px[rows]), shift_sigma_px, steps)

    own = share_of(torch.arange(len(images), device=rotations.device))
    batches = own.split(max(1, points // len(images.plane)))
    return RefinedPoses.join(list(in_parallel(refine, batches))).gathered(own, len(images))


def _refine(
    images: ObservedImages, reference: Reference, start: tuple[Tensor, Tensor], shift_sigma_px: float, steps: int
) -> RefinedPoses:
    (rotations, shifts), free = start, 5 if shift_sigma_px > 0 else 3
    damping = torch.full((len(images),), _FIRST_DAMPING, device=rotations.device)
    here = _evaluate(images, reference, rotations, shifts, shift_sigma_px)
    for _ in range(steps):
        turn, move = _step(here, damping, free)
        there_rotations, there_shifts = rotation_from_vector(turn) @ rotations, shifts + move
        there = _evaluate(images, reference, there_rotations, there_shifts, shift_sigma_px)
        accepted = there.value > here.value
        rotations = torch.where(accepted[:, None, None], there_rotations, rotations)
        shifts = torch.where(accepted[:, None], there_shifts, shifts)
        here = there.where(accepted, here)
        damping = torch.where(accepted, 0.3 * damping, 8 * damping)
    return RefinedPoses(rotations, shifts, here.value, here.rotation_sigma_rad)


def _step(
    here: _Local, damping: Float[Tensor, " batch"], free: int
) -> tuple[Float[Tensor, "batch 3"], Float[Tensor, "batch 2"]]:
    """Rotation vector and shift of the next step, neither of them long."""
    curvature = here.curvature[:, :free, :free]
    diagonal = torch.diagonal(curvature, dim1=1, dim2=2) * damping[:, None] + 1e-6
    step = torch.linalg.solve(curvature + torch.diag_embed(diagonal), here.gradient[:, :free])
    turn, move = step[:, :3], torch.nn.functional.pad(step[:, 3:], (0, 5 - free))
    angle = turn.norm(dim=1, keepdim=True)
    return turn * (_LARGEST_STEP_RAD / angle.clamp(min=_LARGEST_STEP_RAD)), move.clamp(
        -_LARGEST_STEP_PX, _LARGEST_STEP_PX
    )


def _evaluate(
    images: ObservedImages,
    reference: Reference,
    rotations: Float[Tensor, "batch 3 3"],
    shifts_px: Float[Tensor, "batch 2"],
    shift_sigma_px: float,
) -> _Local:
    """Images centred by their shifts against slices; the residual is that of the centred image."""
    plane, weights = images.plane, reference.weighted_precision
    slices, gradient = _sample(reference, rotations, plane)
    centred = images.centred(shifts_px)
    kx, ky = plane.coords.to(slices.real.dtype).unbind(1)
    # A small turn w takes k to -w x k in the frame of the image: the slice changes by -w.(k x gradient).
    shift_turns = slices * (2j * math.pi / plane.box_size_px)
    columns = [
        -ky * gradient[2], kx * gradient[2], ky * gradient[0] - kx * gradient[1], shift_turns * kx, shift_turns * ky,
    ]  # fmt: skip
    jacobian = torch.view_as_real(torch.stack(columns, 1))
    residual = torch.view_as_real(centred - images.power * slices) * weights[:, None]
    value = (centred * slices.conj()).real @ weights - 0.5 * (images.power * slices.abs().square()) @ weights
    slope = torch.einsum("bjpr,bpr->bj", jacobian, residual)
    scaled = (jacobian * (images.power * weights).sqrt()[:, None, :, None]).flatten(2)
    curvature = scaled @ scaled.transpose(1, 2)
    if shift_sigma_px > 0:
        tightness = shift_sigma_px**-2
        value = value - 0.5 * tightness * shifts_px.square().sum(1)
        slope = slope - torch.nn.functional.pad(tightness * shifts_px, (3, 0))
        curvature = curvature + tightness * torch.diag(curvature.new_tensor([0.0, 0.0, 0.0, 1.0, 1.0]))
    return _Local(value, slope, curvature)


def _sample(
    reference: Reference, rotations: Float[Tensor, "batch 3 3"], plane: HalfPlane
) -> tuple[Complex[Tensor, "batch points"], Complex[Tensor, "3 batch points"]]:
    """Slices, and the gradient of the map's transform at their coefficients in the frame of the image."""
    sampled = sample_slices(reference.padded, rotations, plane)
    values = torch.complex(sampled[:4], sampled[4:])
    gradient = torch.einsum("bij,jbp->ibp", rotations.to(values.dtype), values[1:])
    return values[0], gradient
