"""Local resolution: the correlation of two half maps inside soft spheres that slide over them, as in RELION.

Spheres of 12.5 Å radius with a soft edge of 25 Å stand 25 Å apart. Their curves are corrected for the sphere as a mask,
with phases that are randomised beyond 25 Å (``resolution.corrected_correlation``). Each voxel has the mean of
1 / resolution over the spheres around it, weighted by their masks. RELION 3.1, ``relion_postprocess --locres``.

A sphere is cut out before it is transformed, so that the cost grows with the sphere and not with the map. Its shells
are then wider than those of the map; where the curve crosses 0.143 is interpolated between them.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from scipy.fft import next_fast_len
from torch import Tensor

from cryoeq.domain.volume import Volume
from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD, crossing_shells, randomise_phases

SAMPLING_ANGSTROM: Final = 25.0
COARSEST_ANGSTROM: Final = 50.0
_BATCH_VOXELS = 2**22
_FILTER_LEVELS = 12
_FILTER_EDGE_SHELLS = 2


@dataclass(frozen=True)
class SlidingSphere:
    """Soft sphere in a box that is cut out of the map.

    Args:
        radius_px: radius within which the mask is 1.
        edge_px: width of the raised cosine beyond it.
        step_px: distance between spheres.
        mask: mask over the cut-out box, its centre at voxel m // 2.
    """

    radius_px: int
    edge_px: int
    step_px: int
    mask: Float[Tensor, "m m m"]

    @classmethod
    def of(
        cls,
        pixel_size_angstrom: float,
        sampling_angstrom: float = SAMPLING_ANGSTROM,
        device: torch.device | None = None,
    ) -> "SlidingSphere":
        """Sphere of RELION's proportions: radius half the sampling, edge and step equal to it."""
        radius, edge = (max(1, round(part * sampling_angstrom / pixel_size_angstrom)) for part in (0.5, 1.0))
        size = 2 * next_fast_len(radius + edge + 1, real=True)  # even, so that its last shell is Nyquist
        k = torch.arange(size, device=device) - size // 2
        depth = (radius + edge - (k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).sqrt()) / edge
        return cls(radius, edge, edge, (1 - torch.cos(math.pi * depth.clamp(0, 1))) / 2)

    @property
    def batch_size(self) -> int:
        """Number of spheres to transform at once, which limits memory."""
        return max(1, _BATCH_VOXELS // (4 * self.mask.numel()))

    def centres(self, box_size_px: int) -> Int[Tensor, "spheres 3"]:
        """Centres (z, y, x) of the spheres: all whose core lies within the sphere inscribed in the box."""
        axis = torch.arange(-(box_size_px // 2), box_size_px - box_size_px // 2, self.step_px)
        grid = torch.cartesian_prod(axis, axis, axis)
        inside = grid.square().sum(1) < max(box_size_px // 2 - self.radius_px, 0) ** 2
        return grid[inside] + box_size_px // 2


@dataclass(frozen=True)
class LocalResolution:
    """Local resolution of two half maps.

    Args:
        resolution_angstrom: resolution at each voxel; 0 outside all spheres.
        filtered: mean of the half maps, low-passed at each voxel to its own resolution; not sharpened.
    """

    resolution_angstrom: Volume
    filtered: Volume


def with_randomised(first: Volume, second: Volume, generator: torch.Generator) -> Float[Tensor, "4 n n n"]:
    """Both half maps, and both with phases randomised beyond 25 Å.

    Args:
        first: a half map.
        second: the other half map.
        generator: random number generator of the phases.
    """
    from_shell = _randomised_from(first)
    maps = [first.values, second.values]
    return torch.stack(maps + [randomise_phases(values, from_shell, generator) for values in maps])


def sphere_frequencies(
    maps: Float[Tensor, "4 n n n"], centres: Int[Tensor, "batch 3"], sphere: SlidingSphere, pixel_size_angstrom: float
) -> Float[Tensor, " batch"]:
    """1 / resolution in each sphere: the map's last shell before the corrected curve first drops below 0.143.

    At least 1 / 50 Å.

    Args:
        maps: half maps and randomised half maps, from ``with_randomised``.
        centres: centres of the spheres, in voxels (z, y, x).
        sphere: the soft sphere.
        pixel_size_angstrom: pixel size of the maps.
    """
    side = maps.shape[-1] * pixel_size_angstrom
    cut = torch.stack([_cut(maps, centre, len(sphere.mask)) for centre in centres.tolist()]) * sphere.mask
    true, noise = _correlations(torch.fft.rfftn(cut, dim=(-3, -2, -1))).unbind(1)
    spacing = 1 / (len(sphere.mask) * pixel_size_angstrom)
    frequencies = torch.arange(true.shape[1], device=maps.device) * spacing
    reliable_from = (int(side / SAMPLING_ANGSTROM) + 2) / side
    remainder = (1 - noise).clamp(min=torch.finfo(noise.dtype).eps)
    corrected = torch.where(frequencies >= reliable_from, (true - noise) / remainder, true)
    crossing = crossing_shells(corrected, HALF_MAP_THRESHOLD) * spacing
    # Rounded down to a shell of the whole map, as in RELION.
    return ((crossing * side + 1e-6).floor() / side).clamp(min=1 / COARSEST_ANGSTROM)


def spread_over_voxels(
    frequencies: Float[Tensor, " spheres"], centres: Int[Tensor, "spheres 3"], sphere: SlidingSphere, box_size_px: int
) -> Float[Tensor, "n n n"]:
    """Resolution at each voxel, in Å: one over the mean frequency of the spheres around, weighted by their masks.

    Args:
        frequencies: 1 / resolution of each sphere.
        centres: centres of the spheres, in voxels (z, y, x).
        sphere: the soft sphere.
        box_size_px: side of the map.
    """
    weighted, weights = torch.zeros(2, *(box_size_px,) * 3, device=sphere.mask.device).unbind(0)
    for centre, frequency in zip(centres.tolist(), frequencies.tolist(), strict=True):
        inside, part = _overlap(centre, len(sphere.mask), box_size_px)
        weighted[inside] += sphere.mask[part] * frequency
        weights[inside] += sphere.mask[part]
    return torch.where(weighted > 0, weights / weighted.clamp(min=torch.finfo(weights.dtype).tiny), 0.0)


def filter_locally(volume: Volume, resolution_angstrom: Float[Tensor, "n n n"]) -> Volume:
    """A map low-passed at each voxel to the resolution there; 0 where that is 0.

    The map is low-passed to twelve resolutions, evenly spaced in frequency, and interpolated between two of them.

    Args:
        volume: the map.
        resolution_angstrom: resolution at each voxel.
    """
    is_known = resolution_angstrom > 0
    if not bool(is_known.any()):
        return Volume(torch.zeros_like(volume.values), volume.pixel_size_angstrom)
    frequency = torch.where(is_known, 1 / resolution_angstrom.clamp(min=1e-6), 0.0)
    lowest, highest = float(frequency[is_known].min()), float(frequency.max())
    step = max(highest - lowest, 1e-9) / (_FILTER_LEVELS - 1)
    level_of_voxel = (frequency - lowest) / step
    n, transform = volume.box_size_px, torch.fft.rfftn(volume.values)
    k = torch.fft.fftfreq(n, 1 / n, device=frequency.device)
    shells = (k[:, None, None] ** 2 + k[:, None] ** 2 + k[: n // 2 + 1] ** 2).sqrt()
    filtered = torch.zeros_like(volume.values)
    for level in range(_FILTER_LEVELS):
        last_shell = (lowest + level * step) * n * volume.pixel_size_angstrom
        depth = (last_shell + _FILTER_EDGE_SHELLS / 2 - shells) / _FILTER_EDGE_SHELLS
        passed = torch.fft.irfftn(transform * (1 - torch.cos(math.pi * depth.clamp(0, 1))) / 2, s=[n] * 3)
        filtered += (1 - (level_of_voxel - level).abs()).clamp(min=0) * passed
    return Volume(torch.where(is_known, filtered, 0.0), volume.pixel_size_angstrom)


def _randomised_from(volume: Volume) -> int:
    """First shell beyond 25 Å."""
    return int(volume.box_size_px * volume.pixel_size_angstrom / SAMPLING_ANGSTROM)


def _overlap(centre: list[int], size: int, box_size_px: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of the map that a cut-out box covers, and of the box that lie inside the map."""
    corners = [middle - size // 2 for middle in centre]
    inside = tuple(slice(max(corner, 0), min(corner + size, box_size_px)) for corner in corners)
    part = tuple(slice(axis.start - corner, axis.stop - corner) for axis, corner in zip(inside, corners, strict=True))
    return inside, part


def _cut(maps: Float[Tensor, "4 n n n"], centre: list[int], size: int) -> Float[Tensor, "4 m m m"]:
    """Box about a voxel, zero outside the map."""
    inside, part = _overlap(centre, size, maps.shape[-1])
    box = maps.new_zeros(len(maps), size, size, size)
    box[(slice(None), *part)] = maps[(slice(None), *inside)]
    return box


def _correlations(transforms: Tensor) -> Float[Tensor, "batch 2 shells"]:
    """Correlation of the first map with the second, and of the third with the fourth, per shell of the cut-out box."""
    size = transforms.shape[-2]
    k = torch.fft.fftfreq(size, 1 / size, device=transforms.device)
    radii = (k[:, None, None] ** 2 + k[:, None] ** 2 + k[: size // 2 + 1] ** 2).double().sqrt()
    n_shells = size // 2 + 1
    shells = (radii + 0.5).long().clamp(max=n_shells).flatten()
    first, second = transforms.flatten(2).unflatten(1, (2, 2)).unbind(2)
    products = torch.stack([(first * second.conj()).real, first.abs().square(), second.abs().square()])
    sums = products.new_zeros(*products.shape[:-1], n_shells + 1).index_add_(-1, shells, products)[..., :n_shells]
    cross, first_power, second_power = sums.double()
    return cross / (first_power * second_power).clamp(min=torch.finfo(torch.float64).tiny).sqrt()
