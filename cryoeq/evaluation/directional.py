"""Resolution by direction: Fourier shell correlation inside cones, and its anisotropy.

Directions are those of Fourier space: views along z hold no detail along z, so they leave a low correlation in the cone
about z. Conical correlation and sphericity: Tan et al. 2017, Nat. Methods 14, 793-796 (3DFSC). cFAR, the
smallest area under a conical curve divided by the largest: cryoSPARC's "conical FSC area ratio".
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Int, Int32
from scipy.spatial import ConvexHull
from torch import Tensor

from cryoeq.domain.volume import Volume, require_same_frame
from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD, crossing_shells, resolution_angstrom
from cryoeq.geometry.healpix import opposite_pixels, pixel_centres, pixel_of_directions
from cryoeq.geometry.shells import slabs, squared_radii

CONE_HALF_ANGLE_DEG: Final = 20.0
ANISOTROPIC_CFAR: Final = 0.5
SPHERICITY_THRESHOLD: Final = 0.5
AXES_ORDER: Final = 4
"""Cones have their axes at the centres of these HEALPix pixels: 3072, 3.7 degrees apart, 1536 of them distinct."""
_BIN_ORDER = 5  # coefficients of one shell within a pixel of 1.8 degrees are summed before the cones are
_MIN_COEFFICIENTS = 16  # in fewer, one weak coefficient can bring a curve below 0.143: reached at shell 6 or 7


@dataclass(frozen=True)
class DirectionalFsc:
    """Correlation of two maps per direction and shell.

    Args:
        box_size_px: side of the maps.
        pixel_size_angstrom: pixel size of the maps.
        curves: for each pixel of ``AXES_ORDER``, correlation per shell inside the double cone about its centre.
        overall: correlation per shell over all directions.
    """

    box_size_px: int
    pixel_size_angstrom: float
    curves: Float[Tensor, "axes shells"]
    overall: Float[Tensor, " shells"]

    @property
    def axes(self) -> Float[Tensor, "axes 3"]:
        """Unit vectors (x, y, z) along the axes of the cones; each has its opposite among them."""
        return pixel_centres(AXES_ORDER)

    @cached_property
    def resolutions_angstrom(self) -> Float[Tensor, " axes"]:
        """Resolution of each curve: its last shell before it first drops below 0.143; infinite if shell 1 is below."""
        n, pixel = self.box_size_px, self.pixel_size_angstrom
        values = [resolution_angstrom(curve, HALF_MAP_THRESHOLD, n, pixel) for curve in self.curves]
        return torch.tensor(values, dtype=torch.float64)

    @cached_property
    def areas(self) -> Float[Tensor, " axes"]:
        """Area under each curve up to where it first drops below 0.143, in shells."""
        is_above = (self.curves[:, 1:] >= HALF_MAP_THRESHOLD).cumprod(1)
        return (self.curves[:, 1:] * is_above).sum(1)

    @property
    def area_ratio(self) -> float:
        """cFAR: the smallest area divided by the largest, 1 for a resolution that is the same in all directions."""
        largest = float(self.areas.max())
        return float(self.areas.min()) / largest if largest > 0 else 0.0

    @cached_property
    def best_axis(self) -> Float[Tensor, " 3"]:
        """Of the directions with the best resolution, that with the largest area under its curve; z >= 0."""
        is_best = self.resolutions_angstrom == self.resolutions_angstrom.min()
        axis = self.axes[torch.where(is_best, self.areas, -1.0).argmax()]
        return axis if float(axis[2]) >= 0 else -axis

    @cached_property
    def worst_axis(self) -> Float[Tensor, " 3"]:
        """Of the directions with the worst resolution, that nearest to the middle of the smallest areas; z >= 0.

        The middle is the principal axis of the directions whose area is within a tenth of the range above the smallest:
        a missing cone is wide, and noise decides which of its directions has the smallest area.
        """
        low, high = self.areas.min(), self.areas.max()
        smallest = self.axes[self.areas <= low + 0.1 * (high - low)]
        middle = torch.linalg.eigh(smallest.T @ smallest).eigenvectors[:, -1]
        worst = self.axes[self.resolutions_angstrom == self.resolutions_angstrom.max()]
        axis = worst[(worst @ middle).abs().argmax()]
        return axis if float(axis[2]) >= 0 else -axis

    @cached_property
    def sphericity(self) -> float:
        """Sphericity of the surface in Fourier space where the conical curves first drop below 0.5: 1 for a sphere.

        (36 pi V^2)^(1/3) / A, V and A the surface's volume and area, relative to that of equal radii. 0 where some
        curve has no shell above 0.5.
        """
        radii = crossing_shells(self.curves, SPHERICITY_THRESHOLD)
        if float(radii.min()) <= 0:
            return 0.0
        return _roundness(radii) / _roundness(torch.ones_like(radii))


def directional_fsc(first: Volume, second: Volume, mask: Volume | None = None) -> DirectionalFsc:
    """Correlation of two maps inside cones of 20 degrees half-angle about axes all over the sphere.

    A cone that holds fewer than 16 coefficients of a shell, as in the innermost six, has the shell's overall value.

    Args:
        first: a map.
        second: another map in the same frame.
        mask: mask of both maps; a tight one smears detail into directions that have none.

    Raises:
        MapFileError: boxes or pixel sizes that differ.
    """
    require_same_frame(first, second)
    sums = _sums_by_direction(*(_transform(volume, mask) for volume in (first, second)))
    overall = _correlation(sums[:3].sum(1))
    mirrored = _distinct_axes()[1]
    cones = _cone_members().to(sums.device, torch.float32)
    # Float32 suffices for the sums of one cone, and halves the time; the powers of one shell do not differ by much.
    in_cones = torch.einsum("ap,ips->ias", cones, _unit_scale(sums).float()).double()
    curves = torch.where(in_cones[3] >= _MIN_COEFFICIENTS, _correlation(in_cones[:3]), overall)
    return DirectionalFsc(first.box_size_px, first.pixel_size_angstrom, curves[mirrored].cpu(), overall.cpu())


def fsc_volume(directional: DirectionalFsc) -> Volume:
    """The 3DFSC: correlation of cone and shell at each point of Fourier space; 0 beyond Nyquist.

    The zero frequency is at voxel n // 2.
    """
    n, table = directional.box_size_px, directional.curves.float()
    k = torch.arange(n) - n // 2
    values = torch.zeros(n, n, n)
    for start, stop in slabs(n):
        z, y, x = torch.meshgrid(k[start:stop], k, k, indexing="ij")
        shells = ((x**2 + y**2 + z**2).sqrt() + 0.5).long()
        inside = shells < table.shape[1]
        pixels = pixel_of_directions(torch.stack([x[inside], y[inside], z[inside]], -1).float(), AXES_ORDER)
        values[start:stop][inside] = table[pixels, shells[inside]]
    return Volume(values, directional.pixel_size_angstrom)


def _transform(volume: Volume, mask: Volume | None) -> Complex[Tensor, "n n half"]:
    return torch.fft.rfftn(volume.values if mask is None else volume.values * mask.values)


def _sums_by_direction(
    first: Complex[Tensor, "n n half"], second: Complex[Tensor, "n n half"]
) -> Float[Tensor, "4 pixels shells"]:
    """Cross product, both powers and count, per fine pixel and shell, each stored coefficient counted once."""
    n = first.shape[0]
    n_shells, n_pixels = n // 2 + 1, 12 * 4**_BIN_ORDER
    k = torch.fft.fftfreq(n, 1 / n, device=first.device)
    sums = torch.zeros(4, n_pixels * (n_shells + 1), dtype=torch.float64, device=first.device)
    for start, stop in slabs(n):
        one, other = first[start:stop], second[start:stop]
        z, y, x = torch.meshgrid(k[start:stop], k, k[: n // 2 + 1].abs(), indexing="ij")
        pixels = pixel_of_directions(torch.stack([x, y, z], -1), _BIN_ORDER)
        radii = squared_radii(n, start, stop, first.device).double().sqrt()
        indices = (pixels * (n_shells + 1) + (radii + 0.5).long().clamp(max=n_shells)).flatten()
        products = ((one * other.conj()).real, one.abs().square(), other.abs().square(), torch.ones_like(x))
        for row, product in zip(sums, products, strict=True):
            row.index_add_(0, indices, product.flatten().double())
    return sums.view(4, n_pixels, n_shells + 1)[..., :n_shells]


def _unit_scale(sums: Float[Tensor, "4 pixels shells"]) -> Float[Tensor, "4 pixels shells"]:
    """Sums with products divided by each shell's mean power, so that single precision is enough."""
    scale = (sums[1:3].mean(0).sum(0) / sums[3].sum(0)).clamp(min=torch.finfo(sums.dtype).tiny)
    return torch.cat([sums[:3] / scale, sums[3:]])


