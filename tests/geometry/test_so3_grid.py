import math

import healpy
import pytest
import torch

from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad
from cryoeq.geometry.so3_grid import so3_grid, view_directions


@pytest.mark.parametrize(("order", "n_inplane", "count"), [(0, None, 72), (1, None, 576), (2, 8, 1536)])
def test_members_are_rotations_of_mean_zero(order: int, n_inplane: int | None, count: int) -> None:
    grid = so3_grid(order, n_inplane, dtype=torch.float64)
    assert grid.shape == (count, 3, 3)
    torch.testing.assert_close(grid @ grid.mT, torch.eye(3, dtype=torch.float64).expand(count, 3, 3))
    torch.testing.assert_close(torch.linalg.det(grid), torch.ones(count, dtype=torch.float64))
    assert grid.mean(0).abs().max() < 1e-12


@pytest.mark.parametrize("order", [0, 1, 2, 4])
def test_view_directions_are_those_of_healpix(order: int) -> None:
    polar, azimuth = healpy.pix2ang(2**order, range(healpy.nside2npix(2**order)))
    expected = torch.stack([torch.from_numpy(azimuth), torch.from_numpy(polar)], dim=1)
    torch.testing.assert_close(view_directions(order), expected)


def angles(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    shape = (len(first), len(second), 3, 3)
    return rotation_angle_rad(first[:, None].expand(shape), second[None].expand(shape))


@pytest.mark.parametrize(("order", "covering_deg"), [(0, 50.0), (1, 27.0)])
def test_grid_covers_all_rotations(order: int, covering_deg: float, generator: torch.Generator) -> None:
    grid = so3_grid(order)
    probes = random_rotations(500, generator)
    nearest = angles(probes, grid).min(1).values
    assert math.degrees(nearest.max()) < covering_deg
    # No two members are nearly the same.
    apart = angles(grid[:72], grid) + 10 * torch.eye(len(grid))[:72]
    assert math.degrees(apart.min()) > covering_deg / 3


def test_in_plane_angle_runs_fastest_and_views_are_healpix() -> None:
    grid = so3_grid(1, 5, dtype=torch.float64)
    rot, tilt = view_directions(1).unbind(1)
    exact = torch.stack([tilt.sin() * rot.cos(), tilt.sin() * rot.sin(), tilt.cos()], dim=1)
    torch.testing.assert_close(grid[:, 2].unflatten(0, (48, 5)), exact[:, None].expand(48, 5, 3))


def test_psi_zero_is_relions_matrix() -> None:
    # RELION's Euler_angles2matrix(rot, tilt, 0), first row.
    rot, tilt = view_directions(0)[5]
    row = torch.stack([tilt.cos() * rot.cos(), tilt.cos() * rot.sin(), -tilt.sin()])
    torch.testing.assert_close(so3_grid(0, 3, dtype=torch.float64)[15, 0], row)
