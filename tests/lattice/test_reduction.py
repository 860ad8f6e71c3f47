"""Lattices: cells, defects, and the classical reductions against what is known of them."""

import math
from fractions import Fraction

import gemmi
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoeq.errors import ConfigError
from cryoeq.lattice.niggli import Niggli
from cryoeq.lattice.reduction import LagrangeGauss, Lll, integer_determinant, log_orthogonality_defect, transform_basis
from cryoeq.lattice.train_neural_reducer import random_bases
from cryoeq.lattice.unit_cell import basis_of_cell, cell_of_basis

RIGHT = math.pi / 2


@pytest.mark.parametrize(
    "cell", [(82.3, 61.0, 1.9), (30.0, 30.0, RIGHT), (50.0, 60.0, 70.0, 1.5, 1.7, 1.2), (5.0, 5.0, 9.0, 2.0, 2.0, 2.0)]
)
def test_a_cell_survives_its_basis(cell: tuple[float, ...]) -> None:
    lengths, angles_rad = cell_of_basis(basis_of_cell(cell))
    assert torch.cat([lengths, angles_rad]).tolist() == pytest.approx(cell, rel=1e-14)


def test_a_basis_is_that_of_gemmi() -> None:
    cell = (50.0, 60.0, 70.0, 1.5, 1.7, 1.2)
    expected = gemmi.UnitCell(*cell[:3], *map(math.degrees, cell[3:])).orth.mat.tolist()
    torch.testing.assert_close(basis_of_cell(cell), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("cell", [(1.0, 2.0, 0.0), (1.0, -2.0, 1.0), (1.0, 1.0, 1.0, 0.5, 0.5, 1.2)])
def test_an_impossible_cell_is_refused(cell: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="flat or impossible"):
        basis_of_cell(cell)


def test_the_defect_of_known_bases() -> None:
    basis = torch.tensor([[1.0, 7.0], [0.0, 1.0]], dtype=torch.float64)
    assert float(log_orthogonality_defect(basis)) == pytest.approx(math.log(math.sqrt(50)))
    assert float(log_orthogonality_defect(torch.eye(4)[:, :3] * 5)) == pytest.approx(0.0, abs=1e-7)


@given(st.lists(st.integers(-9, 9), min_size=9, max_size=9))
@settings(max_examples=20)
def test_the_determinant_is_exact(entries: list[int]) -> None:
    matrix = torch.tensor(entries).reshape(3, 3)
    assert integer_determinant(matrix) == round(float(torch.linalg.det(matrix.double())))


def test_the_determinant_of_large_numbers_is_exact() -> None:
    """A shear by 2^40 and back: products beyond 2^63, where floating point and int64 both fail."""
    first = torch.tensor([[1, 2**40, 5], [0, 1, -(2**39)], [0, 0, 1]])
    second = torch.tensor([[1, 0, 0], [3, 1, 0], [7, 2, 1]])
    assert integer_determinant(first @ second) == 1
    assert integer_determinant((first @ second)[[1, 0, 2]]) == -1
    assert integer_determinant(torch.tensor([[2**31, 0], [0, 2**31]])) == 2**62
    assert integer_determinant(torch.tensor([[0, 3], [0, 5]])) == 0


def test_lagrange_gauss_finds_the_two_shortest_vectors(generator: torch.Generator) -> None:
    """By trying all combinations up to 40 of a basis that is not too skew."""
    steps = torch.cartesian_prod(torch.arange(-40, 41), torch.arange(-40, 41))
    steps = steps[steps.any(1)].double()
    cells = torch.rand(30, 2, generator=generator).double()
    basis = torch.stack([basis_of_cell((1.0, float(1 + 2 * b), float(0.5 + 2 * gamma))) for b, gamma in cells])
    basis[:, :, 1] += 5 * basis[:, :, 0]
    for one, change in zip(basis, LagrangeGauss()(basis), strict=True):
        lengths = transform_basis(one, change).norm(dim=0)
        all_lengths = (steps @ one.T).norm(dim=1).sort().values
        assert float(lengths[0]) == pytest.approx(float(all_lengths[0]))
        assert float(log_orthogonality_defect(transform_basis(one, change))) <= 0.5 * math.log(4 / 3) + 1e-12
        others = steps[(steps @ one.T).norm(dim=1) < lengths[1] * (1 - 1e-9)] @ one.T
        shortest = transform_basis(one, change)[:, 0]
        parallel = (others[:, 0] * shortest[1] - others[:, 1] * shortest[0]).abs()
        assert bool((parallel < 1e-9).all())  # all that is shorter than b is a multiple of a


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_lll_bases_fulfil_its_definition(n: int, generator: torch.Generator) -> None:
    basis = random_bases(8, n, generator)
    reduced = transform_basis(basis, Lll(Fraction(99, 100))(basis))
    triangle = torch.linalg.qr(reduced).R
    heights = triangle.diagonal(dim1=-2, dim2=-1)
    shares = triangle / heights[..., None]
    off = shares.triu(1)
    assert float(off.abs().max()) <= 0.5 + 1e-9
    squares = heights.square()
    next_to = shares.diagonal(1, -2, -1)
    assert bool((squares[:, 1:] >= (0.99 - next_to.square()) * squares[:, :-1] * (1 - 1e-9)).all())


def test_lll_agrees_with_fplll() -> None:
    """Frozen: fpylll 0.6.4, ``LLL.reduction`` of these rows."""
    rows = torch.tensor(
        [[841, -351, 783, 22, 509], [596, -929, -162, 73, 683], [643, 326, 707, 392, -529],
         [-671, 780, 781, 921, -935], [414, -420, 580, -773, 1]]
    )  # fmt: skip
    reduced = transform_basis(rows.T[None].double(), Lll()(rows.T[None].double()))[0]
    theirs = torch.tensor([600826.0, 1188026.0, 1320011.0, 1118388.0, 1242030.0], dtype=torch.float64)
    # fplll stops where coefficients are below 0.51, so one vector may be a little longer.
    assert 0.97 < float((reduced.square().sum(0).log() - theirs.log()).sum().exp()) <= 1.0


def test_niggli_cells_are_those_of_gemmi(generator: torch.Generator) -> None:
    basis = random_bases(20, 3, generator)
    for one, change in zip(basis, Niggli()(basis), strict=True):
        lengths, angles_rad = cell_of_basis(transform_basis(one, change))
        assert bool((lengths.diff() >= -1e-6 * lengths[1:]).all())  # a <= b <= c
        is_acute = angles_rad < RIGHT + 1e-6
        assert bool(is_acute.all()) or not bool((angles_rad < RIGHT - 1e-6).any())  # type I or type II


def test_niggli_reduces_a_known_cell() -> None:
    """Krivy and Gruber's own example."""
    cell = (
        3.0,
        math.sqrt(27),
        2.0,
        *(math.acos(x) for x in (-5 / 2 / math.sqrt(27) / 2, -4 / 2 / 6, -22 / 2 / 3 / math.sqrt(27))),
    )
    basis = basis_of_cell(cell)[None]
    lengths, angles_rad = cell_of_basis(transform_basis(basis, Niggli()(basis))[0])
    assert lengths.square().tolist() == pytest.approx([4, 9, 9], abs=1e-6)
    assert angles_rad.rad2deg().tolist() == pytest.approx([60, 75.52, 70.53], abs=0.1)
