"""Joint reduction of grids: every tile keeps its lattice, and neighbours have the same basis.

The input is grids of slowly changing lattices with noise, each tile in a basis of its own.
"""

import math

import pytest
import torch
from torch import Tensor

from cryoeq.lattice.reduction import LagrangeGauss, Lll, integer_determinant, log_orthogonality_defect, transform_basis
from cryoeq.lattice.tile_grid import MAX_DEFECT_INCREASE, basis_mismatch_fraction, carry_bases
from cryoeq.lattice.train_neural_reducer import scramble
from cryoeq.lattice.unit_cell import basis_of_cell

SHAPES = {2: (6, 7), 3: (1, 12)}


def random_grid(rows: int, columns: int, n: int, generator: torch.Generator) -> Tensor:
    """A nearly close-packed lattice, whose short vectors are nearly of one length, bent and with 2 % of noise."""
    cell = torch.linalg.cholesky(0.5 * torch.eye(n, dtype=torch.float64) + 0.5).mT
    cell = cell + 0.03 * torch.randn(n, n, dtype=torch.float64, generator=generator)
    bend = 0.1 * torch.randn(2, n, n, dtype=torch.float64, generator=generator)
    row, column = torch.meshgrid(torch.linspace(-0.5, 0.5, rows), torch.linspace(-0.5, 0.5, columns), indexing="ij")
    strain = torch.eye(n, dtype=torch.float64) + row[..., None, None] * bend[0] + column[..., None, None] * bend[1]
    noise = 0.02 * torch.randn(rows, columns, n, n, dtype=torch.float64, generator=generator)
    tiles = strain @ cell * (1 + noise)
    return scramble(tiles.flatten(0, 1), generator).view(rows, columns, n, n)


def tile_by_tile(grid: Tensor) -> Tensor:
    rows, columns, _, n = grid.shape
    return Lll()(grid.flatten(0, 1)).view(rows, columns, n, n)


def joint(grid: Tensor) -> Tensor:
    return carry_bases(grid, tile_by_tile(grid))


@pytest.fixture(params=[2, 3], ids=["plane", "space"])
def grid(request: pytest.FixtureRequest, generator: torch.Generator) -> Tensor:
    return random_grid(*SHAPES[request.param], request.param, generator)


def test_every_tile_keeps_its_lattice(grid: Tensor) -> None:
    before = grid.clone()
    change = joint(grid)
    assert change.dtype == torch.long
    assert {abs(integer_determinant(one)) for one in change.flatten(0, 1)} == {1}
    assert torch.equal(grid, before)


def test_rotation_and_scale_change_nothing(grid: Tensor, generator: torch.Generator) -> None:
    n = grid.shape[-1]
    rotation = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator)).Q
    assert torch.equal(joint(57.0 * rotation @ grid), joint(grid))


def test_a_grid_may_lie_in_a_larger_space(grid: Tensor) -> None:
    lifted = torch.cat([torch.zeros_like(grid[..., :1, :]), grid], -2)
    assert torch.equal(joint(lifted), joint(grid))


def test_no_tile_gets_longer_vectors_than_allowed(grid: Tensor) -> None:
    single, carried = (log_orthogonality_defect(transform_basis(grid, way(grid))) for way in (tile_by_tile, joint))
    assert float((carried - single).max()) <= MAX_DEFECT_INCREASE


def test_neighbours_are_in_fewer_different_bases_than_tile_by_tile(grid: Tensor) -> None:
    single, carried = (basis_mismatch_fraction(transform_basis(grid, way(grid))) for way in (tile_by_tile, joint))
    assert carried < single / 4


def jumps(reduced: Tensor) -> int:
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
    assert jumps(transform_basis(grid, joint(grid))) == 0
    assert jumps(transform_basis(grid, tile_by_tile(grid))) > 10


def test_signs_and_order_are_no_mismatch() -> None:
    grid = basis_of_cell((50.0, 60.0, 1.5)).repeat(2, 2, 1, 1)
    grid[0] = grid[0].flip(-1)
    grid[:, 1] *= -1
    assert basis_mismatch_fraction(grid) == 0
    grid[1, 1] = grid[1, 1] @ torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    assert basis_mismatch_fraction(grid) == 0.5  # two of the four pairs of neighbours


def test_a_tile_with_another_lattice_keeps_its_own_basis() -> None:
    grid = basis_of_cell((50.0, 60.0, 1.5)).repeat(1, 3, 1, 1)
    grid[0, 2] = basis_of_cell((30.0, 200.0, 1.7))
    assert torch.equal(joint(grid)[0, 2], Lll()(grid[0, 2:])[0])


def test_any_reducer_may_come_first(generator: torch.Generator) -> None:
    grid = random_grid(6, 6, 2, generator)
    change = carry_bases(grid, LagrangeGauss()(grid.flatten(0, 1)).view(6, 6, 2, 2))
    assert basis_mismatch_fraction(transform_basis(grid, change)) < 0.05
