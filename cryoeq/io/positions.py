"""Micrographs of particles, and positions on them."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from cryoeq.io.labels import COORDINATES, MICROGRAPH_NAME
from cryoeq.io.star import StarTable


def micrograph_numbers(star: StarTable) -> Int[Tensor, " particles"] | None:
    """Number of the micrograph of each particle, from 0, in the order of their first particles.

    Args:
        star: a particle table.

    Returns:
        The numbers; None where the table names no micrographs.
    """
    names = star.particles.get(MICROGRAPH_NAME)
    if names is None:
        return None
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names.tolist()])


def position_numbers(star: StarTable) -> Int[Tensor, " particles"] | None:
    """Number of the position of each particle, from 0; particles picked twice share theirs.

    Positions are compared as they are written: nothing is read into coordinates that a program left as it liked.

    Args:
        star: a particle table.

    Returns:
        The numbers; None where the table has no coordinates, or the same ones in all rows.
    """
    columns = [star.particles.get(name) for name in (MICROGRAPH_NAME, *COORDINATES)]
    micrograph, x, y = (None if column is None else column.tolist() for column in columns)
    if micrograph is None or x is None or y is None or len({*zip(x, y, strict=True)}) < 2:
        return None
    numbers: dict[tuple[str, str, str], int] = {}
    each = (numbers.setdefault(position, len(numbers)) for position in zip(micrograph, x, y, strict=True))
    return torch.from_numpy(np.fromiter(each, np.int64, len(x)))
