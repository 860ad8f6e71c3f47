"""A network in 8-bit integers: exactly equivariant, and nearly the numbers of the original."""

import pytest
import torch
import torch.nn.functional as F

from cryoeq.equivariance import DepthwiseConv, SteerableConv, plane_group
from cryoeq.equivariance.actions import transform_images
from cryoeq.equivariance.orbits import filters_of_orbit
from cryoeq.geometry.so3 import random_rotations
from cryoeq.models.export.exported_network import ExportedConv, export_network
from cryoeq.models.export.quantized_network import (
    QuantizationParameters,
    QuantizedConv,
    integer_filters,
    quantize_network,
)
from cryoeq.models.pose_encoder import TrunkKind
from cryoeq.models.view_network import ViewNetwork

VIEWS = random_rotations(12, torch.Generator().manual_seed(5))[:, 2]
TRUNKS: tuple[TrunkKind, ...] = ("conv", "dense", "mobilenet")


def with_running_statistics(group: str, trunk: TrunkKind, images: torch.Tensor) -> ViewNetwork:
    """In evaluation mode, with running statistics of the images."""
    torch.manual_seed(0)
    channels = (128,) if trunk == "dense" else (16, 32, 32, 128)
    network = ViewNetwork(group, 16, VIEWS, channels, trunk=trunk, low_passes=True)
    with torch.no_grad():
        for _ in range(12):
            network(images)
    return network.eval()


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("group", ["c4", "d1", "d4"])
@torch.no_grad()
def test_integers_rotate_exactly_with_the_image(group: str, trunk: TrunkKind, generator: torch.Generator) -> None:
    images = torch.randn(32, 16, 16, generator=generator)
    network = with_running_statistics(group, trunk, images)
    levels, layers, *_ = quantize_network(network, images).network.children()
    order = network.group.dim("hidden")
    before = layers(levels(images)).unflatten(1, (order, -1))
    assert before.dtype == torch.uint8
    assert len(before.unique()) > 50
    for g in network.group.elements():
        after = layers(levels(transform_images(images, g))).unflatten(1, (order, -1))
        moved = network.group.action("hidden", g).argmax(0)
        torch.testing.assert_close(after[:, moved], before, atol=0, rtol=0)


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("group", ["c1", "d4"])
@torch.no_grad()
def test_numbers_are_nearly_those_of_the_network(group: str, trunk: TrunkKind, generator: torch.Generator) -> None:
    images = torch.randn(128, 16, 16, generator=generator)
    network = with_running_statistics(group, trunk, images)
    whole = export_network(network).network(images)
    error = quantize_network(network, images).network(images) - whole
    assert error.norm() < 0.25 * (whole - whole.mean(0)).norm()


@pytest.mark.parametrize("group", ["c1", "c4", "d1", "d2", "d4"])
def test_the_filters_of_an_orbit_are_one_filter_rotated(group: str) -> None:
    g, order = plane_group(group), plane_group(group).dim("hidden")
    layers = (
        (SteerableConv(g, (2, "scalar"), (3, "hidden"), 5), 1),
        (SteerableConv(g, (2, "hidden"), (3, "hidden"), 3), order),
        (DepthwiseConv(g, 3, 3), 1),
    )
    for layer, in_dim in layers:
        filters = layer.filters().detach()
        made = filters_of_orbit(g, filters[: len(filters) // order], in_dim)
        torch.testing.assert_close(made, filters, atol=1e-6, rtol=0)
        whole, scales = integer_filters(g, filters, in_dim)
        assert whole.abs().max() == 63
        assert ((whole * scales[:, None, None, None] - filters).abs() <= 0.51 * scales[:, None, None, None]).all()


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize(("fields", "is_whole"), [(0, False), (64, False), (0, True)])
def test_integer_kernels_lose_no_bit(fields: int, is_whole: bool, *, largest: bool, generator: torch.Generator) -> None:
    """On processors without an int8 dot product two products share 16 bits; the largest must fit."""
    shape = (64, 1 if fields else 64, 3, 3)
    weights = torch.randint(-63, 64, shape, generator=generator).to(torch.int8)
    maps = torch.randint(0, 256, (2, 64, 3 if is_whole else 9, 3 if is_whole else 9), generator=generator)
    if largest:
        weights, maps = torch.full_like(weights, 63), torch.full_like(maps, 255)
    expected = F.conv2d(maps.double(), weights.double(), padding=0 if is_whole else 1, groups=fields or 1)
    conv = ExportedConv(weights.float(), torch.zeros(64), fields=fields, is_whole=is_whole)
    after = QuantizationParameters(float(expected.abs().max()) / 127, 128)
    scales = torch.ones(64)
    quantized = QuantizedConv(conv, weights, scales, before=QuantizationParameters(1.0, 0), after=after)
    found = quantized(maps.to(torch.uint8).contiguous(memory_format=torch.channels_last))
    whole = (expected / after.scale).round() + after.zero_point
    assert (found.double() - whole).abs().max() <= 1  # at a tie
    assert (found.double() != whole).double().mean() < 0.01


def test_groups_that_the_grid_does_not_serve_are_refused() -> None:
    with pytest.raises(ValueError, match="so2 does not map the pixel grid to itself"):
        quantize_network(ViewNetwork("so2", 16, VIEWS, (64,)).eval(), torch.zeros(1, 16, 16))
