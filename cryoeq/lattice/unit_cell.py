"""Unit cells: conversion between lengths and angles, and basis vectors."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.errors import ConfigError


def basis_of_cell(cell: Sequence[float]) -> Float[Tensor, "n n"]:
    """Basis vectors of a cell as columns, a along x, b in the xy plane.

    Args:
        cell: (a, b, gamma) or (a, b, c, alpha, beta, gamma), lengths in Angstrom, angles in radians.

    Raises:
        ConfigError: no cell has these lengths and angles.
    """
    lengths, angles_rad = (cell[:2], cell[2:]) if len(cell) == 3 else (cell[:3], cell[3:])
    cosines = [math.cos(angle) for angle in angles_rad]
    metric = torch.eye(len(lengths), dtype=torch.float64)
    for (i, j), cosine in zip(_pairs(len(lengths)), cosines, strict=True):
        metric[i, j] = metric[j, i] = cosine
    factor, failed = torch.linalg.cholesky_ex(metric)
    if int(failed) or min(lengths) <= 0 or float(factor.diagonal().min()) < 1e-6:
        numbers = " ".join(f"{value:g}" for value in (*lengths, *map(math.degrees, angles_rad)))
        raise ConfigError(
            f"the cell {numbers} is flat or impossible",
            "A cell needs positive lengths, angles between 0 and 180 degrees, and a volume",
            "Give lengths in Å first, then angles in degrees",
        )
    return factor.mT * torch.tensor(lengths, dtype=torch.float64)


def cell_of_basis(basis: Float[Tensor, "d n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " angles"]]:
    """Lengths of the basis vectors, and the angles between them in radians: gamma, or alpha, beta, gamma.

    Args:
        basis: two or more vectors as columns; of more than three, the angles are those of all pairs in order.
    """
    lengths = basis.norm(dim=0)
    i, j = torch.tensor(_pairs(basis.shape[1])).unbind(1)
    units = basis / lengths
    # atan2 of half sums: exact to the last bits for right and for flat angles too.
    angles = 2 * torch.atan2((units[:, i] - units[:, j]).norm(dim=0), (units[:, i] + units[:, j]).norm(dim=0))
    return lengths, angles


def _pairs(n: int) -> list[tuple[int, int]]:
    """Pairs of vectors in the order of their angles: alpha between b and c, beta between a and c, then gamma."""
    if n == 3:
        return [(1, 2), (0, 2), (0, 1)]
    return [(i, j) for i in range(n) for j in range(i + 1, n)]
