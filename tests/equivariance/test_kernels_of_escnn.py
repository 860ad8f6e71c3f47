"""Groups, fields and kernels are those of escnn, which solves for its Clebsch-Gordan coefficients numerically."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cryoeq.equivariance import (
    GROUP_NAMES,
    FieldKind,
    Fourier,
    Irrep,
    Irreps,
    Product,
    Quotient,
    Restricted,
    plane_group,
    steerable_kernels,
)
from cryoeq.equivariance.fields import representation
from cryoeq.equivariance.irreps import elements, irreps_up_to, rotation_order
from escnn_oracle import FLIP, element_of, escnn, kernels_of, space_of

CYCLIC = ("c1", "c2", "c4", "c8", "c16", "so2")
CONTINUOUS = ("so2", "o2")
SLOW = ("d8", "d16", "o2")
"""Groups for which escnn solves for seconds to minutes."""


def key_of(name: str, irrep: Irrep) -> tuple[int, ...]:
    """escnn's name of an irrep."""
    if name in ("c1", "d1"):
        return (int(irrep.is_odd),)
    if name in CYCLIC:
        return (irrep.frequency,)
    is_paired = 2 * irrep.frequency in (0, rotation_order(name))
    return (int(irrep.is_odd or not is_paired), irrep.frequency)


def subgroup_of(name: str, subgroup: str) -> Any:
    """escnn's name of a subgroup."""
    order = rotation_order(subgroup) or -1
    if name == "d1":
        return 2 if subgroup == "d1" else 1
    if name in CYCLIC:
        return order
    axis = 0.0 if name == "o2" else 0
    return (axis if subgroup[0] in "do" else None, order)


def field_of(name: str, kind: FieldKind) -> Any:
    """A field as escnn's object."""
    group = space_of(name).fibergroup
    match kind:
        case Restricted():
            whole = field_of(kind.group, kind.kind)
            return whole if kind.group == name else whole.restrict(subgroup_of(kind.group, name))
        case Product():
            return field_of(name, kind.irrep).tensor(field_of(name, kind.kind))
        case "scalar" | "determinant" | Irrep() | Irreps():
            return escnn.group.directsum([group.irrep(*key_of(name, irrep)) for irrep in irreps_of(name, kind)])
        case "vector":
            return space_of(name).basespace_action
        case _:
            return functions_of(name, kind)


def irreps_of(name: str, kind: FieldKind) -> list[Irrep]:
    if isinstance(kind, Irreps):
        return irreps_up_to(name, kind.frequency)
    return [kind if isinstance(kind, Irrep) else Irrep(0, is_odd=kind == "determinant" and name not in CYCLIC)]


def functions_of(name: str, kind: FieldKind) -> Any:
    """Functions on the group or on cosets as escnn's object."""
    group = space_of(name).fibergroup
    if isinstance(kind, Quotient):
        return group.quotient_representation(subgroup_of(name, kind.subgroup))
    if kind == "regular" or (kind == "hidden" and name not in CONTINUOUS):
        return group.regular_representation
    band = kind if isinstance(kind, Fourier) else Fourier(2)
    irreps = [key_of(name, irrep) for irrep in irreps_up_to(name, band.frequency)]
    if band.subgroup is None:
        return group.spectral_regular_representation(*irreps)
    return group.spectral_quotient_representation(subgroup_of(name, band.subgroup), *irreps)


