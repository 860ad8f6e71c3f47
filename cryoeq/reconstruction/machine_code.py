"""Functions compiled by numba for CPUs at their first use, and kept for the next process.

The machine code is kept beside the file of the function, or, where that may not be written to, in the user's cache
folder. A kernel is in one file with all that it calls, whose date tells numba whether what it has kept is still valid.
"""

import inspect
from collections.abc import Callable
from typing import TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., object])
# Fused products; infinities and NaN stay what they are.
EXACT_ORDER = {"contract"}
# Sums in any order as well.
ANY_ORDER = {"reassoc", "contract", "nsz", "arcp"}


def compiled(function: Function, fast_math: set[str]) -> Function:
    """The function as machine code, kept for the next process where there is a folder for it.

    Args:
        function: of numbers and arrays.
        fast_math: liberties that the compiler may take.
    """
    plain = inspect.unwrap(function)  # without the checks of shapes that tests put around it
    try:
        return numba.njit(plain, cache=True, nogil=True, fastmath=fast_math)
    except RuntimeError:  # no folder to write to
        return numba.njit(plain, nogil=True, fastmath=fast_math)


def inlined(function: Function, fast_math: set[str]) -> Function:
    """A part of a kernel, compiled into it.

    Functions of their own are inlined by another rule when just compiled than when read from the cache, and rounded
    otherwise: the first process after an installation would have other results than the next.

    Args:
        function: of numbers and arrays.
        fast_math: liberties that the compiler may take.
    """
    return numba.njit(inspect.unwrap(function), nogil=True, fastmath=fast_math, inline="always")
