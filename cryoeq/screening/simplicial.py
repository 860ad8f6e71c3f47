"""Simplicial complexes of up to tetrahedra: oriented simplices, boundary operators, stars, clique complexes of graphs.

The order in which a simplex lists its vertices is its orientation. Vertices are numbered from 0 and all present.
"""

from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_TOP = 3  # tetrahedra: their faces, triangles, still have a key of 64 bits for two million vertices


@dataclass(frozen=True)
class SimplicialComplex:
    """Simplices of each dimension.

    Args:
        simplices: row i of entry k holds the k + 1 vertices of a k-simplex; all faces of a simplex are there too, and
            none twice.
    """

    simplices: tuple[Int[Tensor, "_ _"], ...]

    @classmethod
    def of(cls, n_vertices: int, *tops: Int[Tensor, "_ _"]) -> "SimplicialComplex":
        """The complex of these simplices and their faces; vertices in ascending order orient all of them.

        Args:
            n_vertices: how many, with those that belong to no simplex.
            tops: simplices of one dimension each, vertices in any order.

        Raises:
            ValueError: a dimension above 3, or a vertex twice in one simplex.
        """
        top = max((rows.shape[1] - 1 for rows in tops), default=0)
        if top > _TOP:
            raise ValueError(f"simplices of dimension {top}: {_TOP} is the highest")
        device = tops[0].device if tops else None
        found = [torch.arange(n_vertices, device=device)[:, None]]
        for k in range(1, top + 1):
            parts = [
                rows.sort(1).values[:, list(chosen)]
                for rows in tops
                for chosen in combinations(range(rows.shape[1]), k + 1)
            ]
            found.append(torch.cat(parts).unique(dim=0))
        if any((rows[:, 1:] == rows[:, :-1]).any() for rows in found[1:]):
            raise ValueError("a simplex that holds one vertex twice")
        return cls(tuple(found))

    @property
    def n_vertices(self) -> int:
        """How many vertices."""
        return len(self.simplices[0])

    @property
    def dimension(self) -> int:
        """The highest dimension of which there are simplices."""
        return max(k for k, rows in enumerate(self.simplices) if len(rows) or k == 0)

    def count(self, k: int) -> int:
        """How many k-simplices; 0 for a dimension that is not there."""
        return len(self.simplices[k]) if 0 <= k < len(self.simplices) else 0

    def boundary(self, k: int) -> tuple[Int[Tensor, "simplices faces"], Float[Tensor, "simplices faces"]]:
        """The faces of dimension k - 1 of each k-simplex, and their signs in its boundary.

        Args:
            k: from 1.
        """
        rows = self.simplices[k]
        dropped = [[j for j in range(k + 1) if j != i] for i in range(k + 1)]
        faces = torch.stack([rows[:, kept] for kept in dropped], 1)
        index = self._find(faces)
        alternating = 1.0 - 2.0 * (torch.arange(k + 1, device=rows.device) % 2)
        own = _parity(self.simplices[k - 1])[index]
        return index, alternating.double() * _parity(faces) * own

    def faces(self, k: int, j: int) -> Int[Tensor, "simplices faces"]:
        """All faces of dimension j of each k-simplex, j up to k."""
        rows = self.simplices[k]
        return self._find(torch.stack([rows[:, list(chosen)] for chosen in combinations(range(k + 1), j + 1)], 1))

    def star(self, j: int, k: int) -> Int[Tensor, "centres members"]:
        """The k-simplices that contain each j-simplex, -1 where there are fewer.

        Args:
            j: dimension of the centres.
            k: dimension of the members; below j, or where the complex has none, the table has no columns.
        """
        centres = self.count(j)
        if k < j or not self.count(k):
            return torch.full((centres, 0), -1, device=self.simplices[0].device)
        faces = self.faces(k, j)
        member = torch.arange(len(faces), device=faces.device)[:, None].expand_as(faces).flatten()
        return group_rows(faces.flatten(), member, centres)

    def relative_boundary(self, j: int, k: int) -> Float[Tensor, "centres rows columns"]:
        """Boundary of the k-simplices of each open star of a j-simplex, faces outside of the star dropped.

        Args:
            j: dimension of the centres.
            k: dimension of the columns; rows and columns are in the order of ``star``, padding is zero.
        """
        columns, rows = self.star(j, k), self.star(j, k - 1)
        if not columns.shape[1] or not rows.shape[1]:
            return torch.zeros(*rows.shape, columns.shape[1], dtype=torch.float64, device=rows.device)
        index, sign = self.boundary(k)
        own_faces, own_signs = index[columns], sign[columns]  # padding reads the last simplex, and is masked below
        is_face = own_faces[:, None] == rows[:, :, None, None]
        values = (is_face * own_signs[:, None]).sum(-1)
        return values * (rows >= 0)[:, :, None] * (columns >= 0)[:, None]

    def _find(self, faces: Int[Tensor, "*batch vertices"]) -> Int[Tensor, "*batch"]:
        """The row of each of these simplices, vertices in any order."""
        known = self._key(self.simplices[faces.shape[-1] - 1])
        order = known.argsort()
        return order[torch.searchsorted(known[order], self._key(faces).contiguous())]

    def _key(self, rows: Int[Tensor, "*batch vertices"]) -> Int[Tensor, "*batch"]:
        key = torch.zeros_like(rows[..., 0])
        for vertex in rows.sort(-1).values.unbind(-1):
            key = key * self.n_vertices + vertex
        return key


def group_rows(keys: Int[Tensor, " items"], values: Int[Tensor, " items"], count: int) -> Int[Tensor, "count widest"]:
    """The values of each key side by side, in ascending order, -1 where there are fewer.

    Args:
        keys: from 0 to count - 1.
        values: one per key.
        count: how many rows.
    """
    order = values.argsort(stable=True)
    order = order[keys[order].argsort(stable=True)]
    sizes = torch.bincount(keys, minlength=count)
    starts = sizes.cumsum(0) - sizes
    place = torch.arange(len(keys), device=keys.device) - starts[keys[order]]
    table = torch.full((count, int(sizes.max()) if len(keys) else 0), -1, device=keys.device)
    return table.index_put((keys[order], place), values[order])


def clique_complex(n_vertices: int, edges: Int[Tensor, "edges 2"], dimension: int = 2) -> SimplicialComplex:
    """All sets of vertices, up to dimension + 1 of them, any two of which are joined by an edge.

    Args:
        n_vertices: how many.
        edges: of a graph, in either direction, also both.
        dimension: highest dimension to fill in, 1 to 3.
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
    place = torch.searchsorted(ascending, wanted.contiguous()).clamp(max=len(ascending) - 1)
    return ascending[place] == wanted


def _parity(rows: Int[Tensor, "*batch vertices"]) -> Float[Tensor, "*batch"]:
    """1 where an even number of exchanges puts the vertices in ascending order, else -1."""
    sign = torch.ones(rows.shape[:-1], dtype=torch.float64, device=rows.device)
    for i, j in combinations(range(rows.shape[-1]), 2):
        sign = torch.where(rows[..., i] > rows[..., j], -sign, sign)
    return sign
