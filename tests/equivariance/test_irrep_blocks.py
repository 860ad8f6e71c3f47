"""Equivariant matrices fall apart as escnn's representation theory says."""

import pytest
import torch

from cryoeq.equivariance import GROUP_NAMES, SteerableConv, plane_group
from cryoeq.equivariance.irrep_blocks import Fields, irrep_blocks
from escnn_oracle import escnn, space_of

FINITE = [name for name in GROUP_NAMES if name not in ("c1", "so2", "o2")]
COUNTS = (2, 3)


@pytest.mark.parametrize("name", FINITE)
def test_irreps_of_the_regular_representation_agree_with_escnn(name: str) -> None:
    spans = plane_group(name).irrep_spans("hidden")
    order = int(name[1:]) * (2 if name[0] == "d" else 1)
    assert sum(span.basis.shape[1] for span in spans) == order
    theirs = {irrep.name.removeprefix("irrep_"): irrep for irrep in space_of(name).fibergroup.irreps()}
    if name == "d1":  # which escnn takes for c2
        theirs = {"0,0": theirs["0"], "1,0": theirs["1"]}
    for span in spans:
        irrep = theirs.pop(span.irrep)
        assert span.dim == irrep.size
        assert span.constituents == len(irrep.endomorphism_basis())
        assert span.basis.shape[1] // span.dim == irrep.size // span.constituents  # copies in the regular one
        torch.testing.assert_close(span.basis.T @ span.basis, torch.eye(span.basis.shape[1], dtype=torch.float64))
    assert not theirs


def coefficients_of_blocks(name: str) -> int:
    fields: list[Fields] = [((count, "hidden"),) for count in COUNTS]
    group = plane_group(name)
    shape = [count * group.dim("hidden") for count in reversed(COUNTS)]
    blocks = irrep_blocks(group, torch.zeros(*shape, dtype=torch.float64), fields[0], fields[1])
    return sum(block.coefficients for block in blocks)


@pytest.mark.parametrize("name", FINITE)
def test_blocks_have_as_many_coefficients_as_characters_tell(name: str) -> None:
    """The dimension of the equivariant matrices is the inner product of the characters of both representations."""
    group = space_of(name).fibergroup
    characters = [
        sum(group.irrep(*irrep)(g).trace() for irrep in group.regular_representation.irreps) for g in group.elements
    ]
    count = COUNTS[0] * COUNTS[1] * sum(character**2 for character in characters) / group.order()
    assert coefficients_of_blocks(name) == pytest.approx(count, rel=1e-9)


# For d16 escnn solves for all Clebsch-Gordan coefficients, in a minute.
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "d16")) for name in FINITE])
def test_blocks_have_as_many_coefficients_as_escnn_finds(name: str) -> None:
    space = escnn.gspaces.no_base_space(space_of(name).fibergroup)
    regular = space.regular_repr
    types = [escnn.nn.FieldType(space, count * [regular]) for count in COUNTS]
    layer = escnn.nn.Linear(*types, bias=False)
    assert coefficients_of_blocks(name) == layer.basisexpansion.dimension()


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
