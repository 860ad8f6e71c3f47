"""Statistics come back bit by bit where a step was lost, and stay as the step left them where it was not."""

import pytest
import torch

from cryoeq.training.autoencoder.kept_statistics import KeptStatistics


@pytest.mark.parametrize("is_lost", [0.0, 1.0])
def test_values_are_those_of_before_or_of_after(is_lost: float, generator: torch.Generator) -> None:
    values = [torch.randn(3, 2, generator=generator), torch.tensor(5), torch.randn(4, generator=generator)]
    values[2] = torch.stack([values[2], values[2]])[:, ::2].T  # not contiguous
    before = [each.clone() for each in values]
    kept = KeptStatistics(values)
    for each in values:
        each.mul_(torch.tensor(float("nan")) if is_lost and each.is_floating_point() else 3)
    after = [each.clone() for each in values]
    kept.put_back_where(torch.tensor(is_lost))
    assert all(torch.equal(*pair) for pair in zip(values, before if is_lost else after, strict=True))


def test_nothing_to_keep() -> None:
    KeptStatistics([]).put_back_where(torch.tensor(1.0))
