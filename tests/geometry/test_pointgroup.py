"""Point groups: sizes, closure, and RELION's axes."""

import math

import pytest
import torch

from cryoeq.errors import ConfigError
from cryoeq.geometry.pointgroup import in_asymmetric_unit, split_over_lattice, symmetry_rotations
from cryoeq.geometry.so3 import random_rotations, rotation_from_vector

ORDERS = {"C1": 1, "C2": 2, "C7": 7, "D1": 2, "D2": 4, "D7": 14, "T": 12, "O": 24, "I": 60, "I1": 60, "I2": 60}

# One rotation of each group that only RELION's choice of axes contains (relion_refine --print_symmetry_ops, 3.1.3).
RELION_ELEMENTS = {
    "D3": [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
    "T": [[-1, 0, 0], [0, 0.33333, 0.94281], [0, 0.94281, -0.33333]],
    "O": [[0, 1, 0], [-1, 0, 0], [0, 0, 1]],
}


def about(axis: tuple[float, float, float], order: int) -> torch.Tensor:
    direction = torch.tensor(axis, dtype=torch.float64)
    return rotation_from_vector(direction / direction.norm() * (2 * math.pi / order))


def holds(group: torch.Tensor, element: torch.Tensor) -> bool:
    return float((group - element).abs().amax((-2, -1)).min()) < 1e-5


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_it_is_a_group_of_rotations(name: str, order: int) -> None:
    group = symmetry_rotations(name)
    assert group.shape == (order, 3, 3)
    torch.testing.assert_close(group[0], torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(torch.linalg.det(group), torch.ones(order, dtype=torch.float64))
    products = (group[:, None] @ group[None]).flatten(0, 1)
    distances = (products[:, None] - group[None]).abs().amax((-2, -1))
    assert float(distances.amin(1).max()) < 1e-12
    assert len(set(distances.argmin(1).tolist())) == order


@pytest.mark.parametrize(("name", "element"), RELION_ELEMENTS.items())
def test_axes_are_those_of_relion(name: str, element: list[list[float]]) -> None:
    assert holds(symmetry_rotations(name), torch.tensor(element, dtype=torch.float64))


def test_axes_of_the_icosahedral_settings() -> None:
    golden = (1 + math.sqrt(5)) / 2
    assert holds(symmetry_rotations("I1"), about((golden, 0, -1), 5))
    assert not holds(symmetry_rotations("I1"), about((1, 0, golden), 5))
    assert holds(symmetry_rotations("I2"), about((1, 0, golden), 5))
    torch.testing.assert_close(symmetry_rotations("I"), symmetry_rotations("I2"))


def test_capitals_do_not_matter() -> None:
    torch.testing.assert_close(symmetry_rotations(" d3 "), symmetry_rotations("D3"))


@pytest.mark.parametrize("name", ["", "C", "C0", "D-2", "C4v", "X", "C100000", "I7"])
def test_unknown_groups_are_named(name: str) -> None:
    with pytest.raises(ConfigError, match=r"is not known.*C1.*--sym"):
        symmetry_rotations(name)


@pytest.mark.parametrize("name", ORDERS)
def test_an_asymmetric_unit_has_one_direction_of_each_orbit_with_its_opposite(name: str) -> None:
    group = symmetry_rotations(name)
    directions = random_rotations(50, torch.Generator().manual_seed(1))[:, 2].double()
    orbits = torch.cat([directions @ group, -directions @ group])
    kept = in_asymmetric_unit(orbits.flatten(0, 1), group).view(len(orbits), -1)
    assert kept.sum(0).tolist() == [2] * len(directions), "one direction and its opposite"


@pytest.mark.parametrize("name", ORDERS)
def test_a_group_is_split_into_lattice_rotations_and_one_of_each_coset(name: str) -> None:
    group = symmetry_rotations(name)
    cosets, on_lattice = split_over_lattice(group)
    products = (cosets[:, None] @ on_lattice).flatten(0, 1)
    assert len(products) == len(group)
    assert all(holds(products, element) for element in group)
    assert set(on_lattice.unique().tolist()) <= {-1.0, 0.0, 1.0}


def test_most_rotations_of_cubic_groups_are_on_the_lattice() -> None:
    sizes = {name: len(split_over_lattice(symmetry_rotations(name))[1]) for name in ("C4", "D2", "O", "I", "C7")}
    assert sizes == {"C4": 4, "D2": 4, "O": 24, "I": 12, "C7": 1}
