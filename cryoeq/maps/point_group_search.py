"""Search for the point groups of a map: axes and centre of each, and how well it holds.

The search is hierarchical. Cyclic groups first, each axis of an even grid; composite orders only where those of their
factors hold. Then dihedral, tetrahedral, octahedral and icosahedral groups, if the cyclic groups that they need hold:
their main axis is known by then, and one angle about it is left.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.geometry.so3 import random_rotations, rotation_from_vector, rotation_vector
from cryoeq.geometry.so3_grid import so3_grid
from cryoeq.maps.point_groups import ROUND, GroupAgreement, PointGroups
from cryoeq.maps.self_comparison import Placement, SelfComparison, centre_of_mass, highest_peaks, refine_placement
from cryoeq.maps.symmetry import SymmetryFit, find_symmetry, one_of_each_pair

MAX_CYCLIC_ORDER = 8
"""Largest order of an axis that is looked for by default."""
LAST_SHELL = 32
"""Last shell that is compared by default."""
_RESOLVED = 0.143  # FSC of the half maps down to which shells are compared
_MIN_SHELLS = 5
_SPARE_SHELLS = 2  # beyond the last one that is compared, for pictures
_RANDOM_ROTATIONS, _SEED = 64, 0
_GRID_ORDER = 3  # directions about 7 degrees apart
_SEARCH_RADIUS, _REFINE_RADIUS, _FINAL_RADIUS = 6, 8, 24
_PEAKS, _PEAKS_ABOUT_AXIS = 4, 2
_TURN_RAD = math.radians(3.0)
_CHUNK_POINTS = 2**20


def find_point_groups(
    volume: Volume,
    halves: HalfMaps | None = None,
    *,
    symmetry: str | None = None,
    resolution_angstrom: float | None = None,
    max_order: int = MAX_CYCLIC_ORDER,
    last_shell: int = LAST_SHELL,
) -> PointGroups:
    """Score the point groups that a map may have.

    Args:
        volume: map in any orientation, its molecule inside the sphere that fits into the box.
        halves: unfiltered half maps in its frame; None compares the map with itself, so that noise counts against a
            symmetry.
        symmetry: the one group to score; None searches for all.
        resolution_angstrom: resolution up to which to compare; None for that of the half maps (FSC 0.143), or Nyquist.
        max_order: largest order of an axis.
        last_shell: last shell that is compared, whatever the resolution; it sets the cost.

    Raises:
        ConfigError: no such group.
        MapFileError: a map without contrast.
    """
    search = _Search.prepare(volume, halves, resolution_angstrom, last_shell)
    if symmetry is not None:
        groups = [search.place_anywhere(symmetry.strip().upper())]
    elif search.contrast < ROUND:
        groups = []
    else:
        cyclic = search.cyclic_groups(max_order)
        groups = [*cyclic.values(), *search.combined_groups({n: each for n, each in cyclic.items() if each.holds})]
    return PointGroups(
        tuple(sorted(groups, key=lambda group: (group.order, group.symmetry))),
        search.half_correlations,
        search.random_correlations.mean(0),
        search.random_correlations.std(0),
        search.last_shell,
        search.contrast,
    )


def score_in_place(volume: Volume, halves: HalfMaps, symmetry: str) -> GroupAgreement | None:
    """Score a point group about the usual axes through the centre of the box, where ``--sym`` imposes it.

    Args:
        volume: map without symmetry.
        halves: unfiltered half maps in its frame.
        symmetry: point group, as for ``symmetry_rotations``; not C1.

    Returns:
        The agreement; None where half maps or a round map tell nothing of symmetries.

    Raises:
        ConfigError: no such group.
        MapFileError: a map without contrast.
    """
    search = _Search.prepare(volume, halves, None, LAST_SHELL)
    compared = search.half_correlations[1 : search.last_shell + 1]
    if search.contrast < ROUND or float(compared.min()) < _RESOLVED:
        return None
    there = search.centre
    return search.judge(symmetry.strip().upper(), torch.eye(3).to(there), torch.zeros_like(there))


@dataclass(frozen=True)
class _Search:
    """A map, and its halves up to the resolution of the comparison.

    Args:
        volume: the map.
        first: first half map.
        second: second half map.
        centre: centre of mass, in units of the box.
        half_correlations: correlation of the half maps per shell.
        random_correlations: those of randomly rotated copies.
        last_shell: last shell that is compared.
    """

    volume: Volume
    first: SelfComparison
    second: SelfComparison
    centre: Float[Tensor, " 3"]
    half_correlations: Float[Tensor, " shells"]
    random_correlations: Float[Tensor, "rotations shells"]
    last_shell: int

    @classmethod
    def prepare(
        cls, volume: Volume, halves: HalfMaps | None, resolution_angstrom: float | None, last_shell: int
    ) -> "_Search":
        centre = centre_of_mass(volume)
        maps = (volume, volume) if halves is None else (halves.first, halves.second)
        identity = torch.eye(3, device=centre.device)[None]
        first, second = (SelfComparison.from_map(half, last_shell) for half in maps)
        half_correlations = first.shell_correlations(second, identity, centre)[0]
        last = len(half_correlations) - 1
        if resolution_angstrom is not None:
            last = min(last, math.floor(volume.box_size_px * volume.pixel_size_angstrom / resolution_angstrom))
        unresolved = (half_correlations < _RESOLVED).nonzero()
        last = min(last, int(unresolved[0]) - 1) if len(unresolved) else last
        last = min(max(last, _MIN_SHELLS), len(half_correlations) - 1)
        first, second = (SelfComparison.from_map(half, last + _SPARE_SHELLS) for half in maps)
        rotations = random_rotations(_RANDOM_ROTATIONS, torch.Generator().manual_seed(_SEED)).to(centre)
        random_correlations = torch.cat(
            [first.shell_correlations(second, batch, centre) for batch in rotations.split(_batch_size(first))]
        )
        half_correlations = half_correlations[: random_correlations.shape[1]]
        return cls(volume, first, second, centre, half_correlations, random_correlations, last)

    def correlations(
        self, elements: Float[Tensor, "elements 3 3"], centre: Float[Tensor, " 3"]
    ) -> Float[Tensor, "elements shells"]:
        """Of each half map with the rotated other one, the mean."""
        pairs = ((self.first, self.second), (self.second, self.first))
        return torch.cat(
            [
                torch.stack([one.shell_correlations(other, batch, centre) for one, other in pairs]).mean(0)
                for batch in elements.split(_batch_size(self.first))
            ]
        )

    @cached_property
    def _low(self) -> SelfComparison:
        """The map at the resolution to which peaks are refined."""
        return SelfComparison.from_map(self.volume, _REFINE_RADIUS)

    @cached_property
    def _fine(self) -> SelfComparison:
        """The map at the resolution to which the best peak is refined."""
        return SelfComparison.from_map(self.volume, _FINAL_RADIUS)

    @property
    def _side_angstrom(self) -> float:
        return self.volume.box_size_px * self.volume.pixel_size_angstrom

    def _fixed_point(self, fit: SymmetryFit) -> Float[Tensor, " 3"]:
        """Centre of a fit, in units of the box."""
        return -fit.rotation.T @ fit.shift_angstrom / self._side_angstrom

    @cached_property
    def _gain(self) -> Float[Tensor, " shells"]:
        """Weighted agreement of the half maps per shell beyond that of random rotations."""
        return self._weights * (self.half_correlations - self.random_correlations.mean(0))

    @cached_property
    def _weights(self) -> Float[Tensor, " shells"]:
        """Number of coefficients of the shells that are compared."""
        shells = torch.arange(len(self.half_correlations), device=self.centre.device)
        counts = torch.bincount((self.first.coords.norm(dim=-1) + 0.5).floor().long(), minlength=len(shells))
        return torch.where(shells <= self.last_shell, counts, 0).to(self.half_correlations)

    @property
    def contrast(self) -> float:
        """Share of the half maps' agreement that random rotations destroy."""
        return float(self._gain.sum() / (self._weights * self.half_correlations).sum().clamp(min=1e-12))

    def scores(
        self, correlations: Float[Tensor, "elements shells"], shells: slice = slice(None)
    ) -> Float[Tensor, " elements"]:
        """Score of each element over some shells."""
        beyond = (self._weights * (correlations - self.random_correlations.mean(0)))[:, shells].sum(1)
        return beyond / self._gain[shells].sum().clamp(min=1e-12)

    def judge(self, symmetry: str, rotation: Float[Tensor, "3 3"], centre: Float[Tensor, " 3"]) -> GroupAgreement:
        """Agreement of the map with its copies under a group whose standard frame is R r + d."""
        group = symmetry_rotations(symmetry).to(rotation)
        elements = rotation.T @ group @ rotation
        of_map = self._low.correlations(elements, centre)
        fit = SymmetryFit(rotation, -rotation @ centre * self._side_angstrom, float(of_map[1:].mean()), of_map)
        correlations = self.correlations(elements[1:], centre)
        middle = self.last_shell // 2 + 1
        scores = self.scores(correlations)
        spread = self.scores(self.random_correlations).std().clamp(min=1e-12)
        between = 0.0
        if symmetry[0] in "CD":
            half_step = rotation_from_vector(rotation[2] * (math.pi / int(symmetry[1:])))
            between = float(self.scores(self.correlations(half_step[None], centre)))
        return GroupAgreement(
            symmetry=symmetry,
            fit=fit,
            score=float(scores.mean()),
            weakest=float(scores.min()),
            coarse=float(self.scores(correlations, slice(middle)).mean()),
            fine=float(self.scores(correlations, slice(middle, None)).mean()),
            sigmas=float(scores.mean() / spread),
            between=between,
            correlations=correlations.mean(0),
        )

    def cyclic_groups(self, max_order: int) -> Mapping[int, GroupAgreement]:
        """The best axis of each order; of composite ones only where those of their prime factors hold."""
        frames = so3_grid(_GRID_ORDER, 1, device=self.centre.device)
        frames = frames[frames[:, 2, 2] >= 0]
        coarse = SelfComparison.from_map(self.volume, _SEARCH_RADIUS)
        by_turn: dict[Fraction, Tensor] = {}
        found: dict[int, GroupAgreement] = {}
        for order in range(2, max_order + 1):
            if not all(each.holds for factor, each in found.items() if order % factor == 0):
                continue
            turns = [Fraction(step, order) for step in range(1, order // 2 + 1)]
            elements = _about_z([2 * math.pi * float(turn) for turn in turns]).to(frames)
            for turn, element in zip(turns, elements, strict=True):
                if turn not in by_turn:
                    by_turn[turn] = coarse.correlations(frames.mT @ element @ frames, self.centre)
            scores = torch.stack([by_turn[turn] for turn in turns]).mean(0)
            grid = frames.mT[:, None] @ elements @ frames[:, None]
            found[order] = self._best_placed(f"C{order}", frames, grid, scores, self.centre)
        return found

    def combined_groups(self, cyclic: Mapping[int, GroupAgreement]) -> Iterator[GroupAgreement]:
        """Groups with several axes whose cyclic groups hold, by turning them about their main axis."""
        names = {f"D{order}": (order, {order, 2}) for order in cyclic}
        names |= {"T": (3, {2, 3}), "O": (4, {2, 3, 4}), "I": (5, {2, 3, 5})}
        for name, (order, needed) in names.items():
            if needed <= set(cyclic):
                yield self._turned_about(name, order, cyclic[order])

    def _turned_about(self, symmetry: str, order: int, main: GroupAgreement) -> GroupAgreement:
        group = symmetry_rotations(symmetry).to(self.centre)
        vectors = rotation_vector(group[1:])
        angles = vectors.norm(dim=1)
        axis = vectors[(angles - 2 * math.pi / order).abs().argmin()]
        axis = axis / axis.norm()
        # The main axis of the map onto that of the group, then all turns about it.
        onto = _shortest_rotation(main.axis, axis)
        turns = torch.arange(0, 2 * math.pi / order, _TURN_RAD, device=axis.device)
        frames = rotation_from_vector(axis * turns[:, None]) @ onto
        centre = self._fixed_point(main.fit)
        grid = frames.mT[:, None] @ one_of_each_pair(group) @ frames[:, None]
        scores = self._low.correlations(grid.flatten(0, 1), centre).unflatten(0, grid.shape[:2]).mean(1)
        return self._best_placed(symmetry, frames, grid, scores, centre)

    def place_anywhere(self, symmetry: str) -> GroupAgreement:
        """The best placement of one group, searched for over all rotations."""
        fit = find_symmetry(self.volume, symmetry)
        return self.judge(symmetry, fit.rotation, self._fixed_point(fit))

    def _best_placed(
        self,
        symmetry: str,
        frames: Float[Tensor, "rows 3 3"],
        grid: Float[Tensor, "rows elements 3 3"],
        scores: Float[Tensor, " rows"],
        centre: Float[Tensor, " 3"],
    ) -> GroupAgreement:
        """Refine the highest peaks of a search, then the best of them again, and judge it."""
        start = torch.eye(3, device=centre.device)
        count = _PEAKS if symmetry.startswith("C") else _PEAKS_ABOUT_AXIS
        peaks = [Placement(row, start, centre, float(scores[row])) for row in highest_peaks(grid, scores, count)]
        refined = [refine_placement(self._low, grid[peak.row], peak) for peak in peaks]
        best = max(refined, key=lambda peak: peak.score)
        best = refine_placement(self._fine, grid[best.row], best)
        return self.judge(symmetry, frames[best.row] @ best.frame.T, best.centre)


def _batch_size(comparison: SelfComparison) -> int:
    """Rotations that are compared at a time."""
    return max(1, _CHUNK_POINTS // len(comparison.coords))


def _about_z(angles_rad: list[float]) -> Float[Tensor, "angles 3 3"]:
    return rotation_from_vector(torch.tensor([[0.0, 0.0, angle] for angle in angles_rad]))


def _shortest_rotation(source: Float[Tensor, " 3"], target: Float[Tensor, " 3"]) -> Float[Tensor, "3 3"]:
    """The rotation about the normal of two unit vectors that takes one onto the other."""
    normal = torch.linalg.cross(source, target)
    sine, cosine = normal.norm(), source @ target
    if float(sine) < 1e-6:  # parallel, or opposite: then half a turn about any vector across
        across = torch.linalg.cross(source, torch.eye(3, device=source.device)[source.abs().argmin()])
        half_turn = rotation_from_vector(across / across.norm() * math.pi)
        return torch.eye(3, device=source.device) if float(cosine) > 0 else half_turn
    return rotation_from_vector(normal / sine * torch.atan2(sine, cosine))
