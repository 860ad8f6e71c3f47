"""Mirror-odd invariants of the density around its peaks: numbers that no rotation changes and a mirror negates.

Spheres of several radii around a peak of density are expanded in real spherical harmonics. A polynomial in their
coefficients that rotations leave alone changes under a mirror by the parity of its degrees only. With three degrees l1,
l2, l3 of odd sum, the only one of third order is the integral of a Poisson bracket on the sphere::

    integral of n . (grad f x grad g) h,   f, g, h of degrees l1, l2, l3, each of any radius

(the bispectrum of Kakarala 2012, J. Math. Imaging Vis. 44, 341-353, has the even sums too, which a mirror keeps).
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from jaxtyping import Float, Int
from numpy.polynomial import Legendre, legendre

from cryoeq.domain.volume import Volume

RADII: Final = (0.5, 0.9, 1.4, 1.9, 2.5)
"""Radii of the spheres, in units of the resolution."""
_MAX_DEGREE = 4
_COLATITUDES, _LONGITUDES = 9, 18  # exact up to degree 17
_VOXELS_PER_RESOLUTION, _MIN_VOXEL_ANGSTROM = 4.0, 1.2
_LONGEST_WAVE_ANGSTROM = 30.0  # beyond: the envelope of the molecule
_MAX_PEAKS, _MIN_HEIGHT = 6000, 0.35  # of the mean of the highest peaks
_CHUNK = 400  # peaks at a time

Array = np.ndarray


@dataclass(frozen=True)
class LocalChirality:
    """Mirror-odd invariants at the peaks of a map.

    Args:
        positions_angstrom: peaks (z, y, x) about the centre of the box.
        invariants: per peak, of the density around it at unit contrast, in a fixed order.
    """

    positions_angstrom: Float[Array, "peaks 3"]
    invariants: Float[Array, "peaks features"]


@dataclass(frozen=True)
class _Harmonics:
    """Real spherical harmonics up to degree 4 at the nodes of a quadrature.

    Args:
        directions: nodes (z, y, x).
        weights: of the quadrature, of sum 1.
        values: harmonics of mean square 1; degree l from column l^2 on.
        by_colatitude: their derivative by the colatitude.
        by_longitude: that by the longitude, over the sine of the colatitude.
    """

    directions: Float[Array, "nodes 3"]
    weights: Float[Array, " nodes"]
    values: Float[Array, "nodes harmonics"]
    by_colatitude: Float[Array, "nodes harmonics"]
    by_longitude: Float[Array, "nodes harmonics"]


def local_chirality(volume: Volume, resolution_angstrom: float) -> LocalChirality:
    """Invariants at the peaks of a map that was whitened and cut at a resolution.

    The amplitudes of the map do not matter: each shell is brought to the power that half maps would leave it whose FSC
    falls to 0.143 at the resolution. The mirror image of a map, about voxel n // 2, has the mirrored peaks and the
    negated invariants, but for rounding.

    Args:
        volume: a map, masked or not, of any sharpening.
        resolution_angstrom: where to cut.
    """
    values, pixel_angstrom = _whitened(volume, resolution_angstrom)
    peaks = _find_peaks(values)
    radii_px = np.array(RADII) * resolution_angstrom / pixel_angstrom
    found = [_invariants(_expand(values, some, radii_px)) for some in np.array_split(peaks, len(peaks) // _CHUNK + 1)]
    size = len(values)
    return LocalChirality(((peaks + size // 2) % size - size // 2) * pixel_angstrom, np.concatenate(found))


def _whitened(volume: Volume, resolution_angstrom: float) -> tuple[Float[Array, "m m m"], float]:
    """A map with equal shells, weighted and cut, at four voxels per resolution, with its centre at voxel 0; voxels."""
    n, pixel = volume.box_size_px, volume.pixel_size_angstrom
    voxel = max(_MIN_VOXEL_ANGSTROM, resolution_angstrom / _VOXELS_PER_RESOLUTION)
    m = max(8, 2 * round(n * pixel / voxel / 2))
    half = min((n + 1) // 2, m // 2)  # of coefficients, without Nyquist's
    both = np.r_[0:half, 1 - half : 0]
    kept = np.fft.rfft(np.fft.ifftshift(volume.values.detach().cpu().double().numpy()), axis=2)[:, :, :half]
    kept = np.fft.fft(np.fft.fft(kept, axis=1)[:, both], axis=0)[both]
    squared = both.astype(float) ** 2
    frequency = np.sqrt(squared[:, None, None] + squared[:, None] + squared[:half])
    shell = np.rint(frequency).astype(int)
    power = np.bincount(shell.ravel(), np.abs(kept.ravel()) ** 2) / np.maximum(1, np.bincount(shell.ravel()))
    x = frequency * resolution_angstrom / (n * pixel)
    fsc = 1 / (1 + 6 * x**6)  # 1/7 at the resolution
    weight = np.sqrt(2 * fsc / (1 + fsc)) * np.clip((1.05 - x) / 0.1, 0, 1)
    weight *= 1 - np.exp(-((x * _LONGEST_WAVE_ANGSTROM / resolution_angstrom) ** 2))
    amplitude = np.sqrt(power)[shell]
    scaled = np.zeros((m, m, m // 2 + 1), complex)
    scaled[np.ix_(both, both, np.arange(half))] = kept * np.divide(weight, amplitude, where=amplitude > 0, out=0 * x)
    return np.fft.irfftn(scaled, s=(m, m, m), axes=(0, 1, 2)), n * pixel / m


def _find_peaks(values: Float[Array, "m m m"]) -> Int[Array, "peaks 3"]:
    """The highest voxels among their 26 neighbours that stand out, highest first; none for a flat map."""
    from scipy.ndimage import maximum_filter

    m = len(values)
    places = np.argwhere((values == maximum_filter(values, size=3, mode="wrap")) & (values > 0))
    places = places[(places != m // 2).all(1)]  # the border of the box, which has no mirror image
    heights = values[tuple(places.T)]
    order = np.argsort(-heights, kind="stable")[:_MAX_PEAKS]
    places, heights = places[order], heights[order]
    return places[heights > _MIN_HEIGHT * heights[: max(10, len(heights) // 50)].mean()] if len(heights) else places


def _expand(
    values: Float[Array, "m m m"], peaks: Int[Array, "peaks 3"], radii_px: Float[Array, " radii"]
) -> Float[Array, "peaks radii harmonics"]:
    """Coefficients of the density on spheres around peaks."""
    from scipy.ndimage import map_coordinates

    harmonics = _harmonics()
    offsets = radii_px[:, None, None] * harmonics.directions
    places = peaks[:, None, None] + offsets
    samples = map_coordinates(values, places.reshape(-1, 3).T, order=1, mode="grid-wrap").reshape(places.shape[:-1])
    return np.asarray(samples @ (harmonics.values * harmonics.weights[:, None]))


def _invariants(coefficients: Float[Array, "peaks radii harmonics"]) -> Float[Array, "peaks features"]:
    contrast = np.sqrt((coefficients[:, :, 1:] ** 2).sum((1, 2), keepdims=True))
    scaled = np.divide(coefficients, contrast, where=contrast > 0, out=np.zeros_like(coefficients))
    found = []
    for degrees in _degrees():
        first, second, third = (scaled[:, :, _orders(degree)] for degree in degrees)
        pairs = np.einsum("pax,xyz->payz", first, _coupling(degrees), optimize=True)
        pairs = np.einsum("payz,pby->pabz", pairs, second, optimize=True)
        triples = np.einsum("pabz,pcz->pabc", pairs, third, optimize=True)
        found.append(triples[:, *_radii_of(degrees).T])
    return np.concatenate(found, 1)


@cache
def _degrees() -> tuple[tuple[int, int, int], ...]:
    """Degrees of odd sum that couple to a number, in ascending order."""
    top = _MAX_DEGREE + 1
    return tuple(
        (first, second, third)
        for first in range(1, top)
        for second in range(first, top)
        for third in range(second, min(top, first + second + 1))
        if (first + second + third) % 2
    )


@cache
def _radii_of(degrees: tuple[int, int, int]) -> Int[Array, "triples 3"]:
    """Radii of three harmonics; of equal degrees, each set once, since the invariant changes sign with their order."""
    triples = np.array(list(np.ndindex(len(RADII), len(RADII), len(RADII))))
    first, second, third = triples.T
    keep = np.ones(len(triples), bool)
    if degrees[0] == degrees[1]:
        keep &= first < second
    if degrees[1] == degrees[2]:
        keep &= second < third
    return triples[keep]


@cache
def _coupling(degrees: tuple[int, int, int]) -> Float[Array, "first second third"]:
    """Integral of the Poisson bracket of two harmonics times a third, for all orders, scaled to unit norm."""
    at = _harmonics()
    first, second, third = map(_orders, degrees)
    bracket = at.by_colatitude[:, first, None] * at.by_longitude[:, None, second]
    bracket -= at.by_longitude[:, first, None] * at.by_colatitude[:, None, second]
    tensor = np.einsum("n,nxy,nz->xyz", at.weights, bracket, at.values[:, third])
    return np.asarray(tensor / np.linalg.norm(tensor))


def _orders(degree: int) -> slice:
    """Columns of the harmonics of a degree."""
    return slice(degree**2, (degree + 1) ** 2)


@cache
def _harmonics() -> _Harmonics:
    """Harmonics on a grid that is its own mirror image in z, y and x: Gauss-Legendre times equal longitudes."""
    cosines, weights = legendre.leggauss(_COLATITUDES)
    longitude = np.tile((np.arange(_LONGITUDES) + 0.5) * (2 * math.pi / _LONGITUDES), _COLATITUDES)
    cosine = np.repeat(cosines, _LONGITUDES)
    sine = np.sqrt(1 - cosine**2)
    weight = np.repeat(weights, _LONGITUDES) / (2 * _LONGITUDES)
    columns = [
        _harmonic(degree, order, cosine, longitude)
        for degree in range(_MAX_DEGREE + 1)
        for order in range(-degree, degree + 1)
    ]
    values, by_colatitude, by_longitude = np.moveaxis(np.array(columns), 0, -1)
    norms = np.sqrt((weight[:, None] * values**2).sum(0))
    directions = np.stack([cosine, sine * np.sin(longitude), sine * np.cos(longitude)], 1)
    return _Harmonics(directions, weight, values / norms, by_colatitude / norms, by_longitude / sine[:, None] / norms)


def _harmonic(
    degree: int, order: int, cosine: Float[Array, " nodes"], longitude: Float[Array, " nodes"]
) -> tuple[Float[Array, " nodes"], Float[Array, " nodes"], Float[Array, " nodes"]]:
    """One harmonic of any norm, and its derivatives by colatitude and longitude."""
    m, sine = abs(order), np.sqrt(1 - cosine**2)
    series = Legendre.basis(degree).deriv(m)
    polar = sine**m * series(cosine)
    slope = m * sine ** (m - 1) * cosine * series(cosine) - sine ** (m + 1) * series.deriv()(cosine)
    phase = m * longitude - (math.pi / 2 if order < 0 else 0)
    return polar * np.cos(phase), slope * np.cos(phase), -m * polar * np.sin(phase)
