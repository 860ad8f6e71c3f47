"""Choice of particles: the best share of them, and an even distribution of their views.

Balance of views as in cryoSPARC's Rebalance Orientations: views are sorted into bins; bins with more particles than the
Kth percentile of all bins lose as many, at random, as they have more. Doing it twice changes nothing. Here a bin is the
neighbourhood of one direction and of its symmetric copies, bins without particles do not count, and particles are
counted by area of the bin: a bin on an n-fold axis is n times smaller than others.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoeq.geometry.healpix import pixel_centres
from cryoeq.geometry.pointgroup import symmetry_rotations

_GENERIC = (0.3217, 0.2369, 0.9168)  # on no axis and no mirror plane of any point group
_FINER_ORDERS = 3  # areas: 64 points for each pixel
_CHUNK_VIEWS = 1024
_SAME = 1e-9


@dataclass(frozen=True)
class ViewBalance:
    """Particles thinned out by viewing direction.

    Args:
        is_kept: whether a particle is kept.
        bins: bin of each particle's view.
        counts: particles in each bin, before.
        limits: particles that each bin may have.
    """

    is_kept: Bool[Tensor, " particles"]
    bins: Int[Tensor, " particles"]
    counts: Int[Tensor, " bins"]
    limits: Int[Tensor, " bins"]


def best_share(
    values: Float[Tensor, " particles"], share: float, *, is_highest_best: bool, generator: torch.Generator
) -> Bool[Tensor, " particles"]:
    """Whether each particle is among the best share of all, at least one; a larger share holds a smaller one.

    Args:
        values: figure of each particle, finite.
        share: between 0 and 1.
        is_highest_best: whether high values are good ones, else low ones.
        generator: of the choice among equal values.
    """
    count = max(1, round(share * len(values))) if len(values) else 0
    shuffled = torch.randperm(len(values), generator=generator)
    order = shuffled[values[shuffled].argsort(descending=is_highest_best, stable=True)]
    is_best = torch.zeros(len(values), dtype=torch.bool)
    is_best[order[:count]] = True
    return is_best


def balance_views(
    rotations: Float[Tensor, "particles 3 3"],
    *,
    symmetry: str,
    healpix_order: int,
    percentile: float,
    generator: torch.Generator,
) -> ViewBalance:
    """Leave out particles of the viewing directions that have most of them.

    Args:
        rotations: RELION's matrices A; at least one.
        symmetry: point group of the particle, whose copies of a view are the same view.
        healpix_order: 12 * 4^order directions on the whole sphere.
        percentile: bins above this percentile of particles by area are cut down to it.
        generator: of the choice of particles within a bin.

    Raises:
        ConfigError: no such group.
    """
    group = symmetry_rotations(symmetry)
    directions = asymmetric_directions(group, healpix_order)
    bins = nearest_directions(rotations[:, 2].double(), directions, group)
    counts = torch.bincount(bins, minlength=len(directions))
    points = pixel_centres(healpix_order + _FINER_ORDERS)
    areas = torch.bincount(nearest_directions(points, directions, group), minlength=len(directions)).double()
    densities = counts / areas.clamp(min=1)
    present = densities[counts > 0].sort().values
    threshold = present[max(0, math.ceil(percentile / 100 * len(present)) - 1)]
    limits = torch.ceil(threshold * areas.clamp(min=1) - _SAME).long()
    return ViewBalance(_first_of_each(bins, limits, generator), bins, counts, limits)


def asymmetric_directions(group: Float[Tensor, "order 3 3"], healpix_order: int) -> Float[Tensor, "directions 3"]:
    """Centres of HEALPix pixels that are nearer to a generic point than their symmetric copies are.

    Args:
        group: all rotations of the point group.
        healpix_order: 12 * 4^order pixels on the whole sphere.
    """
    centres = pixel_centres(healpix_order)
    point = centres.new_tensor(_GENERIC)
    copies = torch.einsum("pi,sij->psj", centres, group.to(centres))
    nearness = copies @ point
    inside = centres[nearness[:, 0] >= nearness.amax(1) - _SAME]
    # A group of very high order may leave no centre where it is: then their copies there.
    return inside if len(inside) else copies[torch.arange(len(copies)), nearness.argmax(1)]


def nearest_directions(
    views: Float[Tensor, "views 3"], directions: Float[Tensor, "directions 3"], group: Float[Tensor, "order 3 3"]
) -> Int[Tensor, " views"]:
    """The direction that is nearest to each view or to one of its symmetric copies.

    Args:
        views: unit vectors.
        directions: unit vectors.
        group: all rotations of the point group.
    """
    copies = torch.einsum("pi,sij->psj", directions, group.to(directions)).flatten(0, 1)
    nearest = [(chunk @ copies.T).argmax(1) for chunk in views.split(_CHUNK_VIEWS)]
    return torch.cat(nearest) // len(group)


def _first_of_each(
    bins: Int[Tensor, " particles"], limits: Int[Tensor, " bins"], generator: torch.Generator
) -> Bool[Tensor, " particles"]:
    """Whether a particle is among the first of its bin, up to its limit, in random order."""
    shuffled = torch.randperm(len(bins), generator=generator)
    order = shuffled[bins[shuffled].argsort(stable=True)]
    counts = torch.bincount(bins, minlength=len(limits))
    first = counts.cumsum(0) - counts
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) - first[bins[order]]
    return place < limits[bins]
