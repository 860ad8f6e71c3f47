"""The perceptron on pixel orbits: the same functions as filters as large as the image, and matched filters to begin."""

import pytest
import torch

from cryoeq.equivariance import FullMapConv, SteerablePerceptron, plane_group
from cryoeq.equivariance.actions import transform_images
from cryoeq.equivariance.perceptron import GroupLinear, PixelOrbits

SIZE = 7
GROUPS = ("c1", "c2", "c4", "d1", "d2", "d4")


@pytest.mark.parametrize("name", GROUPS)
def test_orbits_hold_every_pixel_and_keep_the_norm(name: str) -> None:
    orbits = PixelOrbits(plane_group(name).regular_representation(), SIZE).double()
    images = torch.randn(3, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = orbits(images)
    assert values.shape == (len(orbits.pixels), 3, 2 * orbits.count)
    assert set(orbits.pixels.flatten().tolist()) == set(range(SIZE**2))
    torch.testing.assert_close(values.square().sum((0, 2)), images.square().sum((1, 2, 3)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", GROUPS)
def test_turning_the_image_permutes_the_values_of_every_field(name: str) -> None:
    torch.manual_seed(0)
    group = plane_group(name)
    representation = group.regular_representation()
    layer = SteerablePerceptron(group, 1, SIZE, 5).double()
    images = torch.randn(4, SIZE, SIZE, dtype=torch.float64)
    before = layer(images[:, None]).view(4, -1, 5)
    for g in representation.elements:
        layer.train()
        after = layer(transform_images(images, g)[:, None]).view(4, -1, 5)
        # f(g.I)(h) = f(I)(g^-1 h)
        moved = torch.linalg.inv(g) @ representation.elements
        source = [int((representation.elements - one).abs().sum((1, 2)).argmin()) for one in moved]
        torch.testing.assert_close(after, before[:, source], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", GROUPS)
def test_it_has_as_many_weights_as_the_steerable_filters(name: str) -> None:
    group = plane_group(name)
    ours = GroupLinear(group.regular_representation(), 3, 5)
    theirs = FullMapConv(group, (3, "hidden"), (5, "hidden"), 1)
    assert sum(p.numel() for p in ours.parameters()) == theirs.weight.numel()


@pytest.mark.parametrize("name", GROUPS)
def test_the_first_layer_can_begin_as_matched_filters(name: str) -> None:
    torch.manual_seed(0)
    layer = SteerablePerceptron(plane_group(name), 1, SIZE, 4).double()
    templates, images = (torch.randn(count, SIZE, SIZE, dtype=torch.float64) for count in (4, 6))
    layer.init_filters_from(templates[:, None])
    at_identity = layer.layers[0].linear(layer.lift(images[:, None]))[0]
    products = images.flatten(1) @ templates.flatten(1).T
    ratio = at_identity / products
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-6, atol=0)
