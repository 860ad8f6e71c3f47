"""Soft masks in real space, and the cosine edges that masks and filters share."""

import torch
from jaxtyping import Float
from torch import Tensor


def falling_cosine(depth: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """A half period of a cosine from 1, at depth 0 and below, to 0, at depth 1 and above."""
    return depth.clamp(0, 1).mul_(torch.pi).cos_().add_(1).div_(2)


def rising_cosine(depth: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """A half period of a cosine from 0, at depth 0 and below, to 1, at depth 1 and above."""
    return depth.clamp(0, 1).mul_(torch.pi).cos_().neg_().add_(1).div_(2)


def soft_sphere(
    box_size_px: int, radius_px: float, edge_px: float, device: torch.device | None = None
) -> Float[Tensor, "n n n"]:
    """A mask: 1 within a radius, 0 from ``edge_px`` further on, a cosine between."""
    x = torch.arange(box_size_px, device=device) - box_size_px // 2
    radius = (x[:, None, None].square() + x[:, None].square() + x.square()).sqrt()
    return falling_cosine((radius - radius_px) / edge_px)
