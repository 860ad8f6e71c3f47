"""Pixels of the sphere, against healpy."""

import healpy
import pytest
import torch

from cryoeq.geometry.healpix import opposite_pixels, pixel_centres, pixel_of_directions


@pytest.mark.parametrize("order", [0, 1, 3, 5])
def test_directions_fall_into_the_pixels_of_healpy(order: int, generator: torch.Generator) -> None:
    vectors = torch.randn(4000, 3, generator=generator, dtype=torch.float64) * 7
    expected = torch.from_numpy(healpy.vec2pix(2**order, *vectors.numpy().T))
    assert torch.equal(pixel_of_directions(vectors, order), expected)


@pytest.mark.parametrize("order", [0, 2, 4])
def test_a_centre_lies_in_its_pixel_and_opposite_its_opposite(order: int) -> None:
    centres = pixel_centres(order)
    assert torch.equal(pixel_of_directions(centres, order), torch.arange(12 * 4**order))
    torch.testing.assert_close(centres[opposite_pixels(order)], -centres)


def test_the_poles_and_nowhere_have_a_pixel() -> None:
    vectors = torch.tensor([[0.0, 0, 1], [0, 0, -2], [0, 0, 0], [1, 0, 0]])
    pixels = pixel_of_directions(vectors, 1)
    assert pixels.tolist() == [*healpy.vec2pix(2, [0, 0], [0, 0], [1, -2]), 0, healpy.vec2pix(2, 1, 0, 0)]
