"""Images against slices of a map: log-likelihood, gradient and Gauss-Newton curvature over the pose.

For an image y centred by its shift, times its CTF and the noise precision p, and the slice P at its pose::

    value     = sum_k Re(p C y conj P) - 1/2 p C^2 |P|^2
    gradient  = sum_k Re(conj(dP) (p C y - p C^2 P))        curvature = sum_k p C^2 Re(conj(dP) dP^T)

dP is the derivative of P over three rotations (radians, about the axes of the image) and two shifts (pixels): a small
rotation w takes k to -w x k in the frame of the image, so that the slice changes by -w.(k x gradient). Slice and
gradient come from the same samples of one map (``physics.projection.sample_slices_with_gradient``).

This is plain torch, for any device and precision. ``fused_normal_equations`` does the same on GPUs where Triton can be
used, ``compiled_refinement`` in float32 on CPUs.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.physics.projection import sample_slices_with_gradient
from cryoeq.physics.shift import shift_phases
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.runtime.compiling import can_launch_triton

PARAMETERS = 5  # three rotations, two shifts
FIRST_DAMPING = 0.1
MAX_STEP_RAD, MAX_STEP_PX = 0.15, 1.0
# Predicted gain in log-likelihood of the next step, from which on an image has converged: it is half the squared
# distance to the maximum in standard deviations, of which five parameters have five.
MIN_GAIN = 0.01


@dataclass(frozen=True)
class NormalEquations(ParticleRows):
    """The log-likelihood around some poses, over rotation (radians, in the frame of the image) and shift (pixels).

    Args:
        value: log-likelihood, up to a constant of the image.
        gradient: its derivatives.
        curvature: Gauss and Newton's second derivatives of minus it.
    """

    value: Float[Tensor, " batch"]
    gradient: Float[Tensor, "batch 5"]
    curvature: Float[Tensor, "batch 5 5"]

    def where(self, accepted: Bool[Tensor, " batch"], other: "NormalEquations") -> "NormalEquations":
        """These for accepted images, the others for the rest.

        Args:
            accepted: which.
            other: of the same images.
        """
        return NormalEquations(
            torch.where(accepted, self.value, other.value),
            torch.where(accepted[:, None], self.gradient, other.gradient),
            torch.where(accepted[:, None, None], self.curvature, other.curvature),
        )

    def with_shift_prior(self, shifts_px: Float[Tensor, "batch 2"], sigma_px: float) -> "NormalEquations":
        """With a normal prior of the shifts.

        Args:
            shifts_px: shifts of the poses.
            sigma_px: standard deviation per axis; 0 for no prior, where shifts are not refined.
        """
        if sigma_px == 0:
            return self
        tightness = sigma_px**-2
        return NormalEquations(
            self.value - 0.5 * tightness * shifts_px.square().sum(1),
            self.gradient - torch.nn.functional.pad(tightness * shifts_px, (3, 0)),
            self.curvature + tightness * _on_shifts(self.curvature.dtype, shifts_px.device),
        )

    def predicted_gain(self, step: Float[Tensor, "batch 5"]) -> Float[Tensor, " batch"]:
        """What a step gains in log-likelihood, were that as its gradient and curvature say.

        Args:
            step: rotation vector and shift.
        """
        return (self.gradient * step).sum(1) - 0.5 * torch.einsum("bi,bij,bj->b", step, self.curvature, step)

    @property
    def rotation_sigma_rad(self) -> Float[Tensor, " batch"]:
        """Standard deviation of the rotation about all three axes together (Laplace)."""
        covariance, _ = torch.linalg.inv_ex(self.curvature + 1e-6 * torch.eye(5, device=self.curvature.device))
        return torch.diagonal(covariance, dim1=1, dim2=2)[:, :3].sum(1).clamp(min=0).sqrt()


@lru_cache(maxsize=8)
def _on_shifts(dtype: torch.dtype, device: torch.device) -> Float[Tensor, "5 5"]:
    """The identity on shifts, 0 on rotations; kept, so not to be changed."""
    return torch.diag((torch.arange(PARAMETERS, device=device) >= 3).to(dtype))


@dataclass(frozen=True)
class WeightedImages:
    """Images times their CTF and the noise precision, line by line, as a slice is read fastest.

    Args:
        plane: the coefficients, sorted by ky, then kx.
        images: images times CTF and precision of each coefficient (twice that for a Friedel pair), not centred.
        precision: squared CTF times precision.
    """

    plane: HalfPlane
    images: Complex[Tensor, "batch points"]
    precision: Float[Tensor, "batch points"]

    @classmethod
    def of(cls, particles: ParticleTransforms, weights: Float[Tensor, " points"]) -> "WeightedImages":
        """Particles, which are copied.

        Args:
            particles: CTF-multiplied transforms.
            weights: inverse noise variance of each coefficient, times its multiplicity.
        """
        plane = particles.plane
        order: Int[Tensor, " points"] = plane.flat_index.argsort()
        sorted_plane = HalfPlane(plane.box_size_px, plane.coords[order], plane.flat_index[order], plane.weights[order])
        return cls(
            sorted_plane,
            particles.ctf_multiplied[:, order] * weights[order],
            particles.ctf_squared[:, order] * weights[order],
        )


def is_fused(device: torch.device) -> bool:
    """Whether normal equations on a device come from one Triton kernel (``fused_normal_equations``), not from torch.

    Args:
        device: device of the map.
    """
    return device.type == "cuda" and can_launch_triton()


def normal_equations(
    observed: WeightedImages,
    padded: Complex[Tensor, "m m m"],
    rotations: Float[Tensor, "batch 3 3"],
    shifts_px: Float[Tensor, "batch 2"],
) -> NormalEquations:
    """Log-likelihood, gradient and curvature of each image at its pose.

    Args:
        observed: the images.
        padded: oversampled transform of the map.
        rotations: RELION's matrices A.
        shifts_px: offsets that centre the images.
    """
    if is_fused(padded.device):
        from cryoeq.reconstruction.fused_normal_equations import fused_normal_equations  # imports Triton

        return fused_normal_equations(observed, padded, rotations, shifts_px)
    return plain_normal_equations(observed, padded, rotations, shifts_px)


def plain_normal_equations(
    observed: WeightedImages,
    padded: Complex[Tensor, "m m m"],
    rotations: Float[Tensor, "batch 3 3"],
    shifts_px: Float[Tensor, "batch 2"],
) -> NormalEquations:
    """As ``normal_equations``, in torch on any device: the reference of kernels.

    Args:
        observed: the images.
        padded: oversampled transform of the map.
        rotations: RELION's matrices A.
        shifts_px: offsets that centre the images.
    """
    plane, precision = observed.plane, observed.precision
    slices, gradient = sample_slices_with_gradient(padded, rotations, plane)
    centred = observed.images * shift_phases(-shifts_px, plane.coords, plane.box_size_px)
    kx, ky = plane.coords.to(precision.dtype).unbind(1)
    x, y, z = torch.einsum("bij,jbp->ibp", rotations.to(gradient.dtype), gradient)
    shift_ramp = slices * (2j * math.pi / plane.box_size_px)
    columns = [-ky * z, kx * z, ky * x - kx * y, shift_ramp * kx, shift_ramp * ky]
    jacobian = torch.view_as_real(torch.stack(columns, 1))
    residual = torch.view_as_real(centred - precision * slices)
    value = ((centred * slices.conj()).real - 0.5 * precision * slices.abs().square()).sum(1)
    slope = torch.einsum("bjpr,bpr->bj", jacobian, residual)
    scaled = (jacobian * precision.sqrt()[:, None, :, None]).flatten(2)
    return NormalEquations(value, slope, scaled @ scaled.transpose(1, 2))
