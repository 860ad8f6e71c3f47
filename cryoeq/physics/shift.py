"""In-plane shifts as phase ramps of Fourier coefficients."""

import math

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor


def shift_phases(
    shifts_px: Float[Tensor, "batch 2"], coords: Int[Tensor, "points 2"], box_size_px: int
) -> Complex[Tensor, "batch points"]:
    """Phases exp(+2 pi i k.o / n) that take a centred projection to the observed one: the particle moves to -o.

    Args:
        shifts_px: o = (x, y), RELION's origin offsets in pixels: shifting the observed image by o centres the particle.
        coords: k = (kx, ky) in cycles per box.
        box_size_px: n.
    """
    angles = (2 * math.pi / box_size_px) * (shifts_px @ coords.to(shifts_px.dtype).T)
    return torch.polar(torch.ones_like(angles), angles)
