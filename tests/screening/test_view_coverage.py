"""Angular coverage: gaps where they were cut, none in uniform views, no hand where mirror images count as one."""

import math

import pytest
import torch
from torch import Tensor

from cryoeq.errors import ParticleFileError
from cryoeq.geometry.healpix import pixel_centres
from cryoeq.geometry.so3 import random_rotations
from cryoeq.screening.view_coverage import ViewCoverage, measure_coverage


def rotations(count: int, seed: int = 0) -> Tensor:
    return random_rotations(count, torch.Generator().manual_seed(seed))


def without_caps(axes: Tensor, radius_deg: float, count: int = 2500) -> Tensor:
    """Random rotations without those whose view is within a radius of the axes."""
    uniform = rotations(count)
    cosines = (uniform[:, 2] @ axes.T).amax(1)
    return uniform[cosines < math.cos(math.radians(radius_deg))]


def stalks_vanish_at_boundaries(found: ViewCoverage) -> bool:
    """A landmark has a stalk if and only if no gap touches it."""
    corners = found.triangulation.triangles[found.triangulation.is_gap] % len(found.stalk_dims)
    is_boundary = torch.zeros(len(found.stalk_dims), dtype=torch.bool)
    is_boundary[corners.flatten()] = True
    return torch.equal(found.stalk_dims > 0, ~is_boundary)


def test_uniform_views_cover_the_sphere() -> None:
    found = measure_coverage(rotations(2500))
    assert found.is_covered
    assert (found.n_sections, found.n_regions, found.n_orientable) == (1, 1, 1)
    assert (found.stalk_dims == 1).all()
    assert found.is_orientable


def test_gaps_are_where_they_were_cut() -> None:
    axes = torch.nn.functional.normalize(torch.tensor([[0.0, 0.0, 1.0], [1.0, -1.0, -0.2]]), dim=1)
    found = measure_coverage(without_caps(axes, 25))
    assert len(found.gaps) == 2
    for axis in axes:
        nearest = max(found.gaps, key=lambda gap: float(gap.axis.float() @ axis))
        assert math.degrees(math.acos(min(1.0, float(nearest.axis.float() @ axis)))) < 4
        assert math.degrees(nearest.radius_rad) == pytest.approx(26, abs=2)
        assert nearest.fraction == pytest.approx((1 - math.cos(math.radians(25))) / 2, rel=0.25)
    assert (found.n_sections, found.n_regions, found.n_orientable) == (0, 1, 1)
    assert stalks_vanish_at_boundaries(found)


def test_side_views_leave_both_poles() -> None:
    uniform = rotations(6000)
    found = measure_coverage(uniform[uniform[:, 2, 2].abs() < 0.5], threshold_deg=15)
    assert [round(abs(float(gap.axis[2])), 1) for gap in found.gaps] == [1.0, 1.0]
    assert all(math.degrees(gap.radius_rad) == pytest.approx(60, abs=3) for gap in found.gaps)
    assert found.is_orientable
    assert stalks_vanish_at_boundaries(found)


def test_where_mirrored_views_are_one_no_hand_holds_all_around() -> None:
    found = measure_coverage(rotations(1500), are_opposites_one=True)
    assert found.is_covered
    assert (found.n_sections, found.n_regions, found.n_orientable) == (0, 1, 0)
    assert not found.is_orientable
    assert (found.stalk_dims == 1).all()


def test_mirrored_views_fill_a_gap_whose_opposite_is_seen_but_not_a_pair_of_gaps() -> None:
    pole = torch.tensor([[0.0, 0.0, 1.0]])
    one, both = without_caps(pole, 30), without_caps(torch.cat([pole, -pole]), 30)
    assert measure_coverage(one, are_opposites_one=True).is_covered
    found = measure_coverage(both, are_opposites_one=True)
    assert len(found.gaps) == 1
    assert not found.is_orientable  # what is left of the projective plane is a Moebius band


def test_a_cap_of_views_has_a_hand_even_where_mirrors_count_as_one() -> None:
    uniform = rotations(4000)
    found = measure_coverage(uniform[uniform[:, 2, 2] > 0.7], threshold_deg=15, are_opposites_one=True)
    assert (found.n_regions, found.n_orientable) == (1, 1)


def test_the_gap_beside_a_cap_of_views_is_the_rest_of_the_sphere() -> None:
    uniform = rotations(4000)
    found = measure_coverage(uniform[uniform[:, 2, 2] > 0.5], threshold_deg=15)
    assert len(found.gaps) == 1
    assert float(found.gaps[0].axis[2]) < -0.99
    assert math.degrees(found.gaps[0].radius_rad) == pytest.approx(120, abs=2)
    assert found.gaps[0].fraction == pytest.approx(0.75, abs=0.02)


def test_symmetry_copies_fill_the_gaps_they_reach() -> None:
    pole, side = torch.eye(3)[2:], torch.eye(3)[:1]
    assert len(measure_coverage(without_caps(side, 25, 1800)).gaps) == 1
    assert measure_coverage(without_caps(side, 25, 1800), symmetry="C4").is_covered
    assert len(measure_coverage(without_caps(pole, 25, 1800), symmetry="C4").gaps) == 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("are_opposites_one", [False, True])
def test_gaps_are_those_of_all_views_not_of_the_landmarks(seed: int, *, are_opposites_one: bool) -> None:
    """No gap is below the threshold, nor holds a view; and no direction is farther from all views than the widest."""
    views = rotations(300, seed)[:, 2].double()
    found = measure_coverage(rotations(300, seed), threshold_deg=8, are_opposites_one=are_opposites_one)
    assert len(found.triangulation.landmarks) // (1 + are_opposites_one) < 300
    assert len(found.gaps) > 1
    both = torch.cat([views, -views]) if are_opposites_one else views
    for gap in found.gaps:
        assert gap.radius_rad > found.threshold_rad
        assert gap.radius_rad == pytest.approx(float((both @ gap.axis).max().acos()), abs=1e-3)
    directions = pixel_centres(5).double()
    nearest = (directions @ both.T).amax(1).clamp(-1, 1).acos()
    assert math.radians(1) > found.gaps[0].radius_rad - float(nearest.max()) > -1e-3


def test_three_views_are_refused() -> None:
    with pytest.raises(ParticleFileError, match="four or more different views"):
        measure_coverage(rotations(3))
