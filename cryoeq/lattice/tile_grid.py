"""Lattices that change little from tile to tile, or from frame to frame, in bases that change little too.

Reduced one by one, two nearly equal lattices can end in different bases: where two vectors are nearly of one length,
or an angle near its limit, noise decides. Here each tile takes over the basis of a neighbour where its own lattice has
one near it that is nearly as short. After the grids of correlated lattices in Marchetti et al. 2023 (arXiv 2311.08170),
which are reduced by a convolutional network there (``models/grid_reducer.py``); carrying bases by rounding is ours.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.lattice.reduction import LatticeReducer, integer_determinant, log_orthogonality_defect, transform_basis

SLACK = 0.2  # by how much log defect may exceed that of a tile by itself
_LIKE = 1 / 3  # of its length: how far a vector may be from one of a neighbour that it continues


@runtime_checkable
class GridReducer(Protocol):
    """What shortens the bases of a grid together; its laws are in tests/conformance/test_grid_reducer.py."""

    def __call__(self, grid: Float[Tensor, "rows columns d n"]) -> Int[Tensor, "rows columns n n"]:
        """The unimodular Q of each tile.

        Args:
            grid: one basis per tile, vectors as columns, all in one frame of coordinates.
        """
        ...


@dataclass(frozen=True)
class CarriedBases:
    """Bases are carried from the middle of the grid outwards, tile by tile, wherever they fit.

    Args:
        reducer: of the single tiles.
        slack: by how much log defect may exceed that of the tile by itself.
    """

    reducer: LatticeReducer
    slack: float = SLACK

    def __call__(self, grid: Float[Tensor, "rows columns d n"]) -> Int[Tensor, "rows columns n n"]:
        """Q of each tile."""
        rows, columns, _, n = grid.shape
        return carry_bases(grid, self.reducer(grid.flatten(0, 1)).view(rows, columns, n, n), slack=self.slack)


def carry_bases(
    grid: Float[Tensor, "rows columns d n"], alone: Int[Tensor, "rows columns n n"], *, slack: float = SLACK
) -> Int[Tensor, "rows columns n n"]:
    """Let each tile take over the basis of its neighbour towards the middle, in order and sign too.

    Args:
        grid: one basis per tile, all in one frame of coordinates.
        alone: Q of each tile by itself.
        slack: by how much log defect may exceed that of the tile by itself.

    Returns:
        Q of each tile.
    """
    rows, columns = grid.shape[:2]
    reduced = transform_basis(grid, alone)
    limits = log_orthogonality_defect(reduced) + slack
    changes = alone.clone()
    order, parents = _outwards(rows, columns)
    for (row, column), parent in zip(order, parents, strict=True):
        if parent is None:
            continue
        # The basis of this tile that is nearest to its neighbour's, if rounding leaves it one.
        wanted = transform_basis(grid[parent], changes[parent])
        step = torch.linalg.lstsq(reduced[row, column], wanted).solution.round().long()
        if abs(integer_determinant(step)) != 1:
            continue
        moved = transform_basis(reduced[row, column], step)
        if float(log_orthogonality_defect(moved)) <= float(limits[row, column]):
            changes[row, column] = alone[row, column] @ step
    return changes


def basis_flips(reduced: Float[Tensor, "rows columns d n"]) -> float:
    """Share of neighbours in different bases: a vector of one has no like, up to its sign, in the other.

    Signs and order alone do not count.

    Args:
        reduced: bases of the tiles; two at least.
    """
    flips = []
    for axis in (0, 1):
        size = reduced.shape[axis] - 1
        first, second = (reduced.narrow(axis, start, size).mT for start in (0, 1))
        nearest = torch.cdist(first, torch.cat([second, -second], -2)).amin(-1)
        flips.append((nearest > _LIKE * first.norm(dim=-1)).any(-1).flatten())
    return float(torch.cat(flips).double().mean())


def _outwards(rows: int, columns: int) -> tuple[list[tuple[int, int]], list[tuple[int, int] | None]]:
    """Tiles from the middle outwards, and the neighbour towards the middle of each."""
    middle = (rows // 2, columns // 2)
    order = sorted(
        ((row, column) for row in range(rows) for column in range(columns)),
        key=lambda tile: abs(tile[0] - middle[0]) + abs(tile[1] - middle[1]),
    )
    parents: list[tuple[int, int] | None] = []
    for row, column in order:
        if column != middle[1]:
            parents.append((row, column - 1 if column > middle[1] else column + 1))
        elif row != middle[0]:
            parents.append((row - 1 if row > middle[0] else row + 1, column))
        else:
            parents.append(None)
    return order, parents
