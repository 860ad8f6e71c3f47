"""Coverage of the sphere: holes where they were cut, none in even views, no hand where mirrors count as one."""

import math

import pytest
import torch
from torch import Tensor

from cryoeq.errors import ParticleFileError
from cryoeq.geometry.so3 import random_rotations
from cryoeq.screening.view_coverage import ViewCoverage, measure_coverage


def rotations(count: int, seed: int = 0) -> Tensor:
    return random_rotations(count, torch.Generator().manual_seed(seed))


def without_caps(axes: Tensor, radius_deg: float, count: int = 2500) -> Tensor:
    """Rotations none of which looks from within a radius of the axes."""
    drawn = rotations(count)
    cosines = (drawn[:, 2] @ axes.T).amax(1)
    return drawn[cosines < math.cos(math.radians(radius_deg))]


def stalks_at_rims_vanish(found: ViewCoverage) -> bool:
    """A landmark has a stalk if and only if no wide triangle touches it."""
    wide = found.triangulation.triangles[found.triangulation.is_wide] % len(found.stalk_dims)
    rim = torch.zeros(len(found.stalk_dims), dtype=torch.bool)
    rim[wide.flatten()] = True
    return torch.equal(found.stalk_dims > 0, ~rim)


def test_even_views_cover_the_sphere() -> None:
    found = measure_coverage(rotations(2500))
    assert found.is_covered
    assert (found.n_sections, found.n_regions, found.n_orientable) == (1, 1, 1)
    assert (found.stalk_dims == 1).all()
    assert found.is_orientable


def test_holes_are_where_they_were_cut() -> None:
    axes = torch.nn.functional.normalize(torch.tensor([[0.0, 0.0, 1.0], [1.0, -1.0, -0.2]]), dim=1)
    found = measure_coverage(without_caps(axes, 25))
    assert len(found.holes) == 2
    for axis in axes:
        nearest = max(found.holes, key=lambda hole: float(hole.axis.float() @ axis))
        assert math.degrees(math.acos(min(1.0, float(nearest.axis.float() @ axis)))) < 4
        assert math.degrees(nearest.radius_rad) == pytest.approx(26, abs=2)
        assert nearest.share == pytest.approx((1 - math.cos(math.radians(25))) / 2, rel=0.25)
    assert (found.n_sections, found.n_regions, found.n_orientable) == (0, 1, 1)
    assert stalks_at_rims_vanish(found)


def test_side_views_leave_both_poles() -> None:
    drawn = rotations(6000)
    found = measure_coverage(drawn[drawn[:, 2, 2].abs() < 0.5], widest_deg=15)
    assert [round(abs(float(hole.axis[2])), 1) for hole in found.holes] == [1.0, 1.0]
    assert all(math.degrees(hole.radius_rad) == pytest.approx(60, abs=3) for hole in found.holes)
    assert found.is_orientable
    assert stalks_at_rims_vanish(found)


def test_where_mirrored_views_are_one_no_hand_holds_all_around() -> None:
    found = measure_coverage(rotations(1500), are_opposites_one=True)
    assert found.is_covered
    assert (found.n_sections, found.n_regions, found.n_orientable) == (0, 1, 0)
    assert not found.is_orientable
    assert (found.stalk_dims == 1).all()


def test_mirrored_views_fill_a_hole_whose_opposite_is_seen_but_not_a_pair_of_holes() -> None:
    pole = torch.tensor([[0.0, 0.0, 1.0]])
    one, both = without_caps(pole, 30), without_caps(torch.cat([pole, -pole]), 30)
    assert measure_coverage(one, are_opposites_one=True).is_covered
    found = measure_coverage(both, are_opposites_one=True)
    assert len(found.holes) == 1
    assert not found.is_orientable  # what is left of the projective plane is a Moebius band


def test_a_cap_of_views_has_a_hand_even_where_mirrors_count_as_one() -> None:
    drawn = rotations(4000)
    found = measure_coverage(drawn[drawn[:, 2, 2] > 0.7], widest_deg=15, are_opposites_one=True)
    assert (found.n_regions, found.n_orientable) == (1, 1)


def test_the_hole_beside_a_cap_of_views_is_the_rest_of_the_sphere() -> None:
    drawn = rotations(4000)
    found = measure_coverage(drawn[drawn[:, 2, 2] > 0.5], widest_deg=15)
    assert len(found.holes) == 1
    assert float(found.holes[0].axis[2]) < -0.99
    assert math.degrees(found.holes[0].radius_rad) == pytest.approx(120, abs=2)
    assert found.holes[0].share == pytest.approx(0.75, abs=0.02)


def test_symmetry_copies_fill_the_holes_they_reach() -> None:
    pole, side = torch.eye(3)[2:], torch.eye(3)[:1]
    assert len(measure_coverage(without_caps(side, 25, 1800)).holes) == 1
    assert measure_coverage(without_caps(side, 25, 1800), symmetry="C4").is_covered
    assert len(measure_coverage(without_caps(pole, 25, 1800), symmetry="C4").holes) == 1


def test_three_views_are_refused() -> None:
    with pytest.raises(ParticleFileError, match="four or more different views"):
        measure_coverage(rotations(3))
