"""Masks: automatic ones, spheres, and checks of given ones.

The automatic mask is made on a coarse grid: the low-passed map holds nothing finer, and distances to the particle vary
slowly enough to be interpolated.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError
from cryoeq.geometry.map_filter import low_pass_gains
from cryoeq.geometry.shells import slabs, squared_radii
from cryoeq.geometry.soft_mask import falling_cosine

_POINTS_PER_RESOLUTION = 4
_HISTOGRAM_BINS = 256
_WITHIN = 0.99  # of the particle's region


@dataclass(frozen=True)
class ParticleRegion:
    """Region of the particle: the largest connected dense region of a low-passed map.

    Args:
        distances_angstrom: distance of each point of a grid over the box from that region, 0 inside.
        threshold: density that separates particle and solvent.
        box_size_px: side of the map.
        pixel_size_angstrom: pixel size of the map.
    """

    distances_angstrom: Float[Tensor, "m m m"]
    threshold: float
    box_size_px: int
    pixel_size_angstrom: float

    @property
    def diameter_angstrom(self) -> float:
        """Diameter of the sphere about the region's centre of mass that holds 99 % of it, without specks of noise."""
        points = (self.distances_angstrom == 0).nonzero().double()
        spacing = self.box_size_px * self.pixel_size_angstrom / len(self.distances_angstrom)
        radii = (points - points.mean(0)).norm(dim=1).sort().values
        return 2 * spacing * float(radii[round(_WITHIN * (len(radii) - 1))])

    def mask(self, extension_angstrom: float, edge_angstrom: float) -> Volume:
        """Mask that is 1 up to a distance from the region, then a raised cosine down to 0.

        Args:
            extension_angstrom: distance from the region up to which the mask is 1.
            edge_angstrom: width of the soft edge.
        """
        left, right, fraction = _neighbours(self.box_size_px, len(self.distances_angstrom), self.distances_angstrom)
        coarse = self.distances_angstrom
        in_rows = torch.lerp(coarse[..., left], coarse[..., right], fraction)
        in_planes = torch.lerp(in_rows[:, left], in_rows[:, right], fraction[:, None])

        def distances(start: int, stop: int) -> Float[Tensor, "planes n n"]:
            planes = slice(start, stop)
            return torch.lerp(in_planes[left[planes]], in_planes[right[planes]], fraction[planes, None, None])

        values = _soft_edged(distances, self.box_size_px, extension_angstrom, edge_angstrom, coarse.device)
        return Volume(values, self.pixel_size_angstrom)


def find_particle(full: Volume, low_pass_angstrom: float = 15.0, threshold: float | None = None) -> ParticleRegion:
    """Find the particle in a map.

    Args:
        full: average of two half maps, protein bright.
        low_pass_angstrom: resolution to which the map is filtered first.
        threshold: density above which a voxel of the filtered map belongs to the particle; None for Otsu's threshold,
            which splits the histogram into the two classes with the least variance within each.

    Raises:
        MapFileError: no voxel is as dense as the threshold.
    """
    from scipy.ndimage import distance_transform_edt, label

    filtered, grid_angstrom = _low_pass(full, low_pass_angstrom)
    densities = filtered.cpu().numpy()
    threshold = _otsu(densities) if threshold is None else threshold
    regions, count = label(densities > threshold)
    if not count:
        raise MapFileError(
            f"no voxel is above the mask threshold {threshold:.4g}: the largest density at "
            f"{low_pass_angstrom:g} Å is {float(densities.max()):.4g}",
            "",
            "Give a lower --mask-threshold",
        )
    largest = 1 + int(np.bincount(regions.ravel())[1:].argmax())
    distances = distance_transform_edt(regions != largest, sampling=grid_angstrom)
    return ParticleRegion(
        torch.from_numpy(distances).to(full.values), threshold, full.box_size_px, full.pixel_size_angstrom
    )


