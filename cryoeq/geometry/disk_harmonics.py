"""A steerable basis of images: Fourier modes in the angle times radial functions, confined in both spaces.

An image whose content lies within a disk and below a frequency has few degrees of freedom. For each angular order m,
the singular vectors of the Hankel transform between the disk and the band span them; those with small singular values
do not fit in both and are left out. Rotating the image by phi multiplies the coefficients of order m by exp(-i m phi),
so correlations over all in-plane angles are Fourier series, and a mirrored image has the conjugates, with sign (-1)^m.

Slepian 1964, Prolate spheroidal wave functions IV, Bell Syst. Tech. J. 43, 3009-3057. In cryo-EM: Zhao, Shkolnisky and
Singer 2016, Fast steerable principal component analysis, IEEE Trans. Comput. Imaging 2, 1-12; Rangan, Spivak, Andén and
Barnett 2020, Factorization of the translation kernel for fast rigid image alignment, Inverse Problems 36, 024001.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from numpy.polynomial.legendre import leggauss
from scipy.special import jv
from torch import Tensor

from cryoeq.geometry.fourier import HalfPlane
from cryoeq.runtime.random_streams import to_device_async

# The least share of a radial function's energy that must lie in the disk, as an amplitude. Projections of 6MSM keep all
# but 1.5e-4 of their energy up to radius 15, and no threshold between 0.1 and 0.7 does better; up to radius 5, where
# the edge of the band is a larger part, they come back with an error of 4 to 7 % in amplitude.
_MIN_SINGULAR_VALUE = 0.7
_EDGE = 0.5  # how far the band reaches beyond the outermost coefficient, in cycles per box


@dataclass(frozen=True)
class DiskHarmonics:
    """An orthonormal basis, to the accuracy of sums over a grid of pixels, of real images in Fourier space.

    Args:
        plane: coefficients of the images.
        orders: m >= 0 of each angular mode, the even ones first; those of -m follow from the images being real.
        basis: radial function times exp(i m theta), 0 where an order has fewer radial functions.
        even_weights: takes real parts of images to coefficients of even order.
        odd_weights: takes imaginary parts of images to coefficients of odd order.
    """

    plane: HalfPlane
    orders: Int[Tensor, " orders"]
    basis: Complex[Tensor, "orders points radial"]
    even_weights: Float[Tensor, "points even"]
    odd_weights: Float[Tensor, "points odd"]

    @classmethod
    def build(cls, plane: HalfPlane, support_radius_px: float) -> "DiskHarmonics":
        """The basis for images whose content lies within a disk.

        Args:
            plane: coefficients of the images; the band ends half a cycle beyond the last of them.
            support_radius_px: radius of the disk in real space, in pixels of the plane's box.
        """
        functions = _radial_functions(plane, support_radius_px)
        orders = [*range(0, len(functions), 2), *range(1, len(functions), 2)]
        n_radial = max(function.shape[1] for function in functions)
        theta = torch.atan2(plane.coords[:, 1].double(), plane.coords[:, 0].double())
        basis = torch.zeros(len(orders), len(plane), n_radial, dtype=torch.cdouble, device=plane.coords.device)
        for row, m in enumerate(orders):
            radial = torch.from_numpy(functions[m]).to(theta)
            basis[row, :, : radial.shape[1]] = radial * torch.polar(torch.ones_like(theta), m * theta)[:, None]
        # The mate of each coefficient is its conjugate and has (-1)^m times the basis: together they give twice the
        # real part where m is even, and 2i times the imaginary part where it is odd.
        adjoint = basis.conj() * plane.weights[:, None]
        n_even = (len(orders) + 1) // 2
        even, odd = adjoint[:n_even], adjoint[n_even:] * 1j
        return cls(
            plane,
            torch.tensor(orders, device=theta.device),
            basis.to(torch.get_default_dtype().to_complex()),
            _as_real_columns(even),
            _as_real_columns(odd),
        )

    def to(self, device: torch.device) -> "DiskHarmonics":
        """The basis on another device."""
        rest = (self.orders, self.basis, self.even_weights, self.odd_weights)
        return DiskHarmonics(self.plane.to(device), *(to_device_async(values, device) for values in rest))

    @property
    def n_even(self) -> int:
        """Number of even orders."""
        return (len(self.orders) + 1) // 2

    @cached_property
    def n_radial(self) -> tuple[int, ...]:
        """Number of radial functions of each order: the rest of its coefficients are 0, about half of all."""
        return tuple((self.basis.abs().amax(1) > 0).sum(1).tolist())

    @cached_property
    def mirror_signs(self) -> Float[Tensor, "orders one one"]:
        """(-1)^m: what mirroring an image multiplies its conjugate coefficients by."""
        return (1.0 - 2.0 * (self.orders % 2))[:, None, None]

    @cached_property
    def _multiplicity(self) -> Float[Tensor, "orders one one"]:
        """1 for order 0, 2 for those that stand for -m too."""
        return torch.where(self.orders == 0, 1.0, 2.0)[:, None, None]

    def analyse(self, images: Complex[Tensor, "batch points"]) -> Float[Tensor, "orders batch radial 2"]:
        """Coefficients of images, real and imaginary part; what lies outside disk and band is dropped."""
        radial = self.basis.shape[-1]
        even = (images.real @ self.even_weights).view(len(images), -1, radial, 2)
        odd = (images.imag @ self.odd_weights).view(len(images), -1, radial, 2)
        return torch.cat([even, odd], 1).transpose(0, 1).contiguous()

    def synthesise(self, coefficients: Float[Tensor, "orders batch radial 2"]) -> Complex[Tensor, "batch points"]:
        """Images from coefficients."""
        values = torch.view_as_complex(coefficients.contiguous())
        modes = (values * self._multiplicity).transpose(0, 1)  # batch orders radial
        even, odd = modes[:, : self.n_even], modes[:, self.n_even :]
        real = torch.einsum("boq,opq->bp", even, self.basis[: self.n_even]).real
        imag = torch.einsum("boq,opq->bp", odd, self.basis[self.n_even :]).imag
        return torch.complex(real, imag)


@lru_cache(maxsize=32)
def disk_harmonics(box_size_px: int, radius: float, support_radius_px: float, device: torch.device) -> DiskHarmonics:
    """The basis for all coefficients up to a radius, cached."""
    # Built on the CPU, order by order, and moved once.
    found = DiskHarmonics.build(HalfPlane.up_to(box_size_px, radius), support_radius_px)
    return found if device.type == "cpu" else found.to(device)


def _as_real_columns(weights: Complex[Tensor, "orders points radial"]) -> Float[Tensor, "points columns"]:
    columns = weights.transpose(0, 1).to(torch.get_default_dtype().to_complex())
    return torch.view_as_real(columns.contiguous()).flatten(1)


def _radial_functions(plane: HalfPlane, support_radius_px: float) -> list[np.ndarray]:
    """Radial functions at the radii of the plane, one array (points, functions) for each order from 0 on."""
    n = plane.box_size_px
    radii, index = np.unique(plane.radii.double().cpu().numpy(), return_inverse=True)
    band = float(radii.max()) + _EDGE
    k, k_weights = _quadrature(band, int(1.3 * band) + 12)
    r, r_weights = _quadrature(support_radius_px, int(3.2 * band * support_radius_px / n) + 12)
    angular = 2 * math.pi / n
    functions: list[np.ndarray] = []
    while True:
        m = len(functions)
        r_scale = np.sqrt(r * r_weights)[:, None]
        hankel = angular * jv(m, angular * r[:, None] * k) * r_scale * np.sqrt(k * k_weights)
        left, singular, _ = np.linalg.svd(hankel, full_matrices=False)
        count = int((singular > _MIN_SINGULAR_VALUE).sum())
        if count == 0:
            return functions
        # Right singular vectors, evaluated wherever they are needed through the left ones.
        at_radii = angular * (jv(m, angular * r[:, None] * radii) * r_scale).T @ left[:, :count] / singular[:count]
        functions.append(at_radii[index] / math.sqrt(2 * math.pi))


def _quadrature(end: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights from 0 to an end."""
    nodes, weights = leggauss(count)
    return (nodes + 1) * end / 2, weights * end / 2


def support_radius(particle_radius: float, box_size_px: int) -> float:
    """Radius in pixels of the disk that projections of a masked map lie in."""
    return min((particle_radius + 0.05) * box_size_px, box_size_px / 2 - 0.5)
