"""Laws of the steerable layers, apart from any network."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cryoeq.equivariance import GROUP_NAMES, FieldActivation, FieldKind, SteerableConv, plane_group, steerable_kernels
from cryoeq.equivariance.groups import permute_pixels
from cryoeq.equivariance.nonlinearity import _norm_relu

VISIBLE: tuple[FieldKind, ...] = ("scalar", "vector", "determinant")
"""Kinds of fields whose action can be written down."""


def act(g: Tensor, maps: Tensor, kind: FieldKind) -> Tensor:
    """The transformed map of fields: pixels move, components mix; channels are (component, field)."""
    moved = permute_pixels(maps, g)
    if kind == "scalar":
        return moved
    if kind == "determinant":
        return moved * torch.linalg.det(g).to(maps)
    return torch.einsum("ab,nbfhw->nafhw", g.to(maps), moved.unflatten(1, (2, -1))).flatten(1, 2)


@pytest.mark.parametrize("name", GROUP_NAMES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("in_kind", VISIBLE)
def test_two_layers_turn_with_their_input(
    name: str, stride: int, in_kind: FieldKind, generator: torch.Generator
) -> None:
    group = plane_group(name)
    up = SteerableConv(group, (2, in_kind), (3, "hidden"), 3, stride=stride)
    activation = FieldActivation(group, 3).eval()
    maps = torch.randn(2, 2 * group.dim(in_kind), 9, 9, generator=generator)
    hidden = activation(up(maps)).detach()
    turned = [(g, activation(up(act(g, maps, in_kind))).detach()) for g in group.elements()]
    for out_kind in VISIBLE:
        down = SteerableConv(group, (3, "hidden"), (2, out_kind), 3, bias=True)
        if down.bias is not None:
            nn.init.normal_(down.bias)
        straight = down(hidden).detach()
        for g, maps_inside in turned:
            expected = act(g, straight, out_kind)
            torch.testing.assert_close(down(maps_inside), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_a_mirror_is_not_free_for_a_group_without_mirrors(generator: torch.Generator) -> None:
    group = plane_group("c4")
    conv = SteerableConv(group, (1, "scalar"), (1, "vector"), 5)
    images = torch.randn(4, 1, 9, 9, generator=generator)
    mirror = torch.diag(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    error = (conv(act(mirror, images, "scalar")) - act(mirror, conv(images), "vector")).norm() / conv(images).norm()
    assert error > 0.1


def test_stride_two_is_refused_on_an_even_side() -> None:
    conv = SteerableConv(plane_group("d4"), (1, "scalar"), (1, "hidden"), 3, stride=2)
    with pytest.raises(ValueError, match="a map of 16 px under stride 2 loses equivariance: its side must be odd"):
        conv(torch.zeros(1, 1, 16, 16))


def test_even_filters_are_refused() -> None:
    with pytest.raises(ValueError, match="kernel size 4 is even"):
        SteerableConv(plane_group("d4"), (1, "scalar"), (1, "hidden"), 4)


def test_unknown_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown group 'd3'"):
        plane_group("d3")


@pytest.mark.parametrize(
    ("name", "size", "kernels", "dim"),
    [("d1", 3, 12, 2), ("c4", 3, 24, 4), ("d4", 3, 48, 8), ("d4", 5, 88, 8), ("so2", 3, 24, 5), ("o2", 3, 48, 10)],
)
def test_number_of_kernels(name: str, size: int, kernels: int, dim: int) -> None:
    """Frozen, because a change of the basis would change every checkpoint."""
    basis = steerable_kernels(plane_group(name), "hidden", "hidden", size)
    assert basis.shape == (kernels, dim, dim, size, size)
    assert torch.linalg.matrix_rank(basis.flatten(1).double(), rtol=1e-5) == kernels


@pytest.mark.parametrize(
    ("name", "in_kind", "out_kind", "size", "expected"),
    [
        ("d4", "hidden", "hidden", 3, 8.390112),
        ("d4", "hidden", "vector", 5, 24.347352),
        ("o2", "scalar", "hidden", 3, 6.992610),
        ("c8", "hidden", "vector", 7, -19.065962),
    ],
)
def test_every_coefficient_of_a_kernel_keeps_its_sign(
    name: str, in_kind: FieldKind, out_kind: FieldKind, size: int, expected: float
) -> None:
    """Frozen: a checkpoint holds coefficients of these kernels, on whatever machine it was trained."""
    kernels = steerable_kernels(plane_group(name), in_kind, out_kind, size).double()
    probe = torch.arange(1, kernels[0].numel() + 1, dtype=torch.float64).sqrt().sin()
    order = torch.arange(1, len(kernels) + 1, dtype=torch.float64).sqrt()
    assert float((kernels.flatten(1) @ probe) @ order) == pytest.approx(expected, rel=1e-5)


def test_coefficients_of_version_0_1_are_refused_where_signs_have_changed() -> None:
    for name, size, is_refused in (("d4", 3, True), ("d4", 1, False), ("o2", 1, True), ("c8", 3, False)):
        conv = SteerableConv(plane_group(name), (1, "hidden"), (1, "hidden"), size)
        state = conv.state_dict()
        conv.load_state_dict(state)
        state._metadata["basis"] = {"version": 1}  # type: ignore[attr-defined]
        if is_refused:
            with pytest.raises(RuntimeError, match=r"coefficients of version 0\.1, whose kernels had other signs"):
                conv.load_state_dict(state)
        else:
            conv.load_state_dict(state)


def test_the_version_of_a_basis_survives_a_file(tmp_path: Path) -> None:
    conv = SteerableConv(plane_group("o2"), (1, "hidden"), (1, "hidden"), 3)
    torch.save({"encoder": conv.state_dict()}, tmp_path / "encoder.pt")
    conv.load_state_dict(torch.load(tmp_path / "encoder.pt", weights_only=True)["encoder"])


@pytest.mark.parametrize(
    ("name", "order"), [("c1", 1), ("c2", 2), ("c8", 4), ("d1", 2), ("d4", 8), ("d8", 8), ("o2", 8)]
)
def test_grid_exact_elements_are_signed_permutations(name: str, order: int) -> None:
    elements = plane_group(name).elements()
    assert len(elements) == order == len({tuple(g.flatten().tolist()) for g in elements})
    torch.testing.assert_close(elements.abs().sum(1), torch.ones(order, 2, dtype=torch.float64), atol=0, rtol=0)


@pytest.mark.parametrize("name", ["d4", "so2", "c1"])
def test_new_layers_keep_the_variance_of_white_noise(name: str, generator: torch.Generator) -> None:
    group = plane_group(name)
    torch.manual_seed(0)
    conv = SteerableConv(group, (8, "hidden"), (64, "hidden"), 3)
    maps = torch.randn(8, 8 * group.dim("hidden"), 9, 9, generator=generator)
    assert float(conv(maps)[:, :, 1:-1, 1:-1].detach().var()) == pytest.approx(1, abs=0.15)


def test_norm_and_relu_have_the_gradient_of_their_definition(generator: torch.Generator) -> None:
    x = torch.randn(7, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(2, generator=generator, dtype=torch.float64).add(0.5).requires_grad_()
    bias = torch.randn(2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *inputs: _norm_relu(*inputs, 1e-5)[0], (x, weight, bias))


def test_norm_of_regular_fields_is_that_of_torch_over_group_and_pixels(generator: torch.Generator) -> None:
    group = plane_group("d4")
    activation = FieldActivation(group, 3)
    reference = nn.BatchNorm3d(3)
    for _ in range(3):
        maps = 2 + 3 * torch.randn(4, 24, 5, 5, generator=generator)
        by_field = maps.unflatten(1, (8, 3)).transpose(1, 2)
        expected = reference(by_field).relu().transpose(1, 2).flatten(1, 2)
        torch.testing.assert_close(activation(maps), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(activation.running_mean, reference.running_mean)
    # torch keeps the unbiased variance, of 800 values here.
    torch.testing.assert_close(activation.running_variance, reference.running_var, atol=0, rtol=2e-3)


@pytest.mark.parametrize("name", ["so2", "o2"])
def test_fourier_fields_survive_sampling(name: str, generator: torch.Generator) -> None:
    """Analysis undoes synthesis, and a uniform grid of the group makes it an isometry up to scale."""
    activation = FieldActivation(plane_group(name), 2)
    assert activation.synthesis is not None
    assert activation.analysis is not None
    channels = activation.synthesis.shape[1]
    torch.testing.assert_close(activation.analysis @ activation.synthesis, torch.eye(channels), atol=1e-5, rtol=0)
    gram = activation.synthesis.T @ activation.synthesis
    torch.testing.assert_close(gram, torch.eye(channels) * gram[0, 0], atol=1e-4, rtol=0)
    assert math.isclose(float(gram[0, 0]), activation.synthesis.shape[0] / 2, rel_tol=1e-4)
