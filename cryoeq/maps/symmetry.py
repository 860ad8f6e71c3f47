"""Symmetry of a map about axes or planes that are not known: a point group to impose, the mirror plane of mixed hands.

Mixed hands. Images cannot tell a map from its mirror image, so a run without poses may pose part of the particles in
either hand. Its map is then V(r) + V(-Q r), Q any rotation. Rotated by -Q it becomes V(-Q r) + V(Q^2 r): the same map,
for a V without symmetry, only if Q^2 = 1. Then Q is a half turn and -Q a mirror plane, or Q = 1 and -Q the inversion.
A run drifts to such Q, because it lets the two parts overlap as well as they can. The overlap is the same for Q and
its inverse, so its derivative vanishes at Q = 1, and in every direction at the best of all half turns; for five of six
structures the best of all rotations was a half turn, for the sixth (8BK7, D2) no other was clearly better. So mirror
planes and the inversion are looked for; other improper rotations would raise the score of maps of one hand, too.

Both questions are answered alike: the map is compared with its copies, rotated about an unknown centre. The centre of
mass lies on every axis and plane and is the first guess; directions come from an even grid; then both are refined.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import Volume
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.geometry.so3_grid import so3_grid, view_directions
from cryoeq.maps.alignment import rotate_map
from cryoeq.maps.self_comparison import Placement, SelfComparison, centre_of_mass, highest_peaks, refine_placement

_GRID_ORDER = 3  # directions about 7 degrees apart
_SEARCH_RADIUS = 6
_SCORE_RADIUS = 8
_FINAL_RADIUS = 24
_PEAKS = 6
_CHUNK_POINTS = 2**18

# See ``planar_symmetry_score`` for what the score separates, and what not.
MIXED_HANDS_SCORE = 0.9
# Warning of a run, which its verdict looks for.
MIXED_HANDS_WARNING = "both hands may be mixed"


@dataclass(frozen=True)
class SymmetryFit:
    """Axes of a point group in a map: r' = R r + d is the standard frame.

    Args:
        rotation: R, from the frame of the map to that of ``symmetry_rotations``, vectors (x, y, z) from voxel n // 2.
        shift_angstrom: d, in Angstrom.
        correlation: correlation of the map with its copies rotated by the group, the mean over all elements but the
            identity.
        element_correlations: correlation with each rotated copy, in the order of ``symmetry_rotations``; 1 for the
            identity.
    """

    rotation: Float[Tensor, "3 3"]
    shift_angstrom: Float[Tensor, " 3"]
    correlation: float
    element_correlations: Float[Tensor, " order"]


def find_symmetry(volume: Volume, symmetry: str) -> SymmetryFit:
    """The axes and the centre about which a map agrees best with its copies rotated by a point group.

    Args:
        volume: map, noisy or not, in any orientation, its molecule inside the sphere that fits into the box.
        symmetry: point group, as for ``symmetry_rotations``; the axes of C1 are those of the map.

    Raises:
        ConfigError: no such group.
        MapFileError: a map without contrast.
    """
    group = symmetry_rotations(symmetry).to(volume.values.device, torch.float32)
    identity, nowhere = group[0], torch.zeros_like(group[0, 0])
    if len(group) == 1:
        return SymmetryFit(identity, nowhere, 1.0, torch.ones_like(nowhere[:1]))
    frames = _frames(group, is_cyclic=symmetry.strip().upper().startswith("C"))
    half = one_of_each_pair(group)
    found = _best_placement(volume, frames.mT[:, None] @ half @ frames[:, None], _FINAL_RADIUS)
    rotation = frames[found.row] @ found.frame.T
    correlations = SelfComparison.from_map(volume, _SCORE_RADIUS).correlations(
        rotation.T @ group @ rotation, found.centre
    )
    shift_angstrom = -rotation @ found.centre * volume.box_size_px * volume.pixel_size_angstrom
    return SymmetryFit(rotation, shift_angstrom, float(correlations[1:].mean()), correlations)


def impose_symmetry(volume: Volume, symmetry: str, fit: SymmetryFit) -> Volume:
    """The map rotated into the standard frame of a point group and averaged over the group.

    Args:
        volume: map that was fitted, or another in its frame such as a half map.
        symmetry: point group that was fitted.
        fit: axes and centre of the group in the map, from ``find_symmetry``.
    """
    shift_px = fit.shift_angstrom / volume.pixel_size_angstrom
    group = symmetry_rotations(symmetry).to(fit.rotation)
    copies = (rotate_map(volume.values, element @ fit.rotation, element @ shift_px) for element in group)
    return replace(volume, values=sum(copies, torch.zeros_like(volume.values)) / len(group))


def average_over_group(volume: Volume, symmetry: str, fit: SymmetryFit) -> Volume:
    """The map averaged over a point group about its axes, in the frame of the map.

    Args:
        volume: map that was fitted, or another in its frame such as a half map.
        symmetry: point group that was fitted.
        fit: axes and centre of the group in the map.
    """
    rotation = fit.rotation
    centre_px = -rotation.T @ fit.shift_angstrom / volume.pixel_size_angstrom
    elements = rotation.T @ symmetry_rotations(symmetry).to(rotation) @ rotation
    copies = (rotate_map(volume.values, element, centre_px - element @ centre_px) for element in elements)
    return replace(volume, values=sum(copies, torch.zeros_like(volume.values)) / len(elements))


def equivalent_poses(poses: Poses, symmetry: str, fit: SymmetryFit) -> list[Poses]:
    """Copies of poses under a point group about its axes in a map: poses of the same images if it is symmetric.

    Args:
        poses: of particles, in the frame of the map.
        symmetry: point group that was fitted.
        fit: axes and centre of the group in the map.

    Returns:
        One table for each element of the group, the poses themselves first.
    """
    rotation = fit.rotation.to(poses.rotations)
    centre = -rotation.T @ fit.shift_angstrom.to(rotation)
    copies = []
    for element in rotation.T @ symmetry_rotations(symmetry).to(rotation) @ rotation:
        rotations = poses.rotations @ element.T
        moved = (rotations @ (centre - element @ centre))[:, :2]
        copies.append(Poses(rotations, poses.shifts_angstrom + moved.to(poses.shifts_angstrom)))
    return copies


def planar_symmetry_score(volume: Volume) -> float:
    """Correlation of a map with its mirror image in the best plane, or its inversion: 1 where hands are mixed.

    Six structures (1WCM, 5ME2, 6MSM, 7EZ0, 7L2I, 8BK7), low-passed at shell 5 to 15 of the box: 0.55 to 0.87; added to
    a mirror image: 0.99 to 1, and 0.93 and more where the noise equals the signal at the last shell, from shell 9 on.
    At half the weight of the first hand, the second gives 0.71 to 0.97, which is no longer separate. Below shell 5 no
    map is far from its mirror image, and some shapes are close to theirs at any resolution (cryoDRGN's toy model:
    0.98). So a score above ``MIXED_HANDS_SCORE`` is a reason to run again with another seed, not a proof; and one below
    it does not show that the poses are right: a run whose particles had many wrong poses, of either hand, had 0.60.

    Args:
        volume: map in any orientation, its molecule inside the sphere that fits into the box.

    Raises:
        MapFileError: a map without contrast.
    """
    azimuth, polar = view_directions(_GRID_ORDER).unbind(1)
    normals = torch.stack([polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos()], -1)
    normals = normals[normals[:, 2] >= 0].to(volume.values.device, torch.float32)
    identity = torch.eye(3, device=normals.device)
    planes = identity - 2 * normals[:, :, None] * normals[:, None]
    return _best_placement(volume, torch.cat([planes, -identity[None]])[:, None], _SCORE_RADIUS).score


def _frames(group: Float[Tensor, "order 3 3"], *, is_cyclic: bool) -> Float[Tensor, "frames 3 3"]:
    """Rotations R of which no two bring the axes of the group onto the same lines of the map.

    S R does the same as R for S in the group: of those the one nearest to the identity is kept. About the axis of
    a cyclic group any rotation does.
    """
    if is_cyclic:
        return so3_grid(_GRID_ORDER, 1, device=group.device)
    grid = so3_grid(_GRID_ORDER, device=group.device)
    traces = torch.einsum("sij,rji->rs", group, grid)
    return grid[traces[:, 0] > traces.amax(1) - 1e-4]


def one_of_each_pair(group: Float[Tensor, "order 3 3"]) -> Float[Tensor, "elements 3 3"]:
    """The elements but the identity, and of two inverse ones, which correlate alike, the first.

    Args:
        group: all elements of a group, the identity first.
    """
    inverses = (group.mT[:, None] - group).abs().amax((-2, -1)).argmin(1)
    rows = torch.arange(len(group), device=group.device)
    return group[(rows > 0) & (inverses >= rows)]


def _best_placement(volume: Volume, grid: Float[Tensor, "rows elements 3 3"], final_radius: int) -> Placement:
    """Search the grid about the centre of mass, refine the highest peaks, then the best of them again."""
    centre = centre_of_mass(volume)
    coarse = SelfComparison.from_map(volume, _SEARCH_RADIUS)
    rows = max(1, _CHUNK_POINTS // (len(coarse.coords) * grid.shape[1]))
    scores = torch.cat(
        [
            coarse.correlations(batch.flatten(0, 1), centre).unflatten(0, batch.shape[:2]).mean(1)
            for batch in torch.split(grid, rows)
        ]
    )
    comparison = SelfComparison.from_map(volume, _SCORE_RADIUS)
    start = torch.eye(3, device=centre.device)
    peaks = [Placement(row, start, centre, float(scores[row])) for row in highest_peaks(grid, scores, _PEAKS)]
    best = max((refine_placement(comparison, grid[peak.row], peak) for peak in peaks), key=lambda peak: peak.score)
    if final_radius == _SCORE_RADIUS:
        return best
    return refine_placement(SelfComparison.from_map(volume, final_radius), grid[best.row], best)