def flip_of(kind: FieldKind, size: int) -> np.ndarray:
    """The change from (x, y) with y upwards to y downwards, where a field holds vectors."""
    holds_vectors = kind == "vector" or (isinstance(kind, Restricted | Product) and kind.kind == "vector")
    return np.kron(np.eye(size // 2), FLIP) if holds_vectors else np.eye(size)


def kinds_of(name: str) -> list[FieldKind]:
    kinds: list[FieldKind] = [
        "scalar", "hidden", "vector", "determinant", Irreps(1), Irreps(2), Fourier(1), Fourier(2),
        Product(Irrep(0), "vector"), Product(Irrep(1), "vector"), Product(Irrep(1), "hidden"),
    ]  # fmt: skip
    if name not in ("so2", "o2", "c1", "d1"):
        kinds += ["regular", Quotient("c2")]
    if name[0] == "d" or name == "o2":
        kinds += [Fourier(2, "d1"), *([Quotient("d1")] if name not in ("d1", "o2") else [])]
    kinds += [Restricted("o2", "hidden"), Restricted("o2", "vector"), Restricted("o2", Fourier(3, "d1"))]
    if name in ("c4", "d1", "d2"):
        kinds += [Restricted("d4", "hidden"), Restricted("d8", Irrep(3)), Restricted("d4", Irrep(2, is_odd=True))]
    return kinds


@pytest.mark.parametrize("name", [name for name in GROUP_NAMES if name != "d16"])
def test_every_field_is_that_of_escnn(name: str) -> None:
    """The same matrices, irreps in the same order, and the same components of them."""
    for kind in kinds_of(name):
        ours, theirs = representation(name, kind), field_of(name, kind)
        flip = flip_of(kind, ours.size)
        for g in elements(name):
            np.testing.assert_allclose(ours(g), flip @ theirs(element_of(name, g)) @ flip, atol=1e-9)
        assert [key_of(name, irrep) for irrep in ours.irreps] == list(theirs.irreps), kind
        if not isinstance(kind, Product):  # signs of Clebsch-Gordan coefficients are a matter of choice
            np.testing.assert_allclose(ours.change, flip @ theirs.change_of_basis, atol=1e-9, err_msg=str(kind))


PAIRS: tuple[tuple[FieldKind, FieldKind], ...] = (
    ("scalar", "hidden"),
    ("hidden", "scalar"),
    ("hidden", "hidden"),
    ("hidden", "vector"),
    ("vector", Irreps(2)),
    (Irreps(1), "determinant"),
    (Fourier(1), "scalar"),
    ("hidden", Fourier(2)),
    ("scalar", Product(Irrep(1), "vector")),
    (Restricted("o2", Fourier(2, "d1")), "hidden"),
)


def compared(name: str, in_kind: FieldKind, out_kind: FieldKind, size: int) -> tuple[Tensor, Tensor]:
    """Our kernels and escnn's, as rows of one length."""
    group = plane_group(name)
    options: dict[str, Any] = {}
    if not group.is_grid_exact and size >= 7:
        options = {"rings": [float(radius) for radius in range(size // 2)], "sigma": 1.0, "frequencies_cutoff": 1.0}
    fields = [field_of(name, kind) for kind in (in_kind, out_kind)]
    theirs = kernels_of(name, *fields, size, **options).double()
    flips = [torch.from_numpy(flip_of(k, f.size)) for k, f in zip((in_kind, out_kind), fields, strict=True)]
    theirs = torch.einsum("ab,kbchw,cd->kadhw", flips[1], theirs, flips[0]).flatten(1)
    ours = steerable_kernels(group, in_kind, out_kind, size).double().flatten(1)
    length = fields[1].size ** 0.5
    return ours, theirs / theirs.norm(dim=1, keepdim=True) * length


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in GROUP_NAMES if name != "d16"]
)
def test_kernels_are_those_of_escnn(name: str, pair: tuple[FieldKind, FieldKind], size: int) -> None:
    """One by one and in the same order; the sign of some is that of escnn's numerical solver."""
    ours, theirs = compared(name, *pair, size)
    assert ours.shape == theirs.shape
    signs = (ours * theirs).sum(1, keepdim=True).sign()
    torch.testing.assert_close(ours * signs, theirs, atol=2e-5, rtol=0)
    if name in (*CYCLIC, "d1", "d2"):
        assert bool((signs > 0).all()), "where escnn's solution is written out, its signs are ours"


@pytest.mark.parametrize("size", [7, 9, 15])
@pytest.mark.parametrize("name", ["c4", "d2", "c8", "so2", pytest.param("o2", marks=pytest.mark.slow)])
def test_large_kernels_are_those_of_escnn(name: str, size: int) -> None:
    ours, theirs = compared(name, "scalar", "hidden", size)
    assert ours.shape == theirs.shape
    signs = (ours * theirs).sum(1, keepdim=True).sign()
    torch.testing.assert_close(ours * signs, theirs, atol=2e-5, rtol=0)
