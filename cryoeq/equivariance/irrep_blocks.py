"""Block decomposition of an equivariant matrix, one block for each irrep of the group (Schur's lemma)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.equivariance.fields import FieldKind
from cryoeq.equivariance.groups import PlaneGroup

Fields = tuple[tuple[int, FieldKind], ...]
"""Number and kind of fields, one kind after the other; the channels of each are ordered (component, field)."""


@dataclass(frozen=True)
class IrrepBlock:
    """Restriction of a linear map to all copies of one irrep.

    Args:
        irrep: name of the irrep.
        dim: dimension of the irrep.
        constituents: free coefficients for each pair of an output and an input copy: 1 for real, 2 for complex type.
        matrix: matrix of the restriction between orthonormal bases.
    """

    irrep: str
    dim: int
    constituents: int
    matrix: Float[Tensor, "out in"]

    @property
    def out_multiplicity(self) -> int:
        """Multiplicity of the irrep in the output."""
        return self.matrix.shape[0] // self.dim

    @property
    def in_multiplicity(self) -> int:
        """Multiplicity of the irrep in the input."""
        return self.matrix.shape[1] // self.dim

    @property
    def coefficients(self) -> int:
        """Number of free parameters."""
        return self.out_multiplicity * self.in_multiplicity * self.constituents

    @property
    def spectral_norm(self) -> float:
        """Largest singular value of the restriction."""
        return float(torch.linalg.matrix_norm(self.matrix, 2))

    @property
    def squared_norm(self) -> float:
        """Sum of the squared coefficients w_k of W = sum_k w_k E_k, E_k orthogonal: |W|_F^2 / dim."""
        return float(self.matrix.square().sum()) / self.dim


def irrep_blocks(
    group: PlaneGroup, matrix: Float[Tensor, "out in"], in_fields: Fields, out_fields: Fields
) -> tuple[IrrepBlock, ...]:
    """The blocks of an equivariant matrix, for the irreps of both input and output.

    Args:
        group: symmetry group of the matrix.
        matrix: W with rho_out(g) W = W rho_in(g) for each element g.
        in_fields: fields of the columns of W.
        out_fields: fields of the rows of W.
    """
    spans = {span.irrep: span for _, kind in in_fields for span in group.irrep_spans(kind)}
    into, out = _copies_by_irrep(group, in_fields), _copies_by_irrep(group, out_fields)
    return tuple(
        IrrepBlock(name, span.dim, span.constituents, _assemble(matrix, out[name], into[name]))
        for name, span in sorted(spans.items())
        if name in out
    )


@dataclass(frozen=True)
class _Copies:
    """Copies of an irrep in fields of one kind: their channels, the number of fields, and a basis of each field."""

    channels: slice
    count: int
    basis: Tensor


def _copies_by_irrep(group: PlaneGroup, fields: Fields) -> dict[str, list[_Copies]]:
    copies: dict[str, list[_Copies]] = {}
    first = 0
    for count, kind in fields:
        channels = slice(first, first + count * group.dim(kind))
        for span in group.irrep_spans(kind):
            copies.setdefault(span.irrep, []).append(_Copies(channels, count, span.basis))
        first = channels.stop
    return copies


def _assemble(matrix: Tensor, out: list[_Copies], into: list[_Copies]) -> Tensor:
    return torch.cat([torch.cat([_project(matrix, row, column) for column in into], 1) for row in out])


def _project(matrix: Tensor, row: _Copies, column: _Copies) -> Tensor:
    block = matrix[row.channels, column.channels].reshape(len(row.basis), row.count, len(column.basis), column.count)
    block = torch.tensordot(row.basis.to(block).T, block, 1)  # (output dimension, field, component, field)
    block = torch.einsum("pnbm,bq->pnqm", block, column.basis.to(block))
    return block.reshape(row.basis.shape[1] * row.count, -1)
