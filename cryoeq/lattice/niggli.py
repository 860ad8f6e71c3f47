"""Niggli's reduced cell of a space lattice, through gemmi: the one that crystallographic tables are sorted by."""

from dataclasses import dataclass

import gemmi
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.lattice.reduction import Lll, transform_basis
from cryoeq.lattice.unit_cell import cell_of_basis


@dataclass(frozen=True)
class Niggli:
    """Niggli's cell: the shortest three vectors, and one choice among equals.

    Krivy and Gruber 1976, Acta Cryst. A32, 297; stable in floating point after Grosse-Kunstleve et al. 2004.
    """

    def __call__(self, basis: Float[Tensor, "batch d 3"]) -> Int[Tensor, "batch 3 3"]:
        """Q of each basis."""
        # gemmi takes a cell: of a very skew one its angles keep too few digits, so LLL comes first, which is exact.
        first = Lll()(basis)
        second = torch.stack([_reduce(one) for one in transform_basis(basis.double(), first)])
        return first @ second.to(first)


def _reduce(basis: Float[Tensor, "d 3"]) -> Int[Tensor, "3 3"]:
    lengths, angles_rad = cell_of_basis(basis)
    # Lengths are brought near 1: gemmi's tolerance is absolute.
    scale = float(lengths.log().mean().exp())
    cell = gemmi.UnitCell(*(lengths / scale).tolist(), *angles_rad.rad2deg().tolist())
    vector = gemmi.GruberVector(cell, "P", True)
    vector.niggli_reduce()
    operator = vector.change_of_basis
    return torch.tensor(operator.rot) // operator.DEN
