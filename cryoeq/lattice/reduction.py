"""Lattices and their classical reduction: Lagrange-Gauss in two dimensions, LLL in any, both in exact arithmetic.

A basis holds its vectors as columns. A reducer returns the unimodular matrix Q of the new basis B Q, never the new
basis itself: integers have no rounding, so B Q spans the same lattice exactly. The numbers of a basis are binary
fractions; scaled to integers, their inner products are exact, and so is every decision taken on them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Rows = list[list[int]]


@runtime_checkable
class LatticeReducer(Protocol):
    """A method of lattice reduction; its laws are in tests/lattice/test_neural_reducer.py."""

    def __call__(self, basis: Float[Tensor, "batch d n"]) -> Int[Tensor, "batch n n"]:
        """The unimodular Q of each basis B, such that the columns of B Q are short."""
        ...


def log_orthogonality_defect(basis: Float[Tensor, "*batch d n"]) -> Float[Tensor, "*batch"]:
    """Logarithm of the orthogonality defect: 0 for right angles, else positive.

    It is defined as::

        log( |b_1| ... |b_n| / volume of the cell )

    Args:
        basis: vectors as columns, any unit of length.
    """
    log_lengths = basis.norm(dim=-2).log().sum(-1)
    return log_lengths - torch.linalg.qr(basis).R.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)


def transform_basis(
    basis: Float[Tensor, "*batch d n"], change: Int[Tensor, "*batch n n"]
) -> Float[Tensor, "*batch d n"]:
    """The new basis B Q."""
    return basis @ change.to(basis.dtype)


def integer_determinant(matrix: Int[Tensor, "n n"]) -> int:
    """Determinant in exact arithmetic, by Bareiss' elimination: +1 or -1 for a change of basis."""
    rows: Rows = matrix.tolist()
    sign, previous = 1, 1
    for k in range(len(rows) - 1):
        pivot = next((i for i in range(k, len(rows)) if rows[i][k]), None)
        if pivot is None:
            return 0
        if pivot != k:
            rows[k], rows[pivot], sign = rows[pivot], rows[k], -sign
        for row in rows[k + 1 :]:
            row[k + 1 :] = [(row[j] * rows[k][k] - row[k] * rows[k][j]) // previous for j in range(k + 1, len(rows))]
        previous = rows[k][k]
    return sign * rows[-1][-1]


@dataclass(frozen=True)
class LagrangeGauss:
    """The two shortest vectors of a plane lattice: |a| <= |b| and 2 |a.b| <= |a|^2.

    Lagrange 1773, Gauss 1801. log defect at most log(4/3) / 2 = 0.144.
    """

    def __call__(self, basis: Float[Tensor, "batch d 2"]) -> Int[Tensor, "batch 2 2"]:
        """Q of each basis."""
        return _one_by_one(_lagrange_gauss, basis)


@dataclass(frozen=True)
class Lll:
    """Reduction after Lenstra, Lenstra and Lovasz, in integers throughout.

    Args:
        delta: Lovasz' constant, between 1/4 and 1; the nearer to 1, the shorter the vectors and the slower.

    Cohen 1993, A Course in Computational Algebraic Number Theory, algorithm 2.6.7 (integral LLL).
    """

    delta: Fraction = Fraction(99, 100)

    def __call__(self, basis: Float[Tensor, "batch d n"]) -> Int[Tensor, "batch n n"]:
        """Q of each basis."""
        return _one_by_one(lambda gram: _lll(gram, self.delta), basis)


class _Change:
    """A Gram matrix of integers, and the change of basis that led to it, one row per new vector."""

    def __init__(self, gram: Rows) -> None:
        self.gram = [list(row) for row in gram]
        self.rows: Rows = [[int(i == j) for j in range(len(gram))] for i in range(len(gram))]

    def add(self, target: int, source: int, times: int) -> None:
        """b_target += times * b_source."""
        self.rows[target] = [a + times * b for a, b in zip(self.rows[target], self.rows[source], strict=True)]
        self.gram[target] = [a + times * b for a, b in zip(self.gram[target], self.gram[source], strict=True)]
        for row in self.gram:
            row[target] += times * row[source]

    def swap(self, i: int, j: int) -> None:
        """Exchange b_i and b_j."""
        for matrix in (self.rows, self.gram):
            matrix[i], matrix[j] = matrix[j], matrix[i]
        for row in self.gram:
            row[i], row[j] = row[j], row[i]


def _one_by_one(reduce: Callable[[Rows], Rows], basis: Float[Tensor, "batch d n"]) -> Int[Tensor, "batch n n"]:
    """Reduce exact Gram matrices; the rows of a change of basis are the columns of Q."""
    changes = [reduce(_exact_gram(vectors)) for vectors in basis.detach().cpu().double().mT.tolist()]
    n = basis.shape[-1]
    return torch.tensor(changes, dtype=torch.long, device=basis.device).reshape(-1, n, n).mT.contiguous()


def _exact_gram(vectors: list[list[float]]) -> Rows:
    """Inner products of binary fractions, scaled by a power of two to integers."""
    scale = max(value.as_integer_ratio()[1] for vector in vectors for value in vector)
    integers = [[int(Fraction(value) * scale) for value in vector] for vector in vectors]
    return [[sum(a * b for a, b in zip(first, second, strict=True)) for second in integers] for first in integers]


def _nearest(numerator: int, denominator: int) -> int:
    """The integer nearest to a fraction with a positive denominator; halves are rounded towards zero."""
    size = (2 * abs(numerator) + denominator - 1) // (2 * denominator)
    return size if numerator > 0 else -size


def _lagrange_gauss(gram: Rows) -> Rows:
    change = _Change(gram)
    while True:
        if change.gram[0][0] > change.gram[1][1]:
            change.swap(0, 1)
        times = _nearest(change.gram[0][1], change.gram[0][0])
        if not times:
            return change.rows
        change.add(1, 0, -times)


def _lll(gram: Rows, delta: Fraction) -> Rows:
    change, k = _Change(gram), 1
    while k < len(gram):
        minors, products = _integral_orthogonalisation(change.gram, k + 1)
        for j in range(k - 1, -1, -1):
            if times := _nearest(products[k][j], minors[j + 1]):
                change.add(k, j, -times)
                for i in range(j):
                    products[k][i] -= times * products[j][i]
                products[k][j] -= times * minors[j + 1]
        if minors[k + 1] * minors[k - 1] + products[k][k - 1] ** 2 < delta * minors[k] ** 2:
            change.swap(k, k - 1)
            k = max(k - 1, 1)
        else:
            k += 1
    return change.rows


def _integral_orthogonalisation(gram: Rows, size: int) -> tuple[list[int], Rows]:
    """Leading minors d_0 = 1, d_1, ..., and d_j+1 times the Gram-Schmidt coefficients mu_ij, all integers."""
    minors: list[int] = [1]
    products: Rows = []
    for i in range(size):
        products.append([])
        for j in range(i + 1):
            value = gram[i][j]
            for k in range(j):
                value = (minors[k + 1] * value - products[i][k] * products[j][k]) // minors[k]
            products[i].append(value)
        minors.append(products[i][i])
    return minors, products
