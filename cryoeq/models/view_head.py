"""View head: from log-likelihoods of a few views, pooled over the in-plane group, to a posterior over many."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

_CONCENTRATION = 30.0  # of the kernel that the head starts as: neighbours within about 15 degrees


class ViewHead(nn.Module):
    """Logits of fine views, linear in the pooled log-likelihoods of coarse ones.

    Its input is invariant under O(2), and so are its logits. It starts as an interpolation between the coarse views:
    as a coarse search. What it learns is what that does not know: how a view between those of the coarse grid shows in
    all of them, and how far they are to be trusted.

    Args:
        coarse: directions of the coarse views, each up to its sign.
        fine: directions of the fine views.
        symmetry: rotations of the map's point group.
    """

    def __init__(
        self, coarse: Float[Tensor, "coarse 3"], fine: Float[Tensor, "fine 3"], symmetry: Float[Tensor, "order 3 3"]
    ) -> None:
        super().__init__()
        kernel = (_CONCENTRATION * (nearness(fine, coarse, symmetry) - 1)).exp()
        self.weight = nn.Parameter((kernel / kernel.sum(1, keepdim=True)).contiguous())
        self.bias = nn.Parameter(torch.zeros(len(fine), device=fine.device))

    def forward(self, pooled: Float[Tensor, "batch coarse"]) -> Float[Tensor, "batch fine"]:
        """Logits; a constant of the image does not change them."""
        centred = pooled - pooled.mean(1, keepdim=True)
        return nn.functional.linear(centred, self.weight, self.bias)


def nearness(
    directions: Float[Tensor, "batch 3"], others: Float[Tensor, "others 3"], symmetry: Float[Tensor, "order 3 3"]
) -> Float[Tensor, "batch others"]:
    """Squared cosine of the angle between views up to sign and symmetry: 1 where they are the same.

    Args:
        directions: directions of the views, in the frame of the map.
        others: other directions.
        symmetry: rotations of the map's point group.
    """
    turned = directions @ symmetry.to(directions)
    return (turned @ others.T).square().amax(0)


def smoothed_views(
    directions: Float[Tensor, "batch 3"],
    fine: Float[Tensor, "fine 3"],
    symmetry: Float[Tensor, "order 3 3"],
    width_rad: float,
) -> Float[Tensor, "batch fine"]:
    """Probabilities of the fine views about true ones: normal in the angle between them.

    Args:
        directions: true directions.
        fine: directions of the fine views.
        symmetry: rotations of the map's point group.
        width_rad: standard deviation.
    """
    sine_squared = 1 - nearness(directions, fine, symmetry)
    return (sine_squared * (-0.5 / width_rad**2)).softmax(1)


def view_spacing_rad(n_views: int) -> float:
    """Distance of neighbouring views of an even grid over a hemisphere."""
    return math.sqrt(2 * math.pi / max(1, n_views))
