"""Irreps, their multiplicities and the freedom of equivariant matrices are those that escnn finds."""

import pytest
import torch

from cryoeq.equivariance import GROUP_NAMES, plane_group
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


# For d16 escnn solves for all Clebsch-Gordan coefficients, in a minute.
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "d16")) for name in FINITE])
def test_blocks_have_as_many_coefficients_as_escnn_finds(name: str) -> None:
    group = plane_group(name)
    fields: list[Fields] = [((count, "hidden"),) for count in COUNTS]
    shape = [count * group.dim("hidden") for count in reversed(COUNTS)]
    blocks = irrep_blocks(group, torch.zeros(*shape, dtype=torch.float64), *fields)
    space = escnn.gspaces.no_base_space(space_of(name).fibergroup)
    regular = space.regular_repr
    types = [escnn.nn.FieldType(space, count * [regular]) for count in COUNTS]
    layer = escnn.nn.Linear(*types, bias=False)
    assert sum(block.coefficients for block in blocks) == layer.basisexpansion.dimension()
