"""Actions on images and poses agree with plain array operations; so does the equivariance error of the tests."""

import math

import pytest
import torch
from group_actions import act_on_shifts, act_trivially, equivariance_error
from torch import Tensor

from cryoeq.equivariance.actions import act_on_rotations, lift_to_rotation, transform_images

QUARTER = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
MIRROR = torch.diag(torch.tensor([-1.0, 1.0], dtype=torch.float64))


def rotation(angle_deg: float) -> Tensor:
    c, s = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def centroid(images: Tensor) -> Tensor:
    """(x, y) of the centre of mass, from pixel n // 2."""
    n = images.shape[-1]
    x = torch.arange(n, dtype=images.dtype) - n // 2
    mass = images.sum((-2, -1))
    return torch.stack([(images.sum(-2) * x).sum(-1), (images.sum(-1) * x).sum(-1)], -1) / mass[:, None]


def blob(n: int, x: float, y: float) -> Tensor:
    axis = torch.arange(n, dtype=torch.float64) - n // 2
    return torch.exp(-((axis - x) ** 2 + (axis[:, None] - y) ** 2) / 8)[None]


def test_rotating_x_to_y_is_rot90_clockwise_on_screen(generator: torch.Generator) -> None:
    """y points down the rows, so g = (x to y, y to -x) rotates the array from its columns to its rows: k = -1."""
    images = torch.randn(2, 7, 7, generator=generator)
    torch.testing.assert_close(transform_images(images, QUARTER), torch.rot90(images, -1, (-2, -1)), atol=0, rtol=0)
    torch.testing.assert_close(transform_images(images, MIRROR), images.flip(-1), atol=0, rtol=0)
    both = transform_images(images, QUARTER @ MIRROR)
    torch.testing.assert_close(both, torch.rot90(images.flip(-1), -1, (-2, -1)), atol=0, rtol=0)


@pytest.mark.parametrize("n", [24, 25])
@pytest.mark.parametrize("g", [QUARTER, MIRROR, QUARTER @ MIRROR, rotation(30), rotation(-75) @ MIRROR])
def test_what_is_at_x_moves_to_gx(n: int, g: Tensor) -> None:
    moved = centroid(transform_images(blob(n, 3.0, -1.5), g))
    torch.testing.assert_close(moved[0], g @ torch.tensor([3.0, -1.5], dtype=torch.float64), atol=0.01, rtol=0)


def test_even_boxes_rotate_about_the_origin_and_keep_their_first_row_and_column(generator: torch.Generator) -> None:
    images = torch.randn(1, 8, 8, generator=generator)
    rotated = transform_images(images, QUARTER)
    assert rotated[0, 4, 4] == images[0, 4, 4]
    torch.testing.assert_close(rotated[:, 0], images[:, 0], atol=0, rtol=0)
    torch.testing.assert_close(rotated[:, :, 0], images[:, :, 0], atol=0, rtol=0)


def test_a_mirror_is_a_half_turn_in_space() -> None:
    lifted = lift_to_rotation(MIRROR)
    torch.testing.assert_close(lifted, torch.diag(torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64)), atol=0, rtol=0)
    assert torch.linalg.det(lift_to_rotation(QUARTER @ MIRROR)) == pytest.approx(1)


def test_actions_are_homomorphisms(generator: torch.Generator) -> None:
    poses = torch.randn(3, 2, 3, 3, generator=generator, dtype=torch.float64)
    shifts = torch.randn(3, 2, 2, generator=generator, dtype=torch.float64)
    g, h = rotation(20), rotation(50) @ MIRROR
    torch.testing.assert_close(act_on_rotations(g, act_on_rotations(h, poses)), act_on_rotations(g @ h, poses))
    torch.testing.assert_close(act_on_shifts(g, act_on_shifts(h, shifts)), act_on_shifts(g @ h, shifts))


def test_the_centroid_is_found_equivariant_and_its_x_is_not_invariant() -> None:
    images = blob(25, 2.0, 1.0)
    elements = torch.stack([QUARTER, MIRROR])
    assert equivariance_error(centroid, act_on_shifts, images, elements) < 1e-9
    # x = 2 becomes -1 under the quarter rotation and -2 under the mirror.
    assert equivariance_error(lambda images: centroid(images)[:, :1], act_trivially, images, elements) == pytest.approx(
        4, abs=1e-3
    )
