"""Cosine edges, and the soft sphere that is made with one."""

import torch

from cryoeq.geometry.soft_mask import falling_cosine, rising_cosine, soft_sphere


def test_a_cosine_edge_falls_from_1_to_0_and_the_other_rises() -> None:
    depths = torch.tensor([-3.0, 0.0, 0.25, 0.5, 1.0, 7.0], dtype=torch.float64)
    expected = torch.tensor([1.0, 1.0, 0.5 + 0.5 * 0.5**0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(falling_cosine(depths), expected)
    torch.testing.assert_close(rising_cosine(depths), 1 - expected)
    assert depths.min() == -3, "the argument is left unchanged"


def test_a_soft_sphere_is_centred_with_its_edge_outside_the_radius() -> None:
    for n in (16, 17):
        mask = soft_sphere(n, 4.0, 2.0)
        line = mask[n // 2, n // 2, n // 2 :]
        torch.testing.assert_close(line[:7], torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0]))
        assert torch.equal(mask, mask.permute(2, 0, 1))
        assert torch.equal(mask[n // 2, n // 2 - 6 : n // 2 + 7], mask[n // 2, n // 2 - 6 : n // 2 + 7].flip(0))
