"""The radius of a round particle is that of its outer edge."""

import pytest
import torch

from cryoeq.geometry.map_filter import low_pass
from cryoeq.geometry.soft_mask import soft_sphere
from cryoeq.reconstruction.particle_radius import outer_radius

N = 30


@pytest.mark.parametrize("radius_px", [7.0, 9.5, 11.0])
@pytest.mark.parametrize("cavity_px", [0.0, 5.0])
def test_the_outer_edge_is_found(radius_px: float, cavity_px: float) -> None:
    volume = soft_sphere(N, radius_px, 1.0)
    if cavity_px:
        volume = volume - soft_sphere(N, cavity_px, 1.0)
    for shell in (14, 9):
        found = outer_radius(low_pass(volume, shell)) * N
        assert found == pytest.approx(radius_px + 0.5, abs=1.0)
        assert outer_radius(3.7 * low_pass(volume, shell)) * N == pytest.approx(found)


def test_a_ring_of_neighbours_does_not_count() -> None:
    """Beyond a gap; a map that reaches the end of its box has no edge."""
    alone = soft_sphere(N, 6.0, 1.0)
    neighbours = 2.0 * (soft_sphere(N, 14.0, 1.0) - soft_sphere(N, 11.0, 1.0))
    assert outer_radius(alone + 0.4 * neighbours) == pytest.approx(outer_radius(alone))
    assert outer_radius(torch.ones(N, N, N)) == 0.5
