"""Niggli's reduced cell of a space lattice, by gemmi: the one by which crystallographic tables are sorted."""

from dataclasses import dataclass

import gemmi
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.lattice.reduction import Lll, transform_basis
from cryoeq.lattice.unit_cell import cell_of_basis


@dataclass(frozen=True)
class Niggli:
    """Reduction to Niggli's cell: the shortest three vectors, and one choice among equals.

    Krivy and Gruber 1976, Acta Cryst. A32, 297; stable in floating point after Grosse-Kunstleve et al. 2004.
    """

    def __call__(self, basis: Float[Tensor, "batch d 3"]) -> Int[Tensor, "batch 3 3"]:
        """Q of each basis."""
        # gemmi takes a cell, and angles of a very skew cell keep too few digits: LLL, which is exact, comes first.
        lll_change = Lll()(basis)
        niggli_change = torch.stack([_reduce(one) for one in transform_basis(basis.double(), lll_change)])
        return lll_change @ niggli_change.to(lll_change)


def _reduce(basis: Float[Tensor, "d 3"]) -> Int[Tensor, "3 3"]:
    lengths, angles_rad = cell_of_basis(basis)
    # Lengths are scaled to about 1: gemmi's tolerance is absolute.
    scale = float(lengths.log().mean().exp())
    cell = gemmi.UnitCell(*(lengths / scale).tolist(), *angles_rad.rad2deg().tolist())
    vector = gemmi.GruberVector(cell, "P", True)
    vector.niggli_reduce()
    operator = vector.change_of_basis
    return torch.tensor(operator.rot) // operator.DEN