def _correlation(sums: Float[Tensor, "3 *shape"]) -> Float[Tensor, "*shape"]:
    cross, first_power, second_power = sums
    power = first_power * second_power
    return torch.where(power > 0, cross / power.clamp(min=torch.finfo(power.dtype).tiny).sqrt(), 0.0)


@cache
def _distinct_axes() -> tuple[Int[Tensor, " distinct"], Int[Tensor, " axes"]]:
    """One axis of each opposite pair, and for each axis its index among those."""
    opposite = opposite_pixels(AXES_ORDER)
    representative = torch.minimum(torch.arange(len(opposite)), opposite)
    half, indices = representative.unique(return_inverse=True)
    return half, indices


@cache
def _cone_members() -> Bool[Tensor, "distinct bins"]:
    """Whether each fine pixel lies in the double cone about each distinct axis."""
    axes = pixel_centres(AXES_ORDER)[_distinct_axes()[0]]
    cosines = axes.float() @ pixel_centres(_BIN_ORDER).float().T
    return cosines.abs() >= math.cos(math.radians(CONE_HALF_ANGLE_DEG))


def _roundness(radii: Float[Tensor, " axes"]) -> float:
    """(36 pi V^2)^(1/3) / A of the polyhedron with corners at these distances along the axes."""
    unit = pixel_centres(AXES_ORDER).numpy()
    corners = (unit * radii.numpy()[:, None])[_triangles()]
    volume = np.abs(np.linalg.det(corners)).sum() / 6
    sides = corners[:, 1:] - corners[:, :1]
    area = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1).sum() / 2
    return float((36 * math.pi * volume**2) ** (1 / 3) / area)


@cache
def _triangles() -> Int32[np.ndarray, "triangles 3"]:
    """Corners of the triangles between neighbouring axes: the convex hull of points on a sphere."""
    return ConvexHull(pixel_centres(AXES_ORDER).numpy()).simplices
