"""Simplicial complexes of up to tetrahedra: oriented simplices, boundary operators, stars, clique complexes of graphs.

The order in which a simplex lists its vertices is its orientation. Vertices are numbered from 0 and all present.
"""

from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_MAX_DIMENSION = 3  # tetrahedra: their faces, triangles, still have a key of 64 bits for two million vertices


@dataclass(frozen=True)
class SimplicialComplex:
    """Simplices of each dimension, closed under taking faces.

    Args:
        simplices: for each dimension k the k + 1 vertices of every k-simplex, none twice.
    """

    simplices: tuple[Int[Tensor, "_ _"], ...]

    @classmethod
    def from_simplices(cls, n_vertices: int, *tops: Int[Tensor, "_ _"]) -> "SimplicialComplex":
        """The complex of some simplices and all their faces, oriented by ascending vertices.

        Args:
            n_vertices: number of vertices, including those that belong to no simplex.
            tops: tables of simplices, one dimension each, vertices in any order.

        Raises:
            ValueError: a dimension above 3, or a vertex twice in one simplex.
        """
        top = max((rows.shape[1] - 1 for rows in tops), default=0)
        if top > _MAX_DIMENSION:
            raise ValueError(f"simplices of dimension {top}: {_MAX_DIMENSION} is the maximum")
        device = tops[0].device if tops else None
        simplices = [torch.arange(n_vertices, device=device)[:, None]]
        for k in range(1, top + 1):
            faces = [
                rows.sort(1).values[:, list(chosen)]
                for rows in tops
                for chosen in combinations(range(rows.shape[1]), k + 1)
            ]
            simplices.append(torch.cat(faces).unique(dim=0))
        if any((rows[:, 1:] == rows[:, :-1]).any() for rows in simplices[1:]):
            raise ValueError("a simplex that holds one vertex twice")
        return cls(tuple(simplices))

    @property
    def n_vertices(self) -> int:
        """Number of vertices."""
        return len(self.simplices[0])

    def count(self, k: int) -> int:
        """Number of k-simplices, 0 beyond the dimension of the complex."""
        return len(self.simplices[k]) if 0 <= k < len(self.simplices) else 0

    def boundary(self, k: int) -> tuple[Int[Tensor, "simplices faces"], Float[Tensor, "simplices faces"]]:
        """The faces of dimension k - 1 of each k-simplex, and their signs in its boundary; k at least 1."""
        rows = self.simplices[k]
        dropped = [[j for j in range(k + 1) if j != i] for i in range(k + 1)]
        faces = torch.stack([rows[:, kept] for kept in dropped], 1)
        index = self._find(faces)
        alternating = 1.0 - 2.0 * (torch.arange(k + 1, device=rows.device) % 2)
        stored_parity = _parity(self.simplices[k - 1])[index]
        return index, alternating.double() * _parity(faces) * stored_parity

    def faces(self, k: int, j: int) -> Int[Tensor, "simplices faces"]:
        """Indices of all faces of dimension j of each k-simplex, j at most k."""
        rows = self.simplices[k]
        return self._find(torch.stack([rows[:, list(chosen)] for chosen in combinations(range(k + 1), j + 1)], 1))

    def star(self, j: int, k: int) -> Int[Tensor, "centres members"]:
        """Indices of the k-simplices that contain each j-simplex, padded with -1.

        Args:
            j: dimension of the centres.
            k: dimension of the members; the table has no columns for k < j or where there are no k-simplices.
        """
        centres = self.count(j)
        if k < j or not self.count(k):
            return torch.full((centres, 0), -1, device=self.simplices[0].device)
        faces = self.faces(k, j)
        member = torch.arange(len(faces), device=faces.device)[:, None].expand_as(faces).flatten()
        return group_rows(faces.flatten(), member, centres)

    def relative_boundary(self, j: int, k: int) -> Float[Tensor, "centres rows columns"]:
        """Boundary matrix of the k-simplices in the open star of each j-simplex, without faces outside of the star.

        Args:
            j: dimension of the centres.
            k: dimension of the columns; rows and columns are in the order of ``star``, padding is zero.
        """
        columns, rows = self.star(j, k), self.star(j, k - 1)
        if not columns.shape[1] or not rows.shape[1]:
            return torch.zeros(*rows.shape, columns.shape[1], dtype=torch.float64, device=rows.device)
        index, sign = self.boundary(k)
        faces, signs = index[columns], sign[columns]  # padding reads the last simplex, and is masked below
        is_face = faces[:, None] == rows[:, :, None, None]
        values = (is_face * signs[:, None]).sum(-1)
        return values * (rows >= 0)[:, :, None] * (columns >= 0)[:, None]

    def _find(self, faces: Int[Tensor, "*batch vertices"]) -> Int[Tensor, "*batch"]:
        """Index of each of some simplices of the complex, vertices in any order."""
        known = self._key(self.simplices[faces.shape[-1] - 1])
        order = known.argsort()
        return order[torch.searchsorted(known[order], self._key(faces).contiguous())]

    def _key(self, rows: Int[Tensor, "*batch vertices"]) -> Int[Tensor, "*batch"]:
        key = torch.zeros_like(rows[..., 0])
        for vertex in rows.sort(-1).values.unbind(-1):
            key = key * self.n_vertices + vertex
        return key


