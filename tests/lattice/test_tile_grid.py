"""Grids of correlated lattices: every tile keeps its lattice, and neighbours keep their basis."""

import math

import torch

from cryoeq.lattice.reduction import Lll, integer_determinant, log_orthogonality_defect, transform_basis
from cryoeq.lattice.tile_grid import CarriedBases
from cryoeq.lattice.unit_cell import basis_of_cell


def jumps(reduced: torch.Tensor) -> int:
    """Neighbours whose vectors differ by more than a third of their length."""
    count = 0
    for axis in (0, 1):
        size = reduced.shape[axis] - 1
        first, second = reduced.narrow(axis, 0, size), reduced.narrow(axis, 1, size)
        count += int(((first - second).norm(dim=-2) > first.norm(dim=-2) / 3).any(-1).sum())
    return count


def test_neighbours_keep_their_basis(generator: torch.Generator) -> None:
    """A nearly hexagonal cell with 1 % of noise, each tile given in signs and order of its own."""
    cell = basis_of_cell((100.0, 100.5, math.radians(119.5)))
    grid = cell * (1 + 0.01 * torch.randn(5, 6, 2, 2, dtype=torch.float64, generator=generator))
    grid[::2] = grid[::2].flip(-1)
    grid[:, 1::3] = grid[:, 1::3] @ torch.tensor([[1.0, 3.0], [0.0, -1.0]], dtype=torch.float64)
    alone = Lll()(grid.flatten(0, 1)).view(5, 6, 2, 2)
    joint = CarriedBases(Lll())(grid)
    assert {abs(integer_determinant(change)) for change in joint.flatten(0, 1)} == {1}
    assert jumps(transform_basis(grid, joint)) == 0
    assert jumps(transform_basis(grid, alone)) > 10
    defects = [log_orthogonality_defect(transform_basis(grid, change)) for change in (alone, joint)]
    assert float((defects[1] - defects[0]).max()) <= 0.2


def test_a_tile_with_another_lattice_keeps_its_own_basis() -> None:
    grid = basis_of_cell((50.0, 60.0, 1.5)).repeat(1, 3, 1, 1)
    grid[0, 2] = basis_of_cell((30.0, 200.0, 1.7))
    assert torch.equal(CarriedBases(Lll())(grid)[0, 2], Lll()(grid[0, 2:])[0])
