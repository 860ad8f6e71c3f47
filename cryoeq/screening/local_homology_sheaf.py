"""The local homology sheaf of a simplicial complex, and its Laplacian.

The stalk of a simplex s is the homology of the complex X relative to the part that does not touch s. It is represented
by the harmonic chains of the open star st s, without faces outside of the star::

    H_k(X, X - st s) = ker L,    L = d_k^T d_k + d_{k+1} d_{k+1}^T

From a vertex to an edge a chain is restricted to the edge's star and projected onto its harmonic chains. With F the
restrictions, the coboundary and the sheaf Laplacian are::

    (d x)_e = F_{u,e} x_u - F_{v,e} x_v  for an edge e = (u, v),    L_F = d^T d

The kernel of the Laplacian holds the global sections: of a complex without (k + 1)-simplices exactly the k-cycles, so
that for k = 2 a closed connected surface has one if it is orientable and none otherwise.

A reconstruction, from public summaries, of Cesa and Behboodi 2023, Algebraic Topological Networks via the Persistent
Local Homology Sheaf, arXiv 2311.10156: the formulas are not taken from the paper's text.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.sparse.linalg import eigsh
from torch import Tensor

from cryoeq.screening.simplicial import SimplicialComplex

_HARMONIC = 1e-8  # eigenvalues of the Laplacian below it count as zero
_PADDING = 1e3  # eigenvalue of padded coordinates, far from the kernel
_SHIFT = -1e-3  # near zero, where the shifted Laplacian is still regular


@dataclass(frozen=True)
class CellularSheaf:
    """Vector spaces (stalks) on the vertices and edges of a graph, with linear maps from each vertex to its edges.

    Stalks are padded to the largest: coordinates beyond a stalk's dimension are zero everywhere.

    Args:
        edges: two vertices of each edge; the first counts positive in the coboundary.
        restrictions: matrices to each edge from its first and its second vertex.
        vertex_dims: dimension of the stalk of each vertex.
    """

    edges: Int[Tensor, "edges 2"]
    restrictions: Float[Tensor, "edges 2 edge_dim vertex_dim"]
    vertex_dims: Int[Tensor, " vertices"]

    @property
    def mask(self) -> Bool[Tensor, "vertices vertex_dim"]:
        """True for coordinates of a stalk, False for padding."""
        width = self.restrictions.shape[-1]
        return torch.arange(width, device=self.vertex_dims.device) < self.vertex_dims[:, None]

    @property
    def degrees(self) -> Float[Tensor, " vertices"]:
        """Number of edges of each vertex."""
        counts = torch.bincount(self.edges.flatten(), minlength=len(self.vertex_dims))
        return counts.to(self.restrictions.dtype)

    def coboundary(self, x: Float[Tensor, "vertices vertex_dim channels"]) -> Float[Tensor, "edges edge_dim channels"]:
        """Difference of the two ends of each edge, after restriction."""
        first, second = self.restrictions.unbind(1)
        return first @ x[self.edges[:, 0]] - second @ x[self.edges[:, 1]]

    def laplacian(
        self, x: Float[Tensor, "vertices vertex_dim channels"]
    ) -> Float[Tensor, "vertices vertex_dim channels"]:
        """The sheaf Laplacian: the adjoint of the coboundary, applied to the coboundary."""
        difference = self.coboundary(x)
        first, second = self.restrictions.unbind(1)
        out = torch.zeros_like(x).index_add(0, self.edges[:, 0], first.mT @ difference)
        return out.index_add(0, self.edges[:, 1], -(second.mT @ difference))

    def laplacian_matrix(self) -> csr_array:
        """The sheaf Laplacian as a sparse matrix, a row and a column for each coordinate of each vertex."""
        mask = self.mask
        column_of = (mask.flatten().cumsum(0) - 1).view(mask.shape)
        values = self.restrictions.detach() * self.restrictions.new_tensor([1.0, -1.0])[:, None, None]
        n_edges, _, edge_dim, _ = values.shape
        rows = torch.arange(n_edges * edge_dim, device=values.device).view(n_edges, 1, edge_dim, 1).expand_as(values)
        columns = column_of[self.edges][:, :, None].expand_as(values)
        is_stalk = mask[self.edges][:, :, None].expand_as(values)
        value, row, column = (array[is_stalk].cpu().numpy() for array in (values, rows, columns))
        coboundary = csr_array((value, (row, column)), shape=(n_edges * edge_dim, int(mask.sum())))
        return csr_array(coboundary.T @ coboundary)

    def spectrum(self) -> Float[Tensor, " columns"]:
        """All eigenvalues of the sheaf Laplacian, ascending, by a dense solver for up to a few thousand coordinates."""
        return torch.linalg.eigvalsh(torch.from_numpy(self.laplacian_matrix().toarray()))

    def n_sections(self, tolerance: float = 1e-7) -> int:
        """Dimension of the space of global sections, the kernel of the sheaf Laplacian.

        Args:
            tolerance: eigenvalues below it count as zero.
        """
        matrix = self.laplacian_matrix()
        n_eigenvalues = 8
        while 2 * n_eigenvalues < matrix.shape[0]:
            start = np.random.default_rng(0).standard_normal(matrix.shape[0])
            lowest = eigsh(matrix.tocsc(), n_eigenvalues, sigma=_SHIFT, v0=start, return_eigenvectors=False)
            if lowest.max() > tolerance:
                return int((lowest < tolerance).sum())
            n_eigenvalues *= 2
        return int((self.spectrum() < tolerance).sum())

    def restricted_to(self, kept: Bool[Tensor, " vertices"]) -> "CellularSheaf":
        """The sheaf on the subgraph of the kept vertices; the other vertices stay, with zero stalks and no edges."""
        chosen = kept[self.edges].all(1)
        dims = torch.where(kept, self.vertex_dims, 0)
        return replace(self, edges=self.edges[chosen], restrictions=self.restrictions[chosen], vertex_dims=dims)


@dataclass(frozen=True)
class Stalks:
    """Harmonic chains of the open stars of all simplices of one dimension.

    Args:
        members: indices of the k-simplices of each star, padded with -1.
        basis: orthonormal harmonic chains as columns, zero beyond ``dims``.
        dims: dimension of each stalk.
    """

    members: Int[Tensor, "centres members"]
    basis: Float[Tensor, "centres members max_dim"]
    dims: Int[Tensor, " centres"]


def harmonic_stalks(complex_: SimplicialComplex, centre_dim: int, degree: int) -> Stalks:
    """Local homology H_k(X, X - st s) of all simplices s of one dimension.

    Args:
        complex_: the complex X.
        centre_dim: dimension of s.
        degree: k.
    """
    members = complex_.star(centre_dim, degree)
    down = complex_.relative_boundary(centre_dim, degree)
    up = complex_.relative_boundary(centre_dim, degree + 1)
    laplacian = down.mT @ down + up @ up.mT
    padding = torch.diag_embed((members < 0).to(laplacian.dtype) * _PADDING)
    values, vectors = torch.linalg.eigh(laplacian + padding)
    is_harmonic = values < _HARMONIC
    dims = is_harmonic.sum(1)
    max_dim = int(dims.max()) if len(dims) else 0
    return Stalks(members, (vectors * is_harmonic[:, None])[:, :, :max_dim], dims)


@dataclass(frozen=True)
class LocalHomologySheaf:
    """The local homology sheaf on the vertices and edges of a complex.

    Args:
        complex_: complex on which the sheaf stands.
        degree: k. For k = 2 a vertex inside of a surface has a stalk of dimension 1; for k = 1 the dimension is the
            number of parts into which the vertex cuts its neighbourhood, minus one.
        vertices: stalks of the vertices.
        edges: stalks of the edges.
        sheaf: restrictions between them.
    """

    complex_: SimplicialComplex
    degree: int
    vertices: Stalks
    edges: Stalks
    sheaf: CellularSheaf

    @classmethod
    def from_complex(cls, complex_: SimplicialComplex, degree: int) -> "LocalHomologySheaf":
        """Stalks and restrictions of a complex.

        Args:
            complex_: a complex of dimension 1 or more.
            degree: k, at least 1.
        """
        vertices, edges = (harmonic_stalks(complex_, dim, degree) for dim in (0, 1))
        ends = complex_.simplices[1]
        at_ends = vertices.members[ends]
        shared = (edges.members[:, None, :, None] == at_ends[:, :, None]) & (at_ends >= 0)[:, :, None]
        restrictions = edges.basis.mT[:, None] @ shared.to(edges.basis.dtype) @ vertices.basis[ends]
        return cls(complex_, degree, vertices, edges, CellularSheaf(ends, restrictions, vertices.dims))

    @property
    def interior(self) -> CellularSheaf:
        """The sheaf on the vertices with a stalk; its sections need not vanish at the boundary of the complex."""
        return self.sheaf.restricted_to(self.vertices.dims > 0)
