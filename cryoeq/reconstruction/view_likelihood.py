"""Log-likelihoods of views alone, and of single views at all in-plane angles: two sides of one harmonic product.

Rotating or mirroring an image changes at which in-plane angle, mirror and offset a view fits it, not how well. So the
log-likelihood of a view, its poses summed over angles, both mirrors and offsets, is a function of the image that is
invariant under O(2); astigmatic CTFs are on the side of the map, where they turn with the image. Where it is high the
same products, at more shells, have the angle, the mirror and the offset.

Offsets are a square lattice about the centre and the angles are a multiple of four: both are mapped to themselves by
quarter turns and mirrors, under which the sums are invariant exactly, as far as sums of floating-point numbers are.
Under other rotations they are as far as the lattice is fine enough.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.geometry.disk_harmonics import DiskHarmonics
from cryoeq.physics.projection import extract_slices
from cryoeq.reconstruction.particle_transforms import POWER_ORDERS, ParticleTransforms, power_hats
from cryoeq.reconstruction.pose_likelihood import PoseGrid, PoseLikelihood
from cryoeq.reconstruction.reference import Reference

if TYPE_CHECKING:
    from cryoeq.reconstruction.compiled_views import CompiledViews

ANGLES_PER_SHELL = 4.8
"""In-plane angles over the radius, as in the search."""
_REACH = 3.0  # radius of the offsets, over their standard deviation
_MIRRORS = 2
_MIN_LOG_WEIGHT = -60.0  # exponentials below are as good as 0; denormal numbers take many times as long


@dataclass(frozen=True)
class ViewLikelihood:
    """Log-likelihood of each view and offset, the mean over in-plane angles and both mirrors.

    Args:
        likelihood: of all poses of the grid.
        offsets_px: a square lattice, in pixels of the likelihood's box.
        log_prior: of each offset.
    """

    likelihood: PoseLikelihood
    offsets_px: Float[Tensor, "offsets 2"]
    log_prior: Float[Tensor, " offsets"]

    @classmethod
    def build(
        cls,
        reference: Reference,
        views: Float[Tensor, "views 3 3"],
        harmonics: DiskHarmonics,
        *,
        shift_sigma_px: float,
        offset_step_px: float,
    ) -> "ViewLikelihood":
        """Project a map along views.

        Args:
            reference: the map, in the box of the harmonics' plane, and the noise.
            views: RELION's matrix A of each view, at the in-plane angle 0.
            harmonics: the basis.
            shift_sigma_px: standard deviation of the offsets per axis; 0 for centred particles.
            offset_step_px: spacing of the offsets.
        """
        angles = inplane_angles(harmonics.plane.last_radius, views.device)
        likelihood = PoseLikelihood.build(reference, PoseGrid(views, angles), harmonics)
        offsets = square_offsets(_REACH * shift_sigma_px, offset_step_px, views.device)
        return cls(likelihood, offsets, log_offset_prior(offsets, shift_sigma_px))

    def __call__(self, particles: ParticleTransforms) -> Float[Tensor, "particles views offsets"]:
        """Log-likelihoods of views at all offsets of the lattice, with the prior of the offset.

        Args:
            particles: particles up to the radius of the likelihood.
        """
        offsets = self.offsets_px.expand(len(particles), -1, -1)
        if not _is_compiled(self.likelihood.linear):
            return self.at_offsets(particles, offsets) + self.log_prior
        chosen = torch.arange(len(self.likelihood.grid.views)).expand(len(particles), -1)
        top, sums = self._for_kernels.sums(particles, chosen, offsets)
        return sums.log_().add_(top).add_(self.log_prior - math.log(_MIRRORS * len(self.likelihood.grid.inplane_rad)))

    def at_offsets(
        self, particles: ParticleTransforms, offsets: Float[Tensor, "particles offsets 2"]
    ) -> Float[Tensor, "particles views offsets"]:
        """Log-likelihoods of views at other offsets, without a prior.

        Args:
            particles: particles up to the radius of the likelihood.
            offsets: in pixels of the likelihood's box.
        """
        poses = self.likelihood.log_likelihoods(particles.at_offsets(offsets, self.likelihood.harmonics))
        n_views = len(self.likelihood.grid.views)
        by_view = poses.view(len(poses), _MIRRORS, n_views, -1)
        highest = by_view.amax((0, 1))
        sums = by_view.sub_(highest).clamp_(min=_MIN_LOG_WEIGHT).exp_().sum((0, 1))
        pooled = sums.log_().add_(highest).sub_(math.log(_MIRRORS * len(poses)))
        return pooled.view(n_views, len(particles), -1).transpose(0, 1)

    @cached_property
    def _for_kernels(self) -> "CompiledViews":
        from cryoeq.reconstruction.compiled_views import CompiledViews  # not above, because of numba

        count, likelihood = len(self.likelihood.grid.views), self.likelihood
        views, powers = (each[:, :count].unflatten(2, (-1, 2)) for each in (likelihood.linear, likelihood.quadratic))
        return CompiledViews.build(likelihood.harmonics, likelihood.grid.inplane_rad, views, powers)


@dataclass(frozen=True)
class ViewProducts:
    """Log-likelihoods of chosen views of each particle, at all in-plane angles, both mirrors and chosen offsets.

    Args:
        harmonics: basis of the images.
        views: RELION's matrix A of each view, at the in-plane angle 0.
        inplane_rad: angles, an even number of them evenly spread over the circle.
        linear: maps an image's coefficients to the Fourier series over the in-plane angle: real and imaginary part of
            its terms, for each view and its mirror.
        quadratic: maps the harmonics of C^2 to the same series.
    """

    harmonics: DiskHarmonics
    views: Float[Tensor, "views 3 3"]
    inplane_rad: Float[Tensor, " angles"]
    linear: Float[Tensor, "orders 2 views 2 inputs"]
    quadratic: Float[Tensor, "power_orders 2 views 2 power_inputs"]

    @classmethod
    def build(cls, reference: Reference, views: Float[Tensor, "views 3 3"], harmonics: DiskHarmonics) -> "ViewProducts":
        """Project a map along views.

        Args:
            reference: the map, in the box of the harmonics' plane, and the noise.
            views: RELION's matrix A of each view, at the in-plane angle 0.
            harmonics: the basis.
        """
        plane = harmonics.plane
        precision = reference.precision[: len(plane)]
        slices = extract_slices(reference.padded, views, plane)
        real, imag = harmonics.analyse(slices * precision).unbind(-1)
        sign = (1.0 - 2.0 * (harmonics.orders % 2))[:, None, None]
        hats = power_hats(plane)
        power = (slices.abs().square() * (plane.weights * precision)).to(hats.dtype)
        mixed = torch.einsum("vp,pjl->lvj", power, hats)
        # Mirroring an image takes the conjugates of its coefficients, with the sign (-1)^m.
        linear = _products((real, -imag), (real * sign, imag * sign))
        quadratic = -0.5 * _products((mixed.real, mixed.imag), (mixed.real, -mixed.imag))
        return cls(harmonics, views, inplane_angles(plane.last_radius, views.device), linear, quadratic)

    def log_likelihoods(
        self,
        particles: ParticleTransforms,
        chosen: Int[Tensor, "particles chosen"],
        offsets_px: Float[Tensor, "particles offsets 2"],
    ) -> Float[Tensor, "angles particles chosen mirrors offsets"]:
        """Log-likelihood of each pose, up to a constant of the image; without a prior.

        Args:
            particles: particles up to the radius of the harmonics.
            chosen: indices of views for each particle.
            offsets_px: offsets of each particle, at which all of its views are tried.
        """
        count, n_chosen = chosen.shape
        terms = particles.at_offsets(offsets_px, self.harmonics)
        orders, n_offsets = len(terms.cross_term), offsets_px.shape[1]
        images = terms.cross_term.view(orders, 1, count, n_offsets, -1).transpose(3, 4)
        series = self.linear[:, :, chosen].flatten(3, 4) @ images
        power = terms.quadratic_term.view(POWER_ORDERS, 1, count, n_offsets, -1)[..., :1, :].transpose(3, 4)
        series[:POWER_ORDERS] += self.quadratic[:, :, chosen].flatten(3, 4) @ power
        return self._synthesise(series).view(-1, count, n_chosen, _MIRRORS, n_offsets)

    def highest(
        self,
        particles: ParticleTransforms,
        chosen: Int[Tensor, "particles chosen"],
        offsets_px: Float[Tensor, "particles offsets 2"],
    ) -> Float[Tensor, "particles chosen offsets"]:
        """The highest of the log-likelihoods over angles and mirrors, compiled in float32 on CPUs.

        Args:
            particles: particles up to the radius of the harmonics.
            chosen: indices of views for each particle.
            offsets_px: offsets of each particle, at which all of its views are tried.
        """
        if _is_compiled(self.linear):
            return self._for_kernels.highest(particles, chosen, offsets_px)
        return self.log_likelihoods(particles, chosen, offsets_px).amax((0, 3))

    def of_one_view(
        self, particles: ParticleTransforms, views: Int[Tensor, " particles"], offsets_px: Float[Tensor, "particles 2"]
    ) -> Float[Tensor, "particles mirrors angles"]:
        """Log-likelihoods of one view of each particle at one offset, compiled in float32 on CPUs.

        Args:
            particles: particles up to the radius of the harmonics.
            views: index of the view of each.
            offsets_px: offset of each.
        """
        if _is_compiled(self.linear):
            return self._for_kernels.scores(particles, views, offsets_px)
        return self.log_likelihoods(particles, views[:, None], offsets_px[:, None])[:, :, 0, :, 0].permute(1, 2, 0)

    @cached_property
    def _for_kernels(self) -> "CompiledViews":
        from cryoeq.reconstruction.compiled_views import CompiledViews  # not above, because of numba

        views, powers = (each[:, 0, :, 0].unflatten(2, (-1, 2)) for each in (self.linear, self.quadratic))
        return CompiledViews.build(self.harmonics, self.inplane_rad, views, powers)

    def _synthesise(
        self, series: Float[Tensor, "orders 2 particles hypotheses offsets"]
    ) -> Float[Tensor, "angles particles hypotheses offsets"]:
        """Values at the angles; even orders repeat after half a turn, odd ones change sign."""
        orders, n_even = self.harmonics.orders, self.harmonics.n_even
        half = self.inplane_rad[: len(self.inplane_rad) // 2, None] * orders
        twice = torch.where(orders == 0, 1.0, 2.0)
        phases = torch.stack([twice * half.cos(), -twice * half.sin()], -1)
        even = phases[:, :n_even].flatten(1) @ series[:n_even].reshape(2 * n_even, -1)
        odd = phases[:, n_even:].flatten(1) @ series[n_even:].reshape(2 * (len(orders) - n_even), -1)
        return torch.cat([even + odd, even - odd]).view(-1, *series.shape[2:])


def _is_compiled(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.dtype == torch.float32


def inplane_angles(radius: float, device: torch.device | None = None) -> Float[Tensor, " angles"]:
    """In-plane angles as fine as a radius needs, a multiple of four over the circle, half a step from 0.

    Args:
        radius: resolution of the comparison, in cycles per box.
        device: of the angles.
    """
    count = 4 * max(1, round(ANGLES_PER_SHELL * radius / 4))
    return (torch.arange(count, device=device) + 0.5) * (2 * math.pi / count)


def square_offsets(reach_px: float, step_px: float, device: torch.device | None = None) -> Float[Tensor, "offsets 2"]:
    """Offsets on a square lattice about the centre, which quarter turns and mirrors map to itself.

    Args:
        reach_px: radius of the disk that they lie in; 0 for the centre alone.
        step_px: distance of neighbours.
        device: of the offsets.
    """
    most = int(reach_px / step_px + 1e-6)
    axis = torch.arange(-most, most + 1, device=device) * step_px
    lattice = torch.cartesian_prod(axis, axis)
    return lattice[lattice.norm(dim=1) <= reach_px + 1e-6 * step_px]


def log_offset_prior(offsets_px: Float[Tensor, "*batch 2"], shift_sigma_px: float) -> Float[Tensor, "*batch"]:
    """Log of the normal prior of offsets, up to a constant; 0 where particles are centred."""
    return offsets_px.square().sum(-1) * (-0.5 / shift_sigma_px**2 if shift_sigma_px > 0 else 0.0)


def inplane_rotations(
    angles_rad: Float[Tensor, "*batch"], is_mirrored: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch 3 3"]:
    """What an in-plane angle and a mirror do to a view: Rz(angle) diag(1, s, s), s = -1 where mirrored."""
    sign = 1.0 - 2.0 * is_mirrored
    cos, sin, zero = angles_rad.cos(), angles_rad.sin(), torch.zeros_like(angles_rad)
    rows = [cos, -sin * sign, zero, sin, cos * sign, zero, zero, zero, sign]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def _products(
    *factors: tuple[Float[Tensor, "orders views terms"], Float[Tensor, "orders views terms"]],
) -> Float[Tensor, "orders 2 views mirrors inputs"]:
    """Real matrices that multiply (real, imaginary) inputs by complex factors, one factor for each mirror."""
    real = torch.stack([torch.stack([re, -im], -1) for re, im in factors], 2)
    imag = torch.stack([torch.stack([im, re], -1) for re, im in factors], 2)
    return torch.stack([real, imag], 1).flatten(4)
