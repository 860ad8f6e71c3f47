"""Triangles between views: they fill the sphere once, circles are empty, gaps of random views are as wide as stated."""

import math

import pytest
import torch
from torch import Tensor

from cryoeq.screening.view_triangulation import chance_radius_rad, choose_landmarks, triangulate_views


def random_views(count: int, seed: int = 0) -> Tensor:
    views = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return views / views.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("lowest", [-1.0, 0.2])
def test_triangles_fill_the_sphere_once_and_their_circles_hold_no_landmark(lowest: float) -> None:
    views = random_views(400)
    found = triangulate_views(views[views[:, 2] > lowest], gap_rad=0.3, spacing_rad=0.1)
    is_inside = lowest < 0
    assert float(found.solid_angles.sum()) == pytest.approx(4 * math.pi if is_inside else 0, abs=1e-6)
    assert bool((found.solid_angles > 0).all()) == is_inside
    assert ((found.solid_angles > 0) == (found.radii_rad < math.pi / 2)).all()
    angles = (found.centres @ found.landmarks.T).clamp(-1, 1).acos()
    assert (angles.amin(1) > found.radii_rad - 1e-6).all()
    own = angles.gather(1, found.triangles)
    torch.testing.assert_close(own, found.radii_rad[:, None].expand_as(own), atol=1e-6, rtol=0)


def test_views_on_a_great_circle_leave_two_half_spheres() -> None:
    angles = torch.linspace(0, 2 * math.pi, 41, dtype=torch.float64)[:-1]
    views = torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles)], 1)
    found = triangulate_views(views, gap_rad=0.3, spacing_rad=0.1)
    assert found.is_gap.all()
    torch.testing.assert_close(found.radii_rad, torch.full_like(found.radii_rad, math.pi / 2), atol=1e-3, rtol=0)


def test_landmarks_are_apart_and_near_every_view() -> None:
    views = random_views(500)
    landmarks = choose_landmarks(views, 0.2)
    between = (landmarks @ landmarks.T).clamp(-1, 1).acos() + 10 * torch.eye(len(landmarks))
    assert between.min() > 0.2 - 1e-9
    assert (views @ landmarks.T).clamp(-1, 1).acos().amin(1).max() <= 0.2 + 1e-9


def test_repeated_views_give_one_landmark() -> None:
    assert len(choose_landmarks(torch.eye(3, dtype=torch.float64)[:1].repeat(9, 1), 0.0)) == 1
    with pytest.raises(ValueError, match="needs four"):
        triangulate_views(torch.eye(3, dtype=torch.float64), gap_rad=0.3, spacing_rad=0.1)


def test_gaps_of_random_views_reach_the_chance_radius_no_more_often_than_stated() -> None:
    n, sets = 150, 60
    radius = chance_radius_rad(n)
    widest = torch.tensor(
        [
            float(triangulate_views(random_views(n, seed), gap_rad=1, spacing_rad=0).radii_rad.max())
            for seed in range(sets)
        ]
    )
    assert (widest > radius).double().mean() <= 0.05
    area = n * (1 - widest.cos()) / 2
    expected = 2 * n * (1 + area) * (-area).exp()
    # The expected number beyond the largest of many is of mean 1, and more where wide triangles come together.
    assert 1 < float(expected.mean()) < 3.5