def spherical_mask(
    box_size_px: int, pixel_size_angstrom: float, edge_angstrom: float, diameter_angstrom: float | None = None
) -> Volume:
    """Ball about the centre of the box, with a soft edge outside its diameter.

    Args:
        box_size_px: side of the map.
        pixel_size_angstrom: pixel size of the map.
        edge_angstrom: width of the edge.
        diameter_angstrom: diameter at which the edge begins; None for the largest that leaves a voxel of the box free.
    """
    max_radius = (box_size_px // 2 - 1) * pixel_size_angstrom - edge_angstrom
    radius = max_radius if diameter_angstrom is None else diameter_angstrom / 2
    squares = ((torch.arange(box_size_px) - box_size_px // 2) * pixel_size_angstrom).square()

    def distances(start: int, stop: int) -> Float[Tensor, "planes n n"]:
        return (squares[start:stop, None, None] + squares[:, None] + squares).sqrt()

    return Volume(_soft_edged(distances, box_size_px, radius, edge_angstrom, squares.device), pixel_size_angstrom)


def largest_at_the_box_edge(mask: Volume) -> float:
    """Largest value on the six faces of the box."""
    faces = (mask.values.select(axis, side) for axis in range(3) for side in (0, -1))
    return max(float(face.max()) for face in faces)


def steepest_step(mask: Volume) -> float:
    """Largest change from one voxel to the next along an axis: 0.26 for a soft edge of 6 voxels, 1 for none."""
    lowest_and_highest = (mask.values.diff(dim=axis).aminmax() for axis in range(3))
    return max(max(-float(low), float(high)) for low, high in lowest_and_highest)


def _soft_edged(
    distances: Callable[[int, int], Float[Tensor, "planes n n"]],
    n: int,
    full_to: float,
    edge: float,
    device: torch.device,
) -> Float[Tensor, "n n n"]:
    """Mask that is 1 up to a distance, then a raised cosine over the edge; made by slabs, which limits memory."""
    values = torch.empty(n, n, n, device=device)
    for start, stop in slabs(n):
        values[start:stop] = falling_cosine((distances(start, stop) - full_to) / edge)
    return values


def _low_pass(full: Volume, resolution_angstrom: float) -> tuple[Float[Tensor, "m m m"], float]:
    """Low-passed map on a grid just fine enough, and the spacing of the grid in Å; voxel 0 stays voxel 0."""
    n, side = full.box_size_px, full.box_size_px * full.pixel_size_angstrom
    m = min(n, 2 * math.ceil(side * _POINTS_PER_RESOLUTION / resolution_angstrom / 2))
    low, high = (m + 1) // 2, n - m // 2
    rows = torch.fft.rfftn(full.values)[..., : m // 2 + 1]
    rows = torch.cat([rows[:low], rows[high:]])
    rows = torch.cat([rows[:, :low], rows[:, high:]], dim=1)
    gains = low_pass_gains(m, max(1, round(side / resolution_angstrom)), device=rows.device)
    filtered = rows * gains[squared_radii(m, 0, m, rows.device)].to(full.values)
    return torch.fft.irfftn(filtered, s=(m, m, m)) * (m / n) ** 3, side / m


def _otsu(densities: NDArray[np.float32]) -> float:
    """Threshold with the largest variance between two classes. Otsu 1979, IEEE Trans. SMC 9, 62-66."""
    counts, edges = np.histogram(densities, _HISTOGRAM_BINS)
    centres = (edges[1:] + edges[:-1]) / 2
    below, moment = counts.cumsum(), (counts * centres).cumsum()
    between = (moment * below[-1] - moment[-1] * below) ** 2 / np.maximum(below * (below[-1] - below), 1)
    return float(edges[1:][between.argmax()])


def _neighbours(
    n: int, m: int, like: Float[Tensor, "m m m"]
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Interpolation from m points to n over the same length: left and right neighbours, fraction of the right."""
    positions = torch.arange(n, dtype=torch.float64, device=like.device) * m / n
    left = positions.long()
    return left, (left + 1).clamp(max=m - 1), (positions - left).to(like.dtype)
