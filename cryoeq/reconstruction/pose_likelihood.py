"""Log-likelihood of every pose of a grid, and posterior-weighted sums of images, as large matrix products.

For an image y with CTF C and noise precision p, at pose R and offset t, up to a constant of the image::

    log p(y | R, t) = sum_k p_k [ Re(C_k y_k exp(-2 pi i k.t / n) conj P_R(k)) - 1/2 C_k^2 |P_R(k)|^2 ]

A pose is a view, an in-plane angle and a mirror. Only one view of each antipodal pair is projected. The other poses
follow from the action of O(2) on images: in the basis of ``DiskHarmonics``, rotation multiplies order m by a phase and
mirroring takes conjugates, so all angles and both mirrors of a view come from one product per order and one Fourier
synthesis. Against products with every rotated projection this saves a factor of about the number of angles.

The views of several maps, one for each class, stand side by side: the posterior is then over class and pose.

C^2 varies slowly, and with the angle only by astigmatism: it is expanded in a few radial hat functions and the angular
orders 0, 2 and 4.

Expectation-maximisation over poses: Scheres 2012, J. Mol. Biol. 415, 406-418 (its equations 3 and 4).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoeq.geometry.disk_harmonics import DiskHarmonics
from cryoeq.geometry.pointgroup import in_asymmetric_unit, split_over_lattice
from cryoeq.geometry.so3 import random_rotations
from cryoeq.geometry.so3_grid import so3_grid
from cryoeq.physics.backprojection import WienerBackprojection
from cryoeq.physics.projection import extract_slices
from cryoeq.reconstruction.particle_transforms import POWER_ORDERS, LikelihoodTerms, power_hats
from cryoeq.reconstruction.reference import Reference

COARSE_SHELL = 10  # up to which views 15 degrees apart are fine enough, and offsets are sampled
_MIN_VIEWS = 12  # of an asymmetric unit, on average
_INPLANE_PER_SHELL = 2.4  # half the number of in-plane angles, over the radius


@dataclass(frozen=True)
class PoseGrid:
    """An even grid over SO(3): views of one hemisphere, both mirrors of each, in-plane angles.

    A map of a point group looks the same from every view of an orbit, so one view of each is enough: the mean of the
    likelihood over the grid is that over all, and sums over views are inserted once for each element of the group.

    Args:
        views: RELION's matrix A of each view.
        inplane_rad: angles, an even number of them evenly spread over the circle.
    """

    views: Float[Tensor, "views 3 3"]
    inplane_rad: Float[Tensor, " angles"]

    @classmethod
    def build(
        cls,
        healpix_order: int,
        n_inplane: int,
        frame: Float[Tensor, "3 3"],
        offset_rad: float = 0.0,
        symmetry: Float[Tensor, "order 3 3"] | None = None,
    ) -> "PoseGrid":
        """A grid of 12 * 4^order views with their mirrors, or those of them in the asymmetric unit of a point group.

        Args:
            healpix_order: resolution of the views.
            n_inplane: number of in-plane angles, even.
            frame: rotation of the whole grid; a random one makes up for the grid's coarseness over the iterations.
            offset_rad: first in-plane angle.
            symmetry: rotations of the map's point group; None for C1.
        """
        views = _hemisphere(healpix_order, frame.dtype, frame.device) @ frame
        if symmetry is not None and len(symmetry) > 1:
            views = views[in_asymmetric_unit(views[:, 2], symmetry)]
        angles = torch.arange(n_inplane, device=frame.device) * (2 * math.pi / n_inplane) + offset_rad
        return cls(views, angles)

    def rotations(self, angle: Int[Tensor, " rows"], hypothesis: Int[Tensor, " rows"]) -> Float[Tensor, "rows 3 3"]:
        """RELION's matrices A of grid points.

        Args:
            angle: index of the in-plane angle.
            hypothesis: index of the view, plus the number of views where mirrored.
        """
        count = len(self.views)
        sign = 1.0 - 2.0 * (hypothesis >= count)
        cos, sin = self.inplane_rad[angle].cos(), self.inplane_rad[angle].sin()
        zero = torch.zeros_like(cos)
        # Rz(angle) diag(1, sign, sign)
        action = torch.stack([cos, -sin * sign, zero, sin, cos * sign, zero, zero, zero, sign], -1).view(-1, 3, 3)
        return action @ self.views[hypothesis % count]


@dataclass(frozen=True)
class PoseLikelihood:
    """The terms of the log-likelihood that depend on the maps alone, for all poses of a grid.

    A hypothesis is a view of a map, or its mirror: first all views of the first map, then of the second, and so on,
    then their mirrors in the same order.

    Args:
        harmonics: basis of the images.
        grid: the poses.
        hats: hat functions times exp(2 i l theta) at the coefficients.
        precision: inverse noise variance of each coefficient.
        linear: maps an image's coefficients to the Fourier series over the in-plane angle, for each view and its
            mirror.
        quadratic: maps the harmonics of C^2 to the same series.
        n_maps: number of maps.
    """

    harmonics: DiskHarmonics
    grid: PoseGrid
    hats: Complex[Tensor, "points hats power_orders"]
    precision: Float[Tensor, " points"]
    linear: Float[Tensor, "orders series inputs"]
    quadratic: Float[Tensor, "power_orders series power_inputs"]
    n_maps: int = 1

    @classmethod
    def build(cls, reference: Reference, grid: PoseGrid, harmonics: DiskHarmonics) -> "PoseLikelihood":
        """Project a map along all views.

        Args:
            reference: the map, in the box of the harmonics' plane, and the noise.
            grid: the poses.
            harmonics: the basis, whose disk should hold the map.
        """
        return cls.of_classes([reference], grid, harmonics)

    @classmethod
    def of_classes(cls, references: Sequence[Reference], grid: PoseGrid, harmonics: DiskHarmonics) -> "PoseLikelihood":
        """Project several maps along all views.

        Args:
            references: the maps, in the box of the harmonics' plane; the noise of the first counts for all.
            grid: the poses.
            harmonics: the basis, whose disk should hold the maps.
        """
        plane = harmonics.plane
        precision = references[0].precision[: len(plane)]
        slices = torch.cat([extract_slices(reference.padded, grid.views, plane) for reference in references])
        real, imag = harmonics.analyse(slices * precision).unbind(-1)
        sign = harmonics.mirror_signs
        # Series of sum conj(P) Z, and of the mirrored view, whose coefficients are (-1)^m conj(P).
        linear = _complex_products((real, -imag), (real * sign, imag * sign))
        hats = power_hats(plane)
        power = (slices.abs().square() * (plane.weights * precision)).to(hats.dtype)
        mixed = torch.einsum("vp,pjl->lvj", power, hats)
        quadratic = -0.5 * _complex_products((mixed.real, mixed.imag), (mixed.real, -mixed.imag))
        return cls(harmonics, grid, hats, precision, linear, quadratic, len(references))

    def log_likelihoods(self, images: LikelihoodTerms) -> Float[Tensor, "angles hypotheses rows"]:
        """Log-likelihood of each row under each pose, up to a constant of the image."""
        even, odd = self.half_turns(images)
        scores = even.new_empty(2, *even.shape)
        torch.add(even, odd, out=scores[0])
        torch.sub(even, odd, out=scores[1])
        return scores.flatten(0, 1)

    def half_turns(
        self, images: LikelihoodTerms
    ) -> tuple[Float[Tensor, "half hypotheses rows"], Float[Tensor, "half hypotheses rows"]]:
        """Two halves of the log-likelihoods at the first half of the angles: of even orders and of odd ones.

        Their sum is the log-likelihood at these angles. Even orders repeat after half a turn, odd ones change sign:
        their difference is that at the other half of the angles.
        """
        orders, rows = images.cross_term.shape[:2]
        series = torch.bmm(self.linear, images.cross_term.reshape(orders, rows, -1).transpose(1, 2))
        power = images.quadratic_term.reshape(POWER_ORDERS, rows, -1).transpose(1, 2)
        series[:POWER_ORDERS].baddbmm_(self.quadratic, power)
        half, count = len(self.grid.inplane_rad) // 2, self.harmonics.n_even
        of_even, of_odd = self.synthesis()
        even = of_even.reshape(half, -1) @ series[:count].view(2 * count, -1)
        odd = of_odd.reshape(half, -1) @ series[count:].view(2 * (orders - count), -1)
        return even.view(half, -1, rows), odd.view(half, -1, rows)

    def sum_images(self, weights: Float[Tensor, "angles hypotheses rows"], images: LikelihoodTerms) -> LikelihoodTerms:
        """Images rotated into the frame of each view and summed with their weights: one row per view of each map.

        It is the adjoint of the cross term of ``log_likelihoods``.
        """
        first, second = weights.chunk(2)
        return self.sum_halves(first + second, first - second, images)

    def sum_halves(
        self,
        even: Float[Tensor, "half hypotheses rows"],
        odd: Float[Tensor, "half hypotheses rows"],
        images: LikelihoodTerms,
    ) -> LikelihoodTerms:
        """As ``sum_images``.

        Args:
            even: sum of the weights at each of the first half of the angles and half a turn further.
            odd: their difference.
            images: the images.
        """
        orders, rows, (analyse_even, analyse_odd) = len(self.linear), even.shape[2], self.analysis()
        moments = even.new_empty(orders, self.linear.shape[1], rows)
        count = self.harmonics.n_even
        torch.mm(analyse_even.flatten(1).T, even.flatten(1), out=moments[:count].view(2 * count, -1))
        torch.mm(analyse_odd.flatten(1).T, odd.flatten(1), out=moments[count:].view(2 * (orders - count), -1))
        sign = self.harmonics.mirror_signs
        linear = _sum_rows(moments, images.cross_term, sign)
        power = _sum_rows(moments[:POWER_ORDERS], images.quadratic_term, torch.ones_like(sign[:POWER_ORDERS]))
        return LikelihoodTerms(linear, power)

    def synthesis(self) -> tuple[Float[Tensor, "half even 2"], Float[Tensor, "half odd 2"]]:
        """Takes Fourier coefficients over the angle, real and imaginary part, to the halves of ``half_turns``."""
        phases, count = self._phases(is_analysis=False), self.harmonics.n_even
        return phases[:, :count], phases[:, count:]

    def analysis(self) -> tuple[Float[Tensor, "half even 2"], Float[Tensor, "half odd 2"]]:
        """Takes the halves of ``sum_halves`` to Fourier coefficients over the angle, real and imaginary part."""
        phases, count = self._phases(is_analysis=True), self.harmonics.n_even
        return phases[:, :count], phases[:, count:]

    def no_images(self) -> LikelihoodTerms:
        """Sums over no image, as ``sum_images`` has them."""
        views, radial = len(self.grid.views) * self.n_maps, self.harmonics.basis.shape[-1]
        return LikelihoodTerms(
            self.precision.new_zeros(len(self.harmonics.orders), views, radial, 2),
            self.precision.new_zeros(POWER_ORDERS, views, self.hats.shape[1], 2),
        )

    def of_map(self, sums: LikelihoodTerms, number: int) -> LikelihoodTerms:
        """The sums over the views of one map, from ``sum_images``.

        Args:
            sums: those over the views of all maps.
            number: index of the map.
        """
        views = len(self.grid.views)
        some = slice(number * views, (number + 1) * views)
        return LikelihoodTerms(sums.cross_term[:, some], sums.quadratic_term[:, some])

    def insert(
        self, sums: LikelihoodTerms, padding: int = 2, symmetry: Float[Tensor, "order 3 3"] | None = None
    ) -> WienerBackprojection:
        """Sums over views as sums in the map's transform.

        Args:
            sums: sums of images per view of one map, from ``sum_images`` and ``of_map``.
            padding: oversampling of the transform.
            symmetry: rotations of the map's point group; each image counts once for each.
        """
        matched = self.harmonics.synthesise(sums.cross_term) * self.precision
        twice = _multiplicity(self.hats.dtype, self.hats.device)
        harmonics = torch.view_as_complex(sums.quadratic_term.contiguous())
        power = torch.einsum("lvj,pjl,l->vp", harmonics, self.hats, twice).real * self.precision
        plane, views = self.harmonics.plane, self.grid.views
        inserted = WienerBackprojection.empty(plane.box_size_px, padding, dtype=power.dtype, device=power.device)
        if symmetry is None or len(symmetry) == 1:
            return inserted.add_(matched, power, views, plane)
        cosets, on_lattice = split_over_lattice(symmetry.to(power))
        views, times = (views @ cosets[:, None]).flatten(0, 1), (len(cosets), 1)
        return inserted.add_(matched.repeat(times), power.repeat(times), views, plane).symmetrised(on_lattice)

    def _phases(self, *, is_analysis: bool) -> Float[Tensor, "half orders 2"]:
        """Cosine and sine of m times the first half of the angles, to sum a series or to find its coefficients."""
        orders = self.harmonics.orders
        angles = self.grid.inplane_rad[: len(self.grid.inplane_rad) // 2, None] * orders
        if is_analysis:
            return torch.stack([angles.cos(), angles.sin()], -1)
        twice = torch.where(orders == 0, 1.0, 2.0)
        return torch.stack([twice * angles.cos(), -twice * angles.sin()], -1)


@lru_cache(maxsize=8)
def _hemisphere(healpix_order: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "views 3 3"]:
    """One view of each antipodal pair; kept, so not to be changed."""
    views = so3_grid(healpix_order, 1, dtype=dtype)
    direction = views[:, 2]
    rank = direction @ direction.new_tensor([1.0, 1e2, 1e4])
    return views[rank > 0].to(device)


@lru_cache(maxsize=8)
def _multiplicity(dtype: torch.dtype, device: torch.device) -> Complex[Tensor, " power_orders"]:
    """1 for order 0, 2 for those that stand for their negative too; kept, so not to be changed."""
    twice = torch.full((POWER_ORDERS,), 2.0, dtype=dtype, device=device)
    twice[:1].fill_(1.0)  # an assignment of one number would wait for a GPU
    return twice


def _complex_products(
    *factors: tuple[Float[Tensor, "orders views terms"], Float[Tensor, "orders views terms"]],
) -> Float[Tensor, "orders series inputs"]:
    """Real matrices that multiply (real, imaginary) inputs by complex factors, one factor per hypothesis.

    Their rows are the real parts of all hypotheses, then the imaginary parts.
    """
    real = torch.cat([torch.stack([re, -im], -1) for re, im in factors], 1)
    imag = torch.cat([torch.stack([im, re], -1) for re, im in factors], 1)
    return torch.cat([real, imag], 1).flatten(2)


def _sum_rows(
    moments: Float[Tensor, "orders series rows"],
    images: Float[Tensor, "orders rows terms 2"],
    sign: Float[Tensor, "orders 1 1"],
) -> Float[Tensor, "orders views terms 2"]:
    """Sum over rows of the complex moment times the image; mirrored ones enter conjugated, with their sign."""
    orders, rows = images.shape[:2]
    products = torch.bmm(moments, images.reshape(orders, rows, -1))
    of_real, of_imag = products.view(orders, 2, 2, moments.shape[1] // 4, -1, 2).unbind(1)
    real = of_real[..., 0] - of_imag[..., 1]
    imag = of_real[..., 1] + of_imag[..., 0]
    return torch.stack([real[:, 0] + sign * real[:, 1], imag[:, 0] - sign * imag[:, 1]], -1)


def pose_grid(
    radius: int, generator: torch.Generator, device: torch.device, symmetry: Float[Tensor, "order 3 3"] | None = None
) -> PoseGrid:
    """A grid as fine as a radius needs, in a random frame.

    Args:
        radius: resolution of the comparison, in cycles per box.
        generator: random number generator of the frame.
        device: device of the grid.
        symmetry: rotations of the map's point group, whose asymmetric unit the views are in; None for C1.
    """
    offset = 2 * math.pi * float(torch.rand(1, generator=generator))
    frame = random_rotations(1, generator, device)[0]
    healpix_order = _healpix_order(radius)
    # Few views cover an asymmetric unit unevenly: they are closer there, and still fewer than without symmetry.
    while symmetry is not None and 6 * 4**healpix_order < _MIN_VIEWS * len(symmetry):
        healpix_order += 1
    return PoseGrid.build(healpix_order, _n_inplane(radius), frame, offset, symmetry)


def grid_size(radius: int) -> tuple[int, int]:
    """Number of views, without their mirrors, and of in-plane angles of ``pose_grid`` in C1; no group has more."""
    return 6 * 4 ** _healpix_order(radius), _n_inplane(radius)


def _healpix_order(radius: int) -> int:
    return 2 if radius <= COARSE_SHELL else 3


def _n_inplane(radius: int) -> int:
    return 2 * round(_INPLANE_PER_SHELL * radius)
