"""Triangulations and graphs whose homology is known."""

from itertools import product

import pytest
import torch
from torch import Tensor


def _grid(rows: int, columns: int, glue: str) -> Tensor:
    """Triangles of a rectangle of squares, its sides glued: "torus", "klein", "moebius", "annulus" or "disc"."""
    wraps_across = glue in {"torus", "klein", "moebius", "annulus"}
    wraps_up = glue in {"torus", "klein"}
    height = rows if wraps_up else rows + 1

    def vertex(row: int, column: int) -> int:
        if wraps_across and column == columns:
            column = 0
            row = {"klein": (rows - row) % rows, "moebius": rows - row}.get(glue, row)
        width = columns if wraps_across else columns + 1
        return (row % height) * width + column

    triangles = []
    for row, column in product(range(rows), range(columns)):
        a, b = vertex(row, column), vertex(row, column + 1)
        c, d = vertex(row + 1, column), vertex(row + 1, column + 1)
        triangles += [(a, b, d), (a, c, d)]
    return torch.tensor(triangles)


@pytest.fixture(scope="session")
def surfaces() -> dict[str, Tensor]:
    """Triangles of each surface."""
    octahedron = [(a, b, c) for a in (0, 1) for b in (2, 3) for c in (4, 5)]
    projective = [
        (0, 1, 2), (0, 2, 3), (0, 3, 4), (0, 4, 5), (0, 1, 5),
        (1, 2, 4), (2, 4, 5), (2, 3, 5), (1, 3, 5), (1, 3, 4),
    ]  # fmt: skip
    return {
        "sphere": torch.tensor(octahedron),
        "projective plane": torch.tensor(projective),
        "torus": _grid(4, 5, "torus"),
        "klein bottle": _grid(4, 5, "klein"),
        "moebius band": _grid(4, 5, "moebius"),
        "annulus": _grid(4, 5, "annulus"),
        "disc": _grid(4, 5, "disc"),
    }
