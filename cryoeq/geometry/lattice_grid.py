"""Lattices that change little from tile to tile, or from frame to frame, in bases that change little too.

Reduced one by one, two nearly equal lattices can end in different bases: where two vectors are nearly of one length,
or an angle near its limit, noise decides. Here each tile takes over the basis of a neighbour where its own lattice has
one near it that is nearly as short. After the grids of correlated lattices in Marchetti et al. 2023 (arXiv 2311.08170),
which are reduced by a convolutional network there; carrying bases over by rounding is ours.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.geometry.lattice import LatticeReducer, integer_determinant, log_orthogonality_defect, transform_basis


def reduce_grid(
    grid: Float[Tensor, "rows columns d n"], reducer: LatticeReducer, *, slack: float = 0.2
) -> Int[Tensor, "rows columns n n"]:
    """Reduce a grid of correlated lattices jointly.

    Args:
        grid: one basis per tile, all in one frame of coordinates.
        reducer: of the single tiles.
        slack: by how much log defect may exceed that of the tile by itself.

    Returns:
        Q of each tile.
    """
    rows, columns, _, n = grid.shape
    alone = reducer(grid.flatten(0, 1)).view(rows, columns, n, n)
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
