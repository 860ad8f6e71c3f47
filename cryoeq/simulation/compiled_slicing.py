"""Sums over the samples around points of a transform, compiled by numba: bit by bit those of torch, without its copies.

torch gathers 64 samples of each point into memory before it weights and adds them. Here they are read once and added as
they come: along x, then y, then z, each from the first to the last, as torch adds four numbers.
"""

import inspect
from collections.abc import Callable
from typing import TypeVar

import numba
import numpy as np
from jaxtyping import Complex64, Float32
from numpy import float32

_Function = TypeVar("_Function", bound=Callable[..., object])


def _compiled(function: _Function) -> _Function:
    """The function as machine code, kept for the next process where there is a folder for it."""
    plain = inspect.unwrap(function)  # without the checks of shapes that tests put around it
    try:
        return numba.njit(plain, cache=True, nogil=True)
    except RuntimeError:  # no folder to write to
        return numba.njit(plain, nogil=True)


@_compiled
def weighted_sums(
    transform: Complex64[np.ndarray, "m m m"],
    points: Float32[np.ndarray, "points 3"],
    weights: Float32[np.ndarray, "points 3 4"],
    sums: Complex64[np.ndarray, " points"],
) -> None:
    """Sums over the four samples along each axis around each point.

    Args:
        transform: the samples, with axes (z, y, x), periodic, the origin at 0.
        points: (x, y, z) in samples.
        weights: of the samples along x, y and z, the first of them one sample below the point.
        sums: of each point, which are written.
    """
    m = transform.shape[0]
    along_x = np.empty(4, np.int64)
    for point in range(len(points)):
        first_y, first_z = int(np.floor(points[point, 1])) - 1, int(np.floor(points[point, 2])) - 1
        for i in range(4):
            along_x[i] = (int(np.floor(points[point, 0])) - 1 + i) % m
        real, imag = float32(0.0), float32(0.0)
        for k in range(4):
            plane = transform[(first_z + k) % m]
            real_y, imag_y = float32(0.0), float32(0.0)
            for j in range(4):
                row = plane[(first_y + j) % m]
                real_x, imag_x = float32(0.0), float32(0.0)
                for i in range(4):
                    sample, weight = row[along_x[i]], weights[point, 0, i]
                    real_x += sample.real * weight
                    imag_x += sample.imag * weight
                real_y += real_x * weights[point, 1, j]
                imag_y += imag_x * weights[point, 1, j]
            real += real_y * weights[point, 2, k]
            imag += imag_y * weights[point, 2, k]
        sums[point] = complex(real, imag)
