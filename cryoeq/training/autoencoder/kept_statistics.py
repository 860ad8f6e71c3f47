"""Running statistics of a step that may turn out to be no number: kept beforehand, and put back where it was none."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


class KeptStatistics:
    """Copies of tensors that a step changes in place; all of one type are copied at once, for a GPU in few kernels.

    Args:
        values: the tensors.
    """

    def __init__(self, values: Sequence[Shaped[Tensor, "..."]]) -> None:
        types = dict.fromkeys(each.dtype for each in values)
        self._groups = [[each for each in values if each.dtype == dtype] for dtype in types]
        self._before = [_joined(group) for group in self._groups]

    def put_back_where(self, is_lost: Float[Tensor, ""]) -> None:
        """Give the tensors their values of before, without waiting for a GPU to tell whether it is needed.

        Args:
            is_lost: above 0 where what the step has made of them is of no use.
        """
        for group, before in zip(self._groups, self._before, strict=True):
            chosen = torch.where(is_lost > 0, before, _joined(group)).split([each.numel() for each in group])
            torch._foreach_copy_(group, [part.view_as(each) for part, each in zip(chosen, group, strict=True)])


def _joined(values: Sequence[Shaped[Tensor, "..."]]) -> Shaped[Tensor, " all"]:
    return torch.cat([each.flatten() for each in values])
