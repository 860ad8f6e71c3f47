"""Laws of every lattice reducer; a new one is one entry of ``REDUCERS``.

The input is arbitrary bases: rotated, scaled, permuted. Integers make the lattice exact; the lengths depend on the
reducer, and are bounded by those of LLL.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cryoeq.lattice.neural_reducer import NeuralReducer, ReductionNetwork, load_reducer
from cryoeq.lattice.niggli import Niggli
from cryoeq.lattice.reduction import (
    LagrangeGauss,
    LatticeReducer,
    Lll,
    integer_determinant,
    log_orthogonality_defect,
    transform_basis,
)
from cryoeq.lattice.train_neural_reducer import random_bases

COUNT = 16


@dataclass(frozen=True)
class Law:
    """A reducer in one dimension.

    Args:
        build: constructor.
        n: dimension of the lattices.
        is_ordered: whether the defect depends on the order of the vectors.
        max_defect_ratio: bound on the mean log defect over that of LLL.
    """

    build: Callable[[], LatticeReducer]
    n: int
    is_ordered: bool
    max_defect_ratio: float


def untrained() -> NeuralReducer:
    """Any weights must give a valid change of basis."""
    network = ReductionNetwork(8, 2, torch.Generator().manual_seed(4))
    torch.nn.init.normal_(network.out.weight, generator=torch.Generator().manual_seed(5))
    return NeuralReducer(network)


REDUCERS = {
    "lagrange-gauss": Law(LagrangeGauss, 2, False, 1.0001),
    "niggli": Law(Niggli, 3, False, 1.02),
    "lll 2": Law(Lll, 2, True, 1.0),
    "lll 5": Law(Lll, 5, True, 1.0),
    "rounding 3": Law(lambda: NeuralReducer(None), 3, False, 1.15),
    "untrained 4": Law(untrained, 4, False, 1.5),
    "neural 2": Law(lambda: load_reducer(2), 2, False, 1.0001),
    "neural 3": Law(lambda: load_reducer(3), 3, False, 1.02),
}


@pytest.fixture(params=REDUCERS)
def law(request: pytest.FixtureRequest) -> Law:
    return REDUCERS[request.param]


@pytest.fixture
def basis(law: Law, generator: torch.Generator) -> Tensor:
    return random_bases(COUNT, law.n, generator)


def reduced_defect(law: Law, basis: Tensor) -> Tensor:
    return log_orthogonality_defect(transform_basis(basis, law.build()(basis)))


def assert_same_form(first: Tensor, second: Tensor, scale: Tensor) -> None:
    """Inner products agree to 1e-12 of the squared lengths that the reduction began with."""
    difference = first.mT @ first - second.mT @ second
    assert float((difference.abs().amax((-2, -1)) / scale.square().sum((-2, -1))).max()) < 1e-12


def test_it_is_a_reducer(law: Law) -> None:
    assert isinstance(law.build(), LatticeReducer)


def test_the_lattice_is_the_same(law: Law, basis: Tensor) -> None:
    before = basis.clone()
    changes = law.build()(basis)
    assert changes.shape == (COUNT, law.n, law.n)
    assert changes.dtype == torch.long
    assert {abs(integer_determinant(change)) for change in changes} == {1}
    assert torch.equal(basis, before)
    assert int((changes != torch.eye(law.n)).any((1, 2)).sum()) == COUNT  # these bases are far from reduced


def test_integer_vectors_stay_integer_and_the_change_is_invertible(law: Law, generator: torch.Generator) -> None:
    """In integer arithmetic: B Q, and B Q Q^-1 = B."""
    basis = torch.randint(-50, 51, (COUNT, law.n, law.n), generator=generator)
    basis = basis[[integer_determinant(one) != 0 for one in basis]]
    for one, change in zip(basis, law.build()(basis.double()), strict=True):
        inverse = torch.linalg.inv(change.double()).round().long()
        assert torch.equal(change @ inverse, torch.eye(law.n, dtype=torch.long))
        assert torch.equal(one @ change @ inverse, one)


def test_it_shortens(law: Law, basis: Tensor) -> None:
    after = reduced_defect(law, basis)
    lll = log_orthogonality_defect(transform_basis(basis, Lll()(basis)))
    assert bool((after <= log_orthogonality_defect(basis) + 1e-9).all())
    assert float(after.mean()) <= law.max_defect_ratio * float(lll.mean()) + 1e-9


def test_rotation_and_scale_change_nothing(law: Law, basis: Tensor, generator: torch.Generator) -> None:
    rotation = torch.linalg.qr(torch.randn(law.n, law.n, dtype=torch.float64, generator=generator)).Q
    reducer = law.build()
    change, rotated_change = reducer(basis), reducer(3.7e-4 * rotation @ basis)
    assert torch.equal(change, rotated_change)
    assert_same_form(transform_basis(basis, change), transform_basis(rotation @ basis, rotated_change), basis)


def test_a_lattice_may_lie_in_a_larger_space(law: Law, basis: Tensor) -> None:
    lifted = torch.cat([basis, torch.zeros(COUNT, 2, law.n, dtype=torch.float64)], 1)
    assert_same_form(*(transform_basis(one, law.build()(one)) for one in (basis, lifted)), basis)


def test_signs_and_order_go_with_the_vectors(law: Law, basis: Tensor, generator: torch.Generator) -> None:
    """Q(B P) = P^-1 Q(B), or with P on the right too: in either case the reduced lengths are the same."""
    order = torch.randperm(law.n, generator=generator)
    signs = torch.randint(0, 2, (law.n,), generator=generator) * 2 - 1
    permuted = basis[:, :, order] * signs
    if law.is_ordered:
        assert bool(torch.isfinite(reduced_defect(law, permuted)).all())
        return
    lengths = [transform_basis(one, law.build()(one)).norm(dim=-2).sort(-1).values for one in (basis, permuted)]
    torch.testing.assert_close(lengths[0], lengths[1], rtol=1e-9, atol=0.0)


def test_a_batch_is_a_loop(law: Law, basis: Tensor) -> None:
    reducer = law.build()
    assert torch.equal(reducer(basis), torch.cat([reducer(one[None]) for one in basis]))


def test_reduced_bases_stay(law: Law, basis: Tensor) -> None:
    reducer = law.build()
    reduced = transform_basis(basis, reducer(basis))
    again = transform_basis(reduced, reducer(reduced))
    torch.testing.assert_close(
        again.norm(dim=-2).sort(-1).values, reduced.norm(dim=-2).sort(-1).values, rtol=1e-9, atol=0.0
    )


@pytest.mark.parametrize("n", [4, 6, 8])
def test_no_layer_depends_on_the_dimension(n: int, generator: torch.Generator) -> None:
    """The weights of n = 3 reduce lattices of higher dimension, to shorter vectors than rounding alone."""
    basis = random_bases(64, n, generator)
    defects = [
        float(log_orthogonality_defect(transform_basis(basis, reducer(basis))).mean())
        for reducer in (load_reducer(3), NeuralReducer(None))
    ]
    assert defects[0] < defects[1]


@given(seed=st.integers(0, 10**6), n=st.integers(2, 5))
@settings(max_examples=8)
def test_the_neural_reducer_commutes_with_signed_permutations(seed: int, n: int) -> None:
    """Q(B P) = P^-1 Q(B) P, exactly, for any weights."""
    generator = torch.Generator().manual_seed(seed)
    basis = random_bases(4, n, generator)
    order = torch.randperm(n, generator=generator)
    signs = torch.randint(0, 2, (n,), generator=generator) * 2 - 1
    permutation = torch.eye(n, dtype=torch.long)[:, order] * signs
    reducer = untrained()
    expected = permutation.T @ reducer(basis) @ permutation
    assert torch.equal(reducer(basis @ permutation.double()), expected)


@given(st.lists(st.floats(-1e3, 1e3, allow_nan=False), min_size=9, max_size=9))
@settings(max_examples=20)
def test_lll_is_exact_on_any_numbers(entries: list[float]) -> None:
    """The reduced basis meets the definition: projections of 1/2 at most, and Lovasz' condition."""
    basis = torch.tensor(entries, dtype=torch.float64).reshape(3, 3) + 2e3 * torch.eye(3, dtype=torch.float64)
    change = Lll()(basis[None])[0]
    assert abs(integer_determinant(change)) == 1
    triangle = torch.linalg.qr(basis @ change.double()).R
    lengths = torch.diagonal(triangle)
    projections = triangle / lengths[:, None]
    assert float(projections.triu(1).abs().max()) <= 0.5 + 1e-6
    beside = torch.diagonal(projections, offset=1).square()
    assert bool(((lengths[1:] / lengths[:-1]).square() + beside >= 0.99 - 1e-6).all())
