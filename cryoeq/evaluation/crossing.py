"""Where correlation curves cross a threshold."""

import torch
from jaxtyping import Float
from torch import Tensor


def crossing_shells(curves: Float[Tensor, "curves shells"], threshold: float) -> Float[Tensor, " curves"]:
    """Where each curve first drops below a threshold, interpolated linearly between shells.

    Args:
        curves: one value per shell from 0; shell 0, the mean density, is not looked at.
        threshold: correlation.

    Returns:
        In shells; 0 where shell 1 is below already, the last shell where none is.
    """
    is_below, last = curves[:, 1:] < threshold, curves.shape[1] - 1
    below = torch.where(is_below.any(1), is_below.int().argmax(1) + 1, last)
    after, before = (curves.gather(1, shell[:, None]).squeeze(1) for shell in (below, below - 1))
    part = ((before - threshold) / (before - after).clamp(min=1e-9)).clamp(0, 1)
    crossing = torch.where(below > 1, below - 1 + part, 0.0)
    return torch.where(is_below.any(1), crossing, float(last))
