"""Soft masks in real space."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def soft_sphere(
    box_size_px: int, radius_px: float, edge_px: float, device: torch.device | None = None
) -> Float[Tensor, "n n n"]:
    """A mask: 1 within a radius, 0 from ``edge_px`` further on, a cosine between."""
    x = torch.arange(box_size_px, device=device) - box_size_px // 2
    radius = (x[:, None, None].square() + x[:, None].square() + x.square()).sqrt()
    return 0.5 + 0.5 * torch.cos(math.pi * ((radius - radius_px) / edge_px).clamp(0, 1))
