"""Classes of particles against true ones: which class shows what, and where the particles are."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@dataclass(frozen=True)
class ClassConfusion:
    """Counts of the particles by their class and their true class.

    Args:
        classes: numbers of the classes, ascending.
        true_classes: numbers of the true classes, ascending, without 0.
        counts: kept particles of each class (rows) and true class (columns); the last column is junk.
        left_out: particles that were left out, likewise.
        matched: true class of each class in the assignment that puts most particles into the right one; a class beyond
            the number of true classes, or without any particle of its own, has none.
    """

    classes: tuple[int, ...]
    true_classes: tuple[int, ...]
    counts: Int[Tensor, "classes columns"]
    left_out: Int[Tensor, " columns"]
    matched: Mapping[int, int]

    def shown(self, number: int) -> int | None:
        """The true class that a class shows: the matched one, else that of most of its particles; None for junk alone.

        Args:
            number: of the class.
        """
        row = self.counts[self.classes.index(number), :-1]
        if number in self.matched or not int(row.sum()):
            return self.matched.get(number)
        return self.true_classes[int(row.argmax())]

    @property
    def right(self) -> int:
        """Number of kept particles in the class that is matched to their true one."""
        cells = ((self.classes.index(ours), self.true_classes.index(true)) for ours, true in self.matched.items())
        return sum(int(self.counts[cell]) for cell in cells)


def confuse(
    classes: Int[Tensor, " images"], true_classes: Int[Tensor, " images"], is_kept: Bool[Tensor, " images"]
) -> ClassConfusion:
    """Count the particles of each class, and match the classes.

    Args:
        classes: class of each image.
        true_classes: its true class; 0 for junk.
        is_kept: whether it was kept.
    """
    ours, row = classes.unique(return_inverse=True)
    theirs = true_classes[true_classes > 0].unique()
    # Where junk, the number is 0 and so sorts first: beyond the last column.
    column = torch.where(true_classes > 0, torch.searchsorted(theirs, true_classes), len(theirs))
    width = len(theirs) + 1
    counts = torch.bincount((row * width + column)[is_kept], minlength=len(ours) * width).reshape(-1, width)
    left_out = torch.bincount(column[~is_kept], minlength=width)
    pairs = zip(*linear_sum_assignment(counts[:, :-1].numpy(), maximize=True), strict=True)
    matched = {int(ours[i]): int(theirs[j]) for i, j in pairs if counts[i, j]}
    return ClassConfusion(tuple(ours.tolist()), tuple(theirs.tolist()), counts, left_out, matched)
