"""Lattice subtraction: the spots of a 2D crystal in a micrograph are reduced to the noise around them."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryoeq.lattice.indexing import node_orders
from cryoeq.lattice.power_spectrum import centred_axes, local_background

_MIN_RADIUS_PX = 3
_MAX_RADIUS_PX = 20
_SIGNIFICANT = 3.0  # power over the background: 5 % of coefficients of noise exceed it


def subtract_lattice(
    image: Float[Tensor, "ny nx"], reciprocal: Float[Tensor, "2 2"], generator: torch.Generator
) -> tuple[Float[Tensor, "ny nx"], float]:
    """Replace the amplitudes of a lattice's spots by those of noise.

    Around every node up to Nyquist, coefficients that stand above the noise get an amplitude sampled from the
    distribution of the noise around them (Rayleigh). Their phases are kept, all other coefficients are unchanged. A
    spot extends as far as the tail of its shape, amplitude / (pi distance), exceeds the noise, at least 3 px and at
    most 20. Coefficients of mere noise above the threshold are reduced too: the power in the discs ends at 0.85 of the
    noise.

    Args:
        image: grey values.
        reciprocal: vectors of the lattice as columns (x, y), cycles per pixel.
        generator: random number generator of the amplitudes, of the CPU.

    Returns:
        (the image, the fraction of its coefficients that were changed).
    """
    ny, nx = image.shape
    mean = image.mean()
    transform = torch.fft.fftshift(torch.fft.fft2(image - mean, norm="ortho"))
    power = transform.abs().square()
    x, y = centred_axes(power)
    noise = local_background(power, ((x / nx).square() + (y / ny).square()[:, None]).sqrt())
    changed = spot_mask(power / noise, reciprocal) & (power > _SIGNIFICANT * noise)
    noise_power = -torch.log(1 - torch.rand(power.shape, generator=generator).to(noise)) * noise
    factor = torch.where(changed, (noise_power / power.clamp(min=1e-30)).sqrt(), torch.ones_like(power))
    # Friedel mates share a factor: the real part would otherwise average two samples, which is not Rayleigh's.
    values = torch.fft.ifft2(torch.fft.ifftshift(transform * _friedel_symmetric(factor)), norm="ortho").real
    return values + mean, float(changed.float().mean())


def _friedel_symmetric(factor: Float[Tensor, "ny nx"]) -> Float[Tensor, "ny nx"]:
    """One factor for both of a Friedel pair: that of the mate of lower row, so that amplitudes stay Rayleigh's."""
    ny, nx = factor.shape
    columns, rows = ((size // 2 - axis) % size for size, axis in zip((nx, ny), centred_axes(factor), strict=True))
    mates = factor[rows][:, columns]
    index = torch.arange(ny * nx, device=factor.device).view(ny, nx)
    return torch.where(index <= index[rows][:, columns], factor, mates)


def spot_mask(excess: Float[Tensor, "ny nx"], reciprocal: Float[Tensor, "2 2"]) -> Bool[Tensor, "ny nx"]:
    """Discs around all nodes of a spectrum, except the origin.

    Args:
        excess: power over the background, no window applied, zero frequency at its centre.
        reciprocal: vectors as columns (x, y), cycles per pixel.
    """
    device, size = excess.device, torch.tensor([excess.shape[1], excess.shape[0]])
    max_order = math.ceil(float(torch.linalg.inv(reciprocal).norm(dim=1).max()))
    half = node_orders(max_order).double()
    nodes = torch.cat([half, -half]) @ reciprocal.T
    centres = nodes[(nodes.abs() < 0.5).all(1)] * size + size // 2
    steps = torch.arange(-_MAX_RADIUS_PX, _MAX_RADIUS_PX + 1)
    window = torch.cartesian_prod(steps, steps)
    around = centres.round().long()[:, None] + window
    distances = (around - centres[:, None]).norm(dim=-1).to(device)
    around = (around % size).to(device)
    peaks = torch.where(distances < _MIN_RADIUS_PX, excess[around[..., 1], around[..., 0]], 0).amax(1)
    radii = (peaks.sqrt() / math.pi).clamp(_MIN_RADIUS_PX, _MAX_RADIUS_PX)
    inside = around[distances <= radii[:, None]]
    mask = torch.zeros_like(excess, dtype=torch.bool)
    mask[inside[:, 1], inside[:, 0]] = True
    return mask
