"""What images show: shares are kept, distances and contrasts are those that are said."""

import math

import pytest
import torch

from cryoeq.simulation.contents import (
    NEIGHBOUR_DISTANCE,
    OVERLAP_DISTANCE,
    Contents,
    JunkKind,
    StackShares,
    draw_contents,
)


@pytest.fixture
def contents(generator: torch.Generator) -> Contents:
    return draw_contents(2000, StackShares((0.5, 0.3, 0.2), 0.2, 0.15, 0.3), "uniform", 64, generator)


def test_shares_are_kept_as_exactly_as_whole_images_allow(contents: Contents) -> None:
    assert torch.bincount(contents.junk).tolist() == [1600, 100, 100, 100, 100]
    assert torch.bincount(contents.model_index).tolist() == [1000, 600, 400]
    assert int(contents.has_neighbour.sum()) == 300


@pytest.mark.parametrize(("count", "junk", "expected"), [(7, 0.5, 3), (3, 0.0, 0), (10, 0.9, 9)])
def test_shares_of_a_few_images_are_rounded(count: int, junk: float, expected: int, generator: torch.Generator) -> None:
    contents = draw_contents(count, StackShares((1.0,), junk), "uniform", 32, generator)
    assert abs(int((contents.junk > 0).sum()) - expected) <= 1
    assert len(contents) == count


def test_an_image_with_a_neighbour_is_no_junk_and_junk_is_of_no_class(contents: Contents) -> None:
    assert bool(contents.is_particle[contents.has_neighbour].all())
    assert bool(((contents.class_number == 0) == (contents.junk != JunkKind.NONE)).all())
    particles = contents.is_particle
    assert torch.equal(contents.class_number[particles], contents.model_index[particles] + 1)


def test_classes_and_junk_are_in_no_order_and_independent(contents: Contents) -> None:
    first, second = contents.model_index[:1000].double().mean(), contents.model_index[1000:].double().mean()
    assert abs(float(first - second)) < 0.15
    expected = 0.2 * 0.5 * 2000
    assert abs(int(((contents.junk > 0) & (contents.model_index == 0)).sum()) - expected) < 4 * math.sqrt(expected)


def test_a_second_particle_overlaps_or_reaches_in(contents: Contents) -> None:
    distance = contents.second_offsets_px.norm(dim=1) / 64
    for chosen, (nearest, farthest) in (
        (contents.has_neighbour, NEIGHBOUR_DISTANCE),
        (contents.junk == JunkKind.OVERLAP, OVERLAP_DISTANCE),
    ):
        assert nearest <= float(distance[chosen].min()) < float(distance[chosen].max()) <= farthest
        assert contents.second_offsets_px[chosen].mean(0).norm() / 64 < 0.1
    assert OVERLAP_DISTANCE[1] <= 0.25
    assert NEIGHBOUR_DISTANCE[0] >= 0.4


def test_contrast_has_mean_one_and_the_asked_deviation(generator: torch.Generator) -> None:
    scale = draw_contents(40_000, StackShares(scale_sd=0.3), "uniform", 32, generator).scale
    assert float(scale.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(scale.std()) == pytest.approx(0.3, rel=0.03)
    assert float(scale.min()) > 0
    same = draw_contents(10, StackShares(), "uniform", 32, generator).scale
    assert torch.equal(same, torch.ones(10))
