"""Non-uniform filter: fine where the halves agree finely, coarse where they do not, and nothing from noise."""

import math

import pytest
import torch
from torch import Tensor

from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.geometry.map_filter import filter_radially, low_pass_gains
from cryoeq.maps.nonuniform_filter import MAX_GAIN, filter_nonuniformly, noise_gain

N, PIXEL = 48, 3.0


def white(seed: int) -> Tensor:
    return torch.randn(N, N, N, generator=torch.Generator().manual_seed(seed))


def radii_of(centre: tuple[float, float, float]) -> Tensor:
    axes = torch.meshgrid(*(torch.arange(N) - N // 2 - shift for shift in centre), indexing="ij")
    return sum(axis.square() for axis in axes).sqrt()


@pytest.fixture(scope="module")
def truth() -> Tensor:
    """A well resolved ball at one side, a blurred one at the other, nothing elsewhere."""
    sharp = filter_radially(white(1), low_pass_gains(N, 16)) * (radii_of((0, 0, -10)) < 9)
    blurred = filter_radially(white(2), low_pass_gains(N, 5)) * (radii_of((0, 0, 10)) < 9)
    return 2 * sharp / sharp.std() + 2 * blurred / blurred.std()


def halves_of(signal: Tensor, noise: float) -> HalfMaps:
    return HalfMaps(*(Volume(signal + noise * white(seed), PIXEL) for seed in (3, 4)))


def test_the_cutoff_follows_the_local_resolution(truth: Tensor) -> None:
    found = filter_nonuniformly(halves_of(truth, 3.0), 9.0).cutoff_angstrom
    sharp, blurred, solvent = (
        float(found[region].median())
        for region in (radii_of((0, 0, -10)) < 5, radii_of((0, 0, 10)) < 5, radii_of((0, 0, 0)) > 22)
    )
    assert sharp < 12
    assert sharp < 0.9 * blurred
    assert blurred <= solvent * 1.1


def test_filtered_halves_are_nearer_to_the_truth_than_by_any_one_cutoff(truth: Tensor) -> None:
    halves = halves_of(truth, 3.0)
    found = filter_nonuniformly(halves, 9.0).halves.first.values
    errors = [
        float((filter_radially(halves.first.values, low_pass_gains(N, shell)) - truth).square().mean())
        for shell in range(3, 25)
    ]
    assert float((found - truth).square().mean()) < 0.9 * min(errors)


def test_without_noise_nothing_is_taken_away(truth: Tensor) -> None:
    halves = halves_of(truth, 0.0)
    found = filter_nonuniformly(halves, 6.0).halves.first.values
    assert float((found - truth).square().mean()) < 0.02 * float(truth.square().mean())


def test_noise_gains_no_correlation(truth: Tensor) -> None:
    assert noise_gain(halves_of(truth, 3.0), 9.0) < MAX_GAIN
    assert noise_gain(halves_of(torch.zeros_like(truth), 1.0), 2 * PIXEL) < MAX_GAIN


def test_a_window_of_a_voxel_chooses_by_chance_and_is_found_out(truth: Tensor) -> None:
    """The guard sees what it is for: with hardly any window, voxels that agree by chance are kept."""
    assert noise_gain(halves_of(torch.zeros_like(truth), 1.0), 0.1 * PIXEL) > MAX_GAIN


def test_the_scale_of_the_maps_does_not_matter(truth: Tensor) -> None:
    halves = halves_of(truth, 3.0)
    scaled = HalfMaps(*(Volume(1000 * half.values, PIXEL) for half in (halves.first, halves.second)))
    one, other = (filter_nonuniformly(each, 9.0).halves.first.values for each in (halves, scaled))
    torch.testing.assert_close(1000 * one, other, rtol=1e-3, atol=1e-2 * math.sqrt(1000))
