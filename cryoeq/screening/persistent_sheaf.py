"""Persistent local homology sheaf of a weighted complex: the stalks are spanned by bars.

While the weight rises simplices appear, and with them classes of H_k(X, X - st s) are born and die. Each class pairs
the simplex that creates it with the one that destroys it, so births and deaths are weights of single simplices, which
gradients reach. The stalk of s has one coordinate for each bar. The cycle of a bar is that of the standard reduction of
the star's boundary matrix, with coefficient 1 at the simplex that creates it.

The cycle of bar i at a vertex, restricted to the star of an edge, is a combination of cycles j there, with coefficients
c_ji. The restriction of the sheaf is the map of persistence modules on square-integrable sections, compressed to the
normalised indicator functions of the bars::

    F_ji = c_ji |bar_i and bar_j| / sqrt(|bar_i| |bar_j|)

It vanishes with the length of the shorter bar. Where all weights are equal and no class has died it is the sheaf
without weights.

Where weights differ the basis is unique up to a sign of each bar, which follows the orientation of the simplex that
creates it; ties are broken by the weights of faces. The idea is that of Cesa and Behboodi 2023, arXiv 2311.10156; how
their bars are ordered and weighted is not public, and this is a reconstruction that has the properties named here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoeq.screening.local_homology_sheaf import CellularSheaf
from cryoeq.screening.simplicial import SimplicialComplex

Chain = dict[int, float]
_ZERO = 1e-9  # coefficients below it count as cancelled


@dataclass(frozen=True)
class Bars:
    """Bars of positive length of the stars of all simplices of one dimension, padded to the largest number.

    Args:
        births: weight at which each class is born.
        deaths: weight at which it dies; the horizon where it never does.
        mask: True for bars, False for padding.
        cycles: coefficients of each bar's cycle on the members of the star.
        members: indices of the k-simplices of each star, padded with -1.
    """

    births: Float[Tensor, "centres bars"]
    deaths: Float[Tensor, "centres bars"]
    mask: Bool[Tensor, "centres bars"]
    cycles: Float[Tensor, "centres bars members"]
    members: Int[Tensor, "centres members"]

    @property
    def lengths(self) -> Float[Tensor, "centres bars"]:
        """Death minus birth; 1 for padding, which may stand in a denominator."""
        return torch.where(self.mask, self.deaths - self.births, 1.0)


@dataclass(frozen=True)
class PersistentSheaf:
    """The weighted local homology sheaf on the vertices and edges of a complex.

    Args:
        vertices: bars at the vertices.
        edges: bars at the edges.
        sheaf: restrictions between them, differentiable in the weights.
    """

    vertices: Bars
    edges: Bars
    sheaf: CellularSheaf

    @classmethod
    def from_complex(
        cls, complex_: SimplicialComplex, degree: int, weights: Sequence[Float[Tensor, "_"]], horizon: float
    ) -> "PersistentSheaf":
        """Bars and restrictions of a weighted complex.

        Args:
            complex_: a complex of dimension 1 or more.
            degree: k, at least 1.
            weights: weights of the simplices of each dimension, none below that of a face.
            horizon: death of classes that never die, above all weights.

        Raises:
            ValueError: a simplex weighs less than one of its faces, or a weight reaches the horizon.
        """
        _check_weights(complex_, weights, horizon)
        filtered = _FilteredComplex.from_complex(complex_, degree, weights)
        at_vertices, at_edges = (
            [filtered.bars_of(dim, centre) for centre in range(complex_.count(dim))] for dim in (0, 1)
        )
        vertices, edges = (
            _padded(bars, complex_, dim, filtered, horizon) for dim, bars in enumerate((at_vertices, at_edges))
        )
        coefficients = filtered.restrictions(complex_.simplices[1], at_vertices, at_edges, vertices.births.shape[1])
        births, deaths = (values[complex_.simplices[1]][:, :, None] for values in (vertices.births, vertices.deaths))
        overlap = torch.minimum(edges.deaths[:, None, :, None], deaths) - torch.maximum(
            edges.births[:, None, :, None], births
        )
        lengths = edges.lengths[:, None, :, None] * vertices.lengths[complex_.simplices[1]][:, :, None]
        maps = coefficients.to(overlap) * overlap.clamp(min=0) / lengths.sqrt()
        return cls(vertices, edges, CellularSheaf(complex_.simplices[1], maps, vertices.mask.sum(1)))


def flag_weights(complex_: SimplicialComplex, edge_weights: Float[Tensor, " edges"]) -> list[Float[Tensor, "_"]]:
    """Weights of the Vietoris-Rips filtration: 0 for a vertex, that of the longest edge for any other simplex.

    Args:
        complex_: a clique complex.
        edge_weights: weight of each edge, for example its length.
    """
    weights = [torch.zeros(complex_.n_vertices, dtype=edge_weights.dtype, device=edge_weights.device), edge_weights]
    for k in range(2, len(complex_.simplices)):
        weights.append(edge_weights[complex_.faces(k, 1)].amax(1))
    return weights


def _check_weights(complex_: SimplicialComplex, weights: Sequence[Float[Tensor, "_"]], horizon: float) -> None:
    for k, (lower, upper) in enumerate(pairwise(weights), 1):
        if complex_.count(k) and bool((lower.detach()[complex_.faces(k, k - 1)].amax(1) > upper.detach()).any()):
            raise ValueError(f"a {k}-simplex weighs less than one of its faces")
    if any(len(values) and float(values.detach().max()) >= horizon for values in weights):
        raise ValueError(f"a weight reaches the horizon {horizon:g}")


@dataclass(frozen=True)
class _Bar:
    """One homology class: ranks of the simplices that create and destroy it (-1: none), and its cycle by ranks."""

    birth: int
    death: int
    cycle: Chain


@dataclass(frozen=True)
class _FilteredComplex:
    """Simplices of dimension k - 1, k and k + 1, numbered by rank in ascending order of their weights.

    Args:
        degree: k.
        by_rank: index of the simplex at each rank, for the three dimensions.
        boundaries: boundary of each k- and (k + 1)-simplex, in ranks.
        weights: weights of the k- and (k + 1)-simplices by rank.
        values: the same weights as Python numbers.
        stars: ranks of the members of each star, for centres of dimension 0 and 1 and members of the three dimensions.
    """

    degree: int
    by_rank: tuple[Int[Tensor, "_"], ...]
    boundaries: tuple[list[Chain], ...]
    weights: tuple[Float[Tensor, "_"], ...]
    values: tuple[list[float], ...]
    stars: tuple[tuple[list[list[int]], ...], ...]

    @classmethod
    def from_complex(
        cls, complex_: SimplicialComplex, degree: int, weights: Sequence[Float[Tensor, "_"]]
    ) -> "_FilteredComplex":
        by_rank = tuple(_ranked(complex_, k, weights) for k in range(degree - 1, degree + 2))
        ranks = tuple(order.argsort() for order in by_rank)
        boundaries: list[list[Chain]] = []
        for k, order, lower in zip((degree, degree + 1), by_rank[1:], ranks, strict=False):
            if not complex_.count(k):
                boundaries.append([])
                continue
            index, sign = complex_.boundary(k)
            rows = zip(lower[index[order]].tolist(), sign[order].tolist(), strict=True)
            boundaries.append([dict(zip(faces, signs, strict=True)) for faces, signs in rows])
        empty = torch.zeros(0, dtype=weights[0].dtype, device=weights[0].device)
        ordered = tuple(
            weights[k][order] if complex_.count(k) else empty
            for k, order in zip((degree, degree + 1), by_rank[1:], strict=True)
        )
        stars = tuple(
            tuple(_star_ranks(complex_, dim, k, rank) for k, rank in enumerate(ranks, degree - 1)) for dim in (0, 1)
        )
        return cls(degree, by_rank, tuple(boundaries), ordered, tuple(values.tolist() for values in ordered), stars)

    def bars_of(self, dim: int, centre: int) -> list[_Bar]:
        """All bars of one star, including those of zero length, by ascending rank of the creating simplex."""
        below, members, above = (star[centre] for star in self.stars[dim])
        faces, sides = set(below), set(members)
        paired: dict[int, tuple[Chain, Chain]] = {}
        cycles: dict[int, Chain] = {}
        for rank in members:
            edge = {face: sign for face, sign in self.boundaries[0][rank].items() if face in faces}
            cycle: Chain = {rank: 1.0}
            while edge and (youngest := max(edge)) in paired:
                other_edge, other_cycle = paired[youngest]
                factor = edge[youngest] / other_edge[youngest]
                _subtract(edge, factor, other_edge)
                _subtract(cycle, factor, other_cycle)
            if edge:
                paired[max(edge)] = (edge, cycle)
            else:
                cycles[rank] = cycle
        ended: dict[int, tuple[Chain, int]] = {}
        for rank in above:
            edge = {face: sign for face, sign in self.boundaries[1][rank].items() if face in sides}
            while edge and (youngest := max(edge)) in ended:
                other = ended[youngest][0]
                _subtract(edge, edge[youngest] / other[youngest], other)
            if edge:
                youngest = max(edge)
                ended[youngest] = ({face: value / edge[youngest] for face, value in edge.items()}, rank)
        return [
            _Bar(birth, ended[birth][1], ended[birth][0]) if birth in ended else _Bar(birth, -1, cycle)
            for birth, cycle in cycles.items()
        ]

    def is_long(self, bar: _Bar) -> bool:
        """Whether a bar has a positive length."""
        return bar.death < 0 or self.values[1][bar.death] > self.values[0][bar.birth]

    def restrictions(
        self, edges: Int[Tensor, "edges 2"], at_vertices: list[list[_Bar]], at_edges: list[list[_Bar]], max_bars: int
    ) -> Float[Tensor, "edges 2 edge_bars vertex_bars"]:
        """Coefficients c_ji of the cycles of vertices, restricted to the stars of their edges, on the cycles there."""
        max_edge_bars = max((sum(map(self.is_long, bars)) for bars in at_edges), default=0)
        entries: list[tuple[int, int, int, int]] = []
        values: list[float] = []
        for edge, (ends, bars) in enumerate(zip(edges.tolist(), at_edges, strict=True)):
            sides = set(self.stars[1][1][edge])
            by_birth = {bar.birth: bar for bar in bars}
            row_of = {bar.birth: number for number, bar in enumerate(filter(self.is_long, bars))}
            for end, vertex in enumerate(ends):
                for column, bar in enumerate(filter(self.is_long, at_vertices[vertex])):
                    chain = {face: value for face, value in bar.cycle.items() if face in sides}
                    while chain:
                        youngest = max(chain)
                        factor = chain[youngest]
                        _subtract(chain, factor, by_birth[youngest].cycle)
                        if youngest in row_of:
                            entries.append((edge, end, row_of[youngest], column))
                            values.append(factor)
        empty = torch.zeros(len(edges), 2, max_edge_bars, max_bars, dtype=torch.float64, device=edges.device)
        if not entries:
            return empty
        indices = tuple(torch.tensor(entries, device=edges.device).T)
        return empty.index_put(indices, torch.tensor(values, dtype=torch.float64, device=edges.device))


def _ranked(complex_: SimplicialComplex, k: int, weights: Sequence[Float[Tensor, "_"]]) -> Int[Tensor, "_"]:
    """Indices of the k-simplices in ascending order of weight; ties by the weights of faces of each lower dimension."""
    if not complex_.count(k):
        return torch.zeros(0, dtype=torch.long, device=complex_.simplices[0].device)
    keys = [weights[k][:, None].detach()]
    keys += [weights[j].detach()[complex_.faces(k, j)].sort(1, descending=True).values for j in range(k - 1, 0, -1)]
    order = torch.arange(complex_.count(k), device=keys[0].device)
    for column in reversed(torch.cat(keys, 1).unbind(1)):
        order = order[column[order].argsort(stable=True)]
    return order


def _star_ranks(complex_: SimplicialComplex, dim: int, k: int, ranks: Int[Tensor, "_"]) -> list[list[int]]:
    members = complex_.star(dim, k)
    if not members.shape[1]:
        return [[] for _ in range(len(members))]
    ranked = torch.where(members >= 0, ranks[members], -1).sort(1).values
    return [[rank for rank in row if rank >= 0] for row in ranked.tolist()]


def _subtract(chain: Chain, factor: float, other: Chain) -> None:
    """Subtract a multiple of another chain in place, and remove coefficients that cancel."""
    for simplex, value in other.items():
        difference = chain.get(simplex, 0.0) - factor * value
        if abs(difference) < _ZERO:
            chain.pop(simplex, None)
        else:
            chain[simplex] = difference


def _padded(
    bars_of: list[list[_Bar]], complex_: SimplicialComplex, dim: int, filtered: _FilteredComplex, horizon: float
) -> Bars:
    """The bars of positive length, as tensors."""
    device = complex_.simplices[0].device
    kept = [list(filter(filtered.is_long, bars)) for bars in bars_of]
    max_bars = max(map(len, kept), default=0)
    births = torch.tensor([[b.birth for b in bars] + [-1] * (max_bars - len(bars)) for bars in kept], device=device)
    deaths = torch.tensor([[b.death for b in bars] + [-1] * (max_bars - len(bars)) for bars in kept], device=device)
    births, deaths = (ranks.view(len(kept), max_bars).long() for ranks in (births, deaths))
    mask = births >= 0
    members = complex_.star(dim, filtered.degree)
    ranks = filtered.by_rank[1].argsort()
    column_of = [{rank: column for column, rank in enumerate(ranks[row[row >= 0]].tolist())} for row in members]
    entries = [
        (centre, number, column_of[centre][rank], value)
        for centre, bars in enumerate(kept)
        for number, bar in enumerate(bars)
        for rank, value in bar.cycle.items()
    ]
    cycles = torch.zeros(len(kept), max_bars, members.shape[1], dtype=torch.float64, device=device)
    if entries:
        *indices, value = zip(*entries, strict=True)
        where = tuple(torch.tensor(axis, device=device) for axis in indices)
        cycles = cycles.index_put(where, torch.tensor(value, dtype=torch.float64, device=device))
    birth_weights = torch.where(mask, _take(filtered.weights[0], births), 0.0)
    death_weights = torch.where(mask, torch.where(deaths >= 0, _take(filtered.weights[1], deaths), horizon), 0.0)
    return Bars(birth_weights, death_weights, mask, cycles.to(birth_weights), members)


def _take(values: Float[Tensor, " values"], rows: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Values by row; 0 for row -1."""
    return torch.cat([values, values.new_zeros(1)])[rows]
