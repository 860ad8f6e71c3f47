"""Evenness of an orientation distribution, from the poses alone.

Each view samples one central plane of Fourier space. Sampling compensation factor: Baldwin and
Lyumkis 2020, Prog. Biophys. Mol. Biol. 150, 160-183; SCF* and its numbers: 2021, ibid. 160, 53-65, as in their program
SamplingGui. Efficiency: Naydenova and Russo 2017, Nat. Commun. 8, 629. Rayleigh's test: Wilkie 1983, Appl. Stat. 32.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.errors import ParticleFileError
from cryoeq.geometry.healpix import opposite_pixels, pixel_centres, pixel_of_directions
from cryoeq.geometry.pointgroup import symmetry_rotations

UNEVEN_SCF: Final = 0.81
"""Side views, even about one axis, reach all of Fourier space and have 8 / pi^2 = 0.811."""
VIEWS_ORDER: Final = 4
MAX_VIEWS: Final = 10_000
_SAMPLING_ORDER = 5
_MAX_RADIUS, _MIN_RADIUS = 50.0, 5.0
_SAMPLES_PER_COEFFICIENT = 100
_CHUNK_VIEWS = 2000
_PLANE_WIDTHS = 100.0
_HALVINGS = 30


@dataclass(frozen=True)
class OrientationSummary:
    """Orientation distribution of a set of particles.

    Args:
        n_particles: number of particles.
        symmetry: point group whose copies of each view count too.
        view_counts: particles per HEALPix pixel of ``VIEWS_ORDER`` about the viewing direction, after symmetry, divided
            by the order of the group.
        sampling: views that sample each direction of Fourier space (pixels of order 5); 1 for a uniform distribution.
        fourier_radius: radius of that sampling, in shells; smaller for fewer than 10,000 views.
        scf: sampling compensation factor over the sampled directions; 1 for a uniform distribution.
        scf_star: the same factor with unsampled directions counted.
        unsampled_share: fraction of the directions that no view samples.
        efficiency: E_od; 1 for a uniform distribution.
        in_plane_rad: in-plane angle psi of each particle.
        in_plane_length: length of the mean of exp(i psi); 0 for a uniform distribution, 1 for a single angle.
        in_plane_p_value: probability of this length or a greater one for uniform psi (Rayleigh's test).
    """

    n_particles: int
    symmetry: str
    view_counts: Float[Tensor, " pixels"]
    sampling: Float[Tensor, " directions"]
    fourier_radius: float
    scf: float
    scf_star: float
    unsampled_share: float
    efficiency: float
    in_plane_rad: Float[Tensor, " particles"]
    in_plane_length: float
    in_plane_p_value: float

    @property
    def is_uneven(self) -> bool:
        """Whether SCF* is below 0.81."""
        return self.scf_star < UNEVEN_SCF


def summarise_orientations(
    rotations: Float[Tensor, "particles 3 3"],
    in_plane_rad: Float[Tensor, " particles"],
    *,
    symmetry: str = "C1",
    generator: torch.Generator,
) -> OrientationSummary:
    """Metrics of the orientation distribution of one set of particles.

    Args:
        rotations: RELION's matrices A.
        in_plane_rad: in-plane angle psi of each particle.
        symmetry: point group of the particle, whose copies of each view count too.
        generator: random number generator that samples 10,000 views where there are more.

    Raises:
        ParticleFileError: no particles.
        ConfigError: no such group.
    """
    if not len(rotations):
        expected, advice = "Expected at least one with a pose", "Check the file of the poses"
        raise ParticleFileError("there are no particles", expected, advice)
    group = symmetry_rotations(symmetry).to(rotations)
    views = (rotations[:, 2] @ group).flatten(0, 1)  # third rows of A S
    counts = torch.bincount(pixel_of_directions(views, VIEWS_ORDER), minlength=12 * 4**VIEWS_ORDER) / len(group)
    radius, samples = fourier_samples(views, generator)
    scf, scf_star = sampling_compensation(samples)
    length, p_value = rayleigh_test(in_plane_rad)
    return OrientationSummary(
        n_particles=len(rotations),
        symmetry=symmetry.strip().upper(),
        view_counts=counts.double().cpu(),
        sampling=(samples / samples.mean()).cpu(),
        fourier_radius=radius,
        scf=scf,
        scf_star=scf_star,
        unsampled_share=float((samples == 0).double().mean()),
        efficiency=orientation_efficiency(counts.double()),
        in_plane_rad=in_plane_rad,
        in_plane_length=length,
        in_plane_p_value=p_value,
    )


def fourier_samples(
    views: Float[Tensor, "views 3"], generator: torch.Generator
) -> tuple[float, Float[Tensor, " directions"]]:
    """Number of views, 10,000 at most, that sample each coefficient of one shell of Fourier space.

    A view samples the coefficients within half a shell of its central plane. At radius 50 a uniform set of 10,000 views
    samples each 100 times on average. With fewer views the radius shrinks to keep that number, so that a
    random set does not look uneven; below 1,000 views it stays at 5, and random sets look somewhat uneven.

    Args:
        views: unit vectors.
        generator: random number generator that samples the views.

    Returns:
        The radius in shells, and the count at the centre of each HEALPix pixel of order 5.
    """
    if len(views) > MAX_VIEWS:
        chosen = torch.randperm(len(views), generator=generator, device=generator.device)[:MAX_VIEWS]
        views = views[chosen.to(views.device)]
    radius = min(max(len(views) / (2 * _SAMPLES_PER_COEFFICIENT), _MIN_RADIUS), _MAX_RADIUS)
    directions = pixel_centres(_SAMPLING_ORDER)
    opposite = opposite_pixels(_SAMPLING_ORDER)
    half, indices = torch.minimum(torch.arange(len(opposite)), opposite).unique(return_inverse=True)
    views = views.float()
    distinct = directions[half].to(views)
    counts = torch.zeros(len(distinct), dtype=torch.float64, device=views.device)
    for chunk in views.split(_CHUNK_VIEWS):
        counts += ((distinct @ chunk.T).abs() * radius < 0.5).sum(1)
    return radius, counts[indices.to(counts.device)]


def sampling_compensation(samples: Float[Tensor, " directions"]) -> tuple[float, float]:
    """SCF and SCF* of the number of views that sample each coefficient of a shell, S.

    The second mean is over S > 0 only, q the fraction of zeros, and <S> = 100 in SCF*, as for 10,000 views at radius
    50::

        SCF = 1 / (<S> <1/S>),        SCF* = SCF / (1 + q / (1 - q) <S> SCF / 2)
    """
    is_sampled = samples > 0
    scf = float(1 / (samples[is_sampled].reciprocal().mean() * samples.mean()))
    zeros = 1 - float(is_sampled.double().mean())
    return scf, scf / (1 + zeros / (1 - zeros) * _SAMPLES_PER_COEFFICIENT * scf / 2)


def orientation_efficiency(view_counts: Float[Tensor, " pixels"]) -> float:
    """Efficiency of the orientation distribution: 1 - 2 sigma / mean of the resolution over directions, at least 0.

    The point spread function is the sum over views of the back projection of a Gaussian spot; the resolution in a
    direction is its full width at half maximum there. A spot reaches 100 of its widths along the view.

    Args:
        view_counts: views per HEALPix pixel, in ring order.
    """
    order = round(math.log(len(view_counts) / 12, 4))
    weights = (view_counts / view_counts.sum()).double()
    # Opposite views are equivalent, and opposite directions have the same resolution: half of either is enough.
    opposite = opposite_pixels(order)
    half = (torch.arange(len(opposite)) < opposite).nonzero().squeeze(1)
    weights = (weights + weights[opposite.to(weights.device)])[half.to(weights.device)]
    views = pixel_centres(order)[half].to(weights)
    has_views = weights > 0
    directions = views[:: max(1, len(views) // 512)]
    along = (directions @ views[has_views].T).square()
    decay = 1 - along + along / _PLANE_WIDTHS**2
    widths = _half_maximum(decay, weights[has_views])
    return max(0.0, float(1 - 2 * widths.std() / widths.mean()))


def rayleigh_test(angles_rad: Float[Tensor, " angles"]) -> tuple[float, float]:
    """Mean resultant length, and the probability of one at least as long for angles even over the circle."""
    count = len(angles_rad)
    length = float(torch.polar(torch.ones_like(angles_rad), angles_rad).mean().abs())
    resultant = length * count
    exponent = math.sqrt(1 + 4 * count + 4 * (count**2 - resultant**2)) - (1 + 2 * count)
    return length, min(1.0, math.exp(exponent))


def coarser_counts(view_counts: Float[Tensor, " pixels"], healpix_order: int) -> Float[Tensor, " coarser"]:
    """Particles per pixel of a coarser HEALPix grid.

    Args:
        view_counts: views per HEALPix pixel, in ring order.
        healpix_order: order of the coarser grid.
    """
    order = round(math.log(len(view_counts) / 12, 4))
    parents = pixel_of_directions(pixel_centres(order), healpix_order)
    coarse = torch.zeros(12 * 4**healpix_order, dtype=view_counts.dtype, device=view_counts.device)
    return coarse.index_add(0, parents.to(view_counts.device), view_counts)


def _half_maximum(
    decay: Float[Tensor, "directions views"], weights: Float[Tensor, " views"]
) -> Float[Tensor, " directions"]:
    """Radius r at which sum(weights exp(-decay r^2)) falls to a half, by bisection, in widths of the Gaussian spot."""
    low = torch.zeros(len(decay), dtype=decay.dtype, device=decay.device)
    high = torch.full_like(low, _PLANE_WIDTHS)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_wide = torch.exp(-decay * middle.square()[:, None]) @ weights > 0.5
        low, high = torch.where(is_wide, middle, low), torch.where(is_wide, high, middle)
    return (low + high) / 2
