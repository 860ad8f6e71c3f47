"""A broken particle is one side of a molecule, of the stated mass, centred."""

import pytest
import torch

from cryoeq.domain.volume import Volume
from cryoeq.geometry.so3 import random_rotations
from cryoeq.simulation.broken import project_part


def centre(image: torch.Tensor) -> torch.Tensor:
    axis = torch.arange(len(image), dtype=torch.float32) - len(image) // 2
    weights = image.clamp(min=0)
    return torch.stack([(weights.sum(0) * axis).sum(), (weights.sum(1) * axis).sum()]) / weights.sum()


@pytest.mark.parametrize("share", [0.3, 0.45, 0.6])
def test_the_share_of_the_mass_is_left_in_the_middle(
    share: float, phantom_map: Volume, generator: torch.Generator
) -> None:
    whole = float(phantom_map.values.sum())
    for rotation, normal in zip(random_rotations(3, generator), random_rotations(3, generator)[:, 2], strict=True):
        image = project_part(phantom_map.values, rotation, normal, share)
        assert float(image.sum()) / whole == pytest.approx(share, abs=0.04)
        assert float(centre(image).norm()) < 0.5


def test_the_parts_on_both_sides_are_the_whole(phantom_map: Volume) -> None:
    """Along the normal, which is in the image: each part is where the other is not."""
    normal = torch.tensor([1.0, 0.0, 0.0])
    whole = phantom_map.values.sum(0)
    part = project_part(phantom_map.values, torch.eye(3), normal, 0.5)
    below = whole.clamp(min=0).sum(0).cumsum(0)
    edge = int((below < 0.5 * below[-1]).sum())
    kept = whole.clone()
    kept[:, edge + 2 :] = 0
    moved = centre(kept)
    offset = torch.round(moved).long().tolist()
    shifted = torch.roll(kept, (-offset[1], -offset[0]), (0, 1))
    correlation = torch.corrcoef(torch.stack([shifted.flatten(), part.flatten()]))[0, 1]
    assert float(correlation) > 0.9


def test_all_of_it_is_its_projection(phantom_map: Volume) -> None:
    image = project_part(phantom_map.values, torch.eye(3), torch.tensor([0.0, 1.0, 0.0]), 1.0)
    moved = project_part(phantom_map.values, torch.eye(3), torch.tensor([0.0, 0.0, 1.0]), 1.0)
    torch.testing.assert_close(image, moved, atol=0.02 * float(image.max()), rtol=0.0)
    assert float(image.sum()) == pytest.approx(float(phantom_map.values.sum()), rel=0.02)
