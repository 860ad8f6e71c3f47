"""An equivariant matrix as its blocks, one for each irrep of the group: Schur's lemma leaves it nothing else."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.equivariance.fields import FieldKind
from cryoeq.equivariance.groups import PlaneGroup

Fields = tuple[tuple[int, FieldKind], ...]
"""How many fields of which kind, one after the other; the channels of each are ordered (component, field)."""


@dataclass(frozen=True)
class IrrepBlock:
    """What a linear map does to all copies of one irrep.

    Args:
        irrep: its name.
        dim: its dimension.
        constituents: free coefficients for each pair of an outgoing and an incoming copy: 1 real, 2 complex type.
        matrix: between orthonormal bases.
    """

    irrep: str
    dim: int
    constituents: int
    matrix: Float[Tensor, "out in"]

    @property
    def out_multiplicity(self) -> int:
        """Copies that go out."""
        return self.matrix.shape[0] // self.dim

    @property
    def in_multiplicity(self) -> int:
        """Copies that come in."""
        return self.matrix.shape[1] // self.dim

    @property
    def coefficients(self) -> int:
        """Free parameters."""
        return self.out_multiplicity * self.in_multiplicity * self.constituents

    @property
    def spectral_norm(self) -> float:
        """Largest factor by which the length of a feature grows."""
        return float(torch.linalg.matrix_norm(self.matrix, 2))

    @property
    def squared_norm(self) -> float:
        """Sum of the squared coefficients w_k of W = sum_k w_k E_k, E_k orthogonal: |W|_F^2 / dim."""
        return float(self.matrix.square().sum()) / self.dim


def irrep_blocks(
    group: PlaneGroup, matrix: Float[Tensor, "out in"], in_fields: Fields, out_fields: Fields
) -> tuple[IrrepBlock, ...]:
    """The blocks of an equivariant matrix, for the irreps that come in and go out.

    Args:
        group: the group.
        matrix: rho_out(g) W = W rho_in(g) for each of its elements.
        in_fields: of its columns.
        out_fields: of its rows.
    """
    spans = {span.irrep: span for _, kind in in_fields for span in group.irrep_spans(kind)}
    into, out = _parts(group, in_fields), _parts(group, out_fields)
    return tuple(
        IrrepBlock(name, span.dim, span.constituents, _assemble(matrix, out[name], into[name]))
        for name, span in sorted(spans.items())
        if name in out
    )


@dataclass(frozen=True)
class _Part:
    """The copies of an irrep in some fields of one kind: their channels, how many fields, and a basis of each field."""

    channels: slice
    count: int
    basis: Tensor


def _parts(group: PlaneGroup, fields: Fields) -> dict[str, list[_Part]]:
    parts: dict[str, list[_Part]] = {}
    first = 0
    for count, kind in fields:
        channels = slice(first, first + count * group.dim(kind))
        for span in group.irrep_spans(kind):
            parts.setdefault(span.irrep, []).append(_Part(channels, count, span.basis))
        first = channels.stop
    return parts


def _assemble(matrix: Tensor, out: list[_Part], into: list[_Part]) -> Tensor:
    return torch.cat([torch.cat([_project(matrix, row, column) for column in into], 1) for row in out])


def _project(matrix: Tensor, row: _Part, column: _Part) -> Tensor:
    part = matrix[row.channels, column.channels].reshape(len(row.basis), row.count, len(column.basis), column.count)
    turned = torch.tensordot(row.basis.to(part).T, part, 1)  # (outgoing dimension, field, component, field)
    turned = torch.einsum("pnbm,bq->pnqm", turned, column.basis.to(part))
    return turned.reshape(row.basis.shape[1] * row.count, -1)
