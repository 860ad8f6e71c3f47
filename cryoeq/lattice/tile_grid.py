"""Joint reduction of a grid of correlated lattices: the tiles of a bent crystal, the images of a tilt series.

Reduced one by one, two nearly equal lattices can end in different bases: where two vectors are nearly of one length,
or an angle near its limit, noise decides. Here each tile takes over the basis of a neighbour where its own lattice has
one near it that is nearly as short. After the grids of correlated lattices in Marchetti et al. 2023 (arXiv 2311.08170),
which are reduced by a convolutional network there; carrying bases by rounding is ours.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.lattice.reduction import integer_determinant, log_orthogonality_defect, transform_basis

MAX_DEFECT_INCREASE = 0.2  # of the log defect, over that of the tile reduced by itself
_MAX_DISTANCE = 1 / 3  # of its length: how far a vector may be from that of a neighbour which it continues


def carry_bases(
    grid: Float[Tensor, "rows columns d n"],
    single: Int[Tensor, "rows columns n n"],
    *,
    max_defect_increase: float = MAX_DEFECT_INCREASE,
) -> Int[Tensor, "rows columns n n"]:
    """Let each tile take over the basis of its neighbour towards the centre of the grid, with its order and signs.

    A tile keeps its own basis where rounding gives no basis of its lattice, or too long a one.

    Args:
        grid: one basis per tile, vectors as columns, all in one coordinate frame.
        single: Q of each tile reduced by itself.
        max_defect_increase: bound on the log orthogonality defect, over that of the tile reduced by itself.

    Returns:
        The unimodular Q of each tile.
    """
    rows, columns = grid.shape[:2]
    reduced = transform_basis(grid, single)
    limits = log_orthogonality_defect(reduced) + max_defect_increase
    changes = single.clone()
    order, parents = _from_centre(rows, columns)
    for (row, column), parent in zip(order, parents, strict=True):
        if parent is None:
            continue
        # The basis of this tile that is nearest to its neighbour's, if rounding leaves it one.
        target = transform_basis(grid[parent], changes[parent])
        step = torch.linalg.lstsq(reduced[row, column], target).solution.round().long()
        if abs(integer_determinant(step)) != 1:
            continue
        carried = transform_basis(reduced[row, column], step)
        if float(log_orthogonality_defect(carried)) <= float(limits[row, column]):
            changes[row, column] = single[row, column] @ step
    return changes


def basis_mismatch_fraction(reduced: Float[Tensor, "rows columns d n"]) -> float:
    """Fraction of neighbouring tiles in different bases: some vector of one is not, up to its sign, in the other.

    Signs and order alone do not count.

    Args:
        reduced: bases of the tiles; two tiles at least.
    """
    mismatches = []
    for axis in (0, 1):
        size = reduced.shape[axis] - 1
        first, second = (reduced.narrow(axis, start, size).mT for start in (0, 1))
        nearest = torch.cdist(first, torch.cat([second, -second], -2)).amin(-1)
        mismatches.append((nearest > _MAX_DISTANCE * first.norm(dim=-1)).any(-1).flatten())
    return float(torch.cat(mismatches).double().mean())


def _from_centre(rows: int, columns: int) -> tuple[list[tuple[int, int]], list[tuple[int, int] | None]]:
    """Tiles from the centre of the grid outwards, and the neighbour of each towards the centre."""
    centre = (rows // 2, columns // 2)
    order = sorted(
        ((row, column) for row in range(rows) for column in range(columns)),
        key=lambda tile: abs(tile[0] - centre[0]) + abs(tile[1] - centre[1]),
    )
    parents: list[tuple[int, int] | None] = []
    for row, column in order:
        if column != centre[1]:
            parents.append((row, column - 1 if column > centre[1] else column + 1))
        elif row != centre[0]:
            parents.append((row - 1 if row > centre[0] else row + 1, column))
        else:
            parents.append(None)
    return order, parents
