"""The automatic mask on maps whose particle is known, and what is wrong with a mask."""

import math

import pytest
import torch
from torch import Tensor

from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError
from cryoeq.evaluation.masks import find_particle, largest_at_the_box_edge, spherical_mask, steepest_step


def distances_px(n: int, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Tensor:
    k = [torch.arange(n) - n // 2 - shift for shift in centre]
    return (k[2][:, None, None] ** 2 + k[1][:, None] ** 2 + k[0] ** 2).sqrt()


def ball(n: int, radius_px: float, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Tensor:
    return ((radius_px + 1 - distances_px(n, centre)) / 2).clamp(0, 1)


@pytest.mark.parametrize(("n", "pixel_size"), [(48, 4.0), (47, 4.0), (96, 1.5)])
def test_the_mask_surrounds_the_largest_region_at_the_asked_distances(
    n: int, pixel_size: float, generator: torch.Generator
) -> None:
    particle = (4.0, -3.0, 2.0)
    crumb = (-n / 3, n / 3, -n / 3)
    radius = n / 6
    values = 3 * ball(n, radius, particle) + 3 * ball(n, 2.5, crumb)
    values += 0.3 * torch.randn(n, n, n, generator=generator)
    region = find_particle(Volume(values, pixel_size), low_pass_angstrom=15.0)
    assert 0.5 < region.threshold < 2.5
    extension, edge = 12.0, 24.0
    mask = region.mask(extension, edge)
    assert mask.pixel_size_angstrom == pixel_size
    depths = (distances_px(n, particle) - radius) * pixel_size
    slack = 6.0  # the surface of a ball filtered to 15 Angstrom and thresholded
    assert float(mask.values[depths < extension - slack].min()) == 1
    assert float(mask.values[depths > extension + edge + slack].max()) == 0
    expected = 0.5 + 0.5 * torch.cos(math.pi * ((depths - extension) / edge).clamp(0, 1))
    assert float((mask.values - expected).abs().mean()) < 0.02
    assert steepest_step(mask) < 0.5


def test_a_fine_map_is_searched_on_a_coarse_grid() -> None:
    region = find_particle(Volume(ball(96, 20), 1.0), low_pass_angstrom=15.0)
    assert len(region.distances_angstrom) == 26
    assert tuple(region.mask(5.0, 5.0).values.shape) == (96, 96, 96)


@pytest.mark.parametrize("radius", [8.0, 12.0])
def test_the_diameter_is_that_of_the_particle_wherever_it_lies_and_without_specks(radius: float) -> None:
    n, centre = 48, (4.0, -3.0, 2.0)
    values = 3 * ball(n, radius, centre)
    whisker = values.clone()
    whisker[n // 2 + 2, n // 2 - 3, :] = 3.0  # a line of noise through the box, one voxel thick
    for volume in (values, whisker):
        region = find_particle(Volume(volume, 4.0), low_pass_angstrom=15.0, threshold=1.5)
        assert region.diameter_angstrom == pytest.approx(8 * radius, rel=0.12)


def test_a_threshold_can_be_given_but_not_above_everything() -> None:
    volume = Volume(ball(32, 8), 4.0)
    low, high = (float(find_particle(volume, 15.0, threshold).mask(0.1, 0.1).values.sum()) for threshold in (0.2, 0.8))
    assert low > high > 0
    with pytest.raises(MapFileError, match=r"no voxel is above the mask threshold 9.*--mask-threshold"):
        find_particle(volume, 15.0, 9.0)


def test_a_sphere_has_its_edge_outside_its_diameter() -> None:
    mask = spherical_mask(32, 2.0, 8.0, diameter_angstrom=24.0)
    radii = distances_px(32) * 2
    assert float(mask.values[radii <= 12].min()) == 1
    assert float(mask.values[radii >= 20].max()) == 0
    assert float(mask.values[16, 16, 24]) == pytest.approx(0.5)
    largest = spherical_mask(32, 2.0, 8.0)
    assert largest_at_the_box_edge(largest) < 1e-6
    assert float(largest.values[16, 16, 16 + 11]) == 1


def test_what_is_wrong_with_a_mask_is_seen() -> None:
    soft = spherical_mask(32, 1.0, 6.0, 12.0)
    assert steepest_step(soft) == pytest.approx(math.pi / 12, rel=0.05)
    assert steepest_step(Volume((distances_px(32) < 8).float(), 1.0)) == 1
    cut = Volume(soft.values.roll(12, 1), 1.0)
    assert largest_at_the_box_edge(cut) == pytest.approx(1)
    assert largest_at_the_box_edge(soft) == 0
