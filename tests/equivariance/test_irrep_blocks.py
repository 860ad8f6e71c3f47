"""Equivariant matrices fall apart as representation theory says."""

import pytest
import torch

from cryoeq.equivariance import GROUP_NAMES, SteerableConv, plane_group
from cryoeq.equivariance.irrep_blocks import Fields, irrep_blocks

FINITE = [name for name in GROUP_NAMES if name not in ("c1", "so2", "o2")]
COUNTS = (2, 3)


def coefficients_of_blocks(name: str) -> int:
    fields: list[Fields] = [((count, "hidden"),) for count in COUNTS]
    group = plane_group(name)
    shape = [count * group.dim("hidden") for count in reversed(COUNTS)]
    blocks = irrep_blocks(group, torch.zeros(*shape, dtype=torch.float64), fields[0], fields[1])
    return sum(block.coefficients for block in blocks)


@pytest.mark.parametrize("name", FINITE)
def test_blocks_have_as_many_coefficients_as_characters_tell(name: str) -> None:
    """The dimension of the equivariant matrices is the inner product of the characters of both representations."""
    group = plane_group(name)
    actions = [group.action("hidden", g) for g in group.elements(grid_exact=False)]
    squares = [float(action.trace()) ** 2 for action in actions]
    count = COUNTS[0] * COUNTS[1] * sum(squares) / len(squares)
    assert coefficients_of_blocks(name) == pytest.approx(count, rel=1e-9)


@pytest.mark.parametrize("name", ["c1", *FINITE])
def test_nothing_is_left_outside_the_blocks(name: str) -> None:
    group = plane_group(name)
    torch.manual_seed(0)
    layers = [SteerableConv(group, (4, "hidden"), (3, kind)) for kind in ("vector", "scalar", "hidden")]
    matrix = torch.cat([layer.filters().flatten(1) for layer in layers]).double().detach()
    fields: Fields = ((3, "vector"), (3, "scalar"), (3, "hidden"))
    blocks = irrep_blocks(group, matrix, ((4, "hidden"),), fields)
    squared = sum(block.dim * block.squared_norm for block in blocks)
    assert squared == pytest.approx(float(matrix.square().sum()), rel=1e-6)
    assert max(block.spectral_norm for block in blocks) == pytest.approx(
        float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-6
    )
    parameters = sum(layer.weight.numel() for layer in layers)
    assert sum(block.coefficients for block in blocks) == parameters
