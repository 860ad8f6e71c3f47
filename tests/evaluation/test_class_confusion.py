"""Confusion of classes: every image counted once, labels without a meaning, the best assignment of all."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from cryoeq.evaluation.class_confusion import confuse


def drawn(generator: torch.Generator, n_classes: int, n_true: int, count: int = 300) -> tuple[Tensor, Tensor, Tensor]:
    """Classes, true classes with junk, and which are kept."""
    true = torch.randint(0, n_true + 1, (count,), generator=generator)
    is_right = torch.rand(count, generator=generator) < 0.5
    chance = torch.randint(1, n_classes + 1, (count,), generator=generator)
    classes = torch.where(is_right & (true > 0), (true - 1) % n_classes + 1, chance)
    return classes, true, torch.rand(count, generator=generator) < 0.8


@pytest.mark.parametrize(("n_classes", "n_true"), [(2, 2), (3, 3), (4, 2), (2, 4), (1, 3)])
def test_every_image_is_counted_once_and_the_best_assignment_found(
    generator: torch.Generator, n_classes: int, n_true: int
) -> None:
    classes, true, is_kept = drawn(generator, n_classes, n_true)
    found = confuse(classes, true, is_kept)
    assert int(found.counts.sum() + found.left_out.sum()) == len(classes)
    for row, number in enumerate(found.classes):
        expected = [int(((classes == number) & (true == other) & is_kept).sum()) for other in found.true_classes]
        assert found.counts[row].tolist() == [*expected, int(((classes == number) & (true == 0) & is_kept).sum())]
    table = found.counts[:, :-1] if n_classes >= n_true else found.counts[:, :-1].T
    best = max(
        sum(int(table[row, column]) for column, row in enumerate(order))
        for order in permutations(range(len(table)), table.shape[1])
    )
    assert found.right == best
    assert len(set(found.matched.values())) == len(found.matched)


def test_labels_mean_nothing(generator: torch.Generator) -> None:
    classes, true, is_kept = drawn(generator, 3, 3)
    renamed = torch.tensor([0, 7, 2, 5])
    first, second = confuse(classes, true, is_kept), confuse(renamed[classes], true, is_kept)
    assert second.right == first.right
    assert second.matched == {int(renamed[ours]): theirs for ours, theirs in first.matched.items()}


def test_a_molecule_in_two_classes_is_right_in_one() -> None:
    classes, true = torch.tensor([1, 1, 1, 2, 2, 3]), torch.tensor([4, 4, 4, 4, 4, 0])
    found = confuse(classes, true, torch.ones(6, dtype=torch.bool))
    assert (found.matched, found.right) == ({1: 4}, 3)
    assert [found.shown(number) for number in (1, 2, 3)] == [4, 4, None]