def group_rows(keys: Int[Tensor, " items"], values: Int[Tensor, " items"], count: int) -> Int[Tensor, "count widest"]:
    """The values of each key in one row, in ascending order, padded with -1.

    Args:
        keys: row of each value, from 0 to count - 1.
        values: values to group.
        count: number of rows.
    """
    order = values.argsort(stable=True)
    order = order[keys[order].argsort(stable=True)]
    sizes = torch.bincount(keys, minlength=count)
    starts = sizes.cumsum(0) - sizes
    column = torch.arange(len(keys), device=keys.device) - starts[keys[order]]
    table = torch.full((count, int(sizes.max()) if len(keys) else 0), -1, device=keys.device)
    return table.index_put((keys[order], column), values[order])


def clique_complex(n_vertices: int, edges: Int[Tensor, "edges 2"], dimension: int = 2) -> SimplicialComplex:
    """Clique complex of a graph: all sets of up to dimension + 1 vertices any two of which are joined.

    Args:
        n_vertices: number of vertices.
        edges: edges of the graph, in one direction or in both.
        dimension: largest dimension of a simplex, 1 to 3.
    """
    ascending = edges.sort(1).values.unique(dim=0)
    later = group_rows(ascending[:, 0], ascending[:, 1], n_vertices)
    keys = ascending[:, 0] * n_vertices + ascending[:, 1]
    levels = [torch.arange(n_vertices, device=edges.device)[:, None], ascending]
    for _ in range(dimension - 1):
        rows = levels[-1]
        candidates = later[rows[:, -1]]
        is_clique = candidates >= 0
        for vertex in rows.unbind(1):
            is_clique = is_clique & _is_in(vertex[:, None] * n_vertices + candidates, keys)
        base, column = is_clique.nonzero(as_tuple=True)
        levels.append(torch.cat([rows[base], candidates[base, column][:, None]], 1))
    return SimplicialComplex(tuple(levels))


def _is_in(wanted: Int[Tensor, "*batch"], ascending: Int[Tensor, " known"]) -> Bool[Tensor, "*batch"]:
    if not len(ascending):
        return torch.zeros_like(wanted, dtype=torch.bool)
    index = torch.searchsorted(ascending, wanted.contiguous()).clamp(max=len(ascending) - 1)
    return ascending[index] == wanted


def _parity(rows: Int[Tensor, "*batch vertices"]) -> Float[Tensor, "*batch"]:
    """Sign of the permutation that sorts the vertices."""
    sign = torch.ones(rows.shape[:-1], dtype=torch.float64, device=rows.device)
    for i, j in combinations(range(rows.shape[-1]), 2):
        sign = torch.where(rows[..., i] > rows[..., j], -sign, sign)
    return sign
