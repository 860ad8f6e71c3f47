"""Taking a lattice out of a micrograph: its spots are brought down to the noise around them."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryoeq.lattice.indexing import node_orders
from cryoeq.lattice.power_spectrum import local_background

_LEAST_RADIUS_PX = 3
_MOST_RADIUS_PX = 20
_SIGNIFICANT = 3.0  # power over the background: 5 % of coefficients of noise exceed it


def remove_lattice(
    image: Float[Tensor, "ny nx"], reciprocal: Float[Tensor, "2 2"], generator: torch.Generator
) -> tuple[Float[Tensor, "ny nx"], float]:
    """The image with the spots of a lattice at the level of the noise.

    About every node up to Nyquist the coefficients that stand above the noise get an amplitude drawn from that of the
    noise around them (Rayleigh); their phases stay as they are, and so do all other coefficients. A spot reaches as far
    as the tail of its shape, amplitude / (pi distance), exceeds the noise, at least 3 px and at most 20. Coefficients
    of mere noise above the threshold are brought down too: the power in the discs ends at 0.85 of the noise.

    Args:
        image: grey values.
        reciprocal: vectors of the lattice as columns (x, y), cycles per pixel.
        generator: of the amplitudes.

    Returns:
        (the image, the share of its coefficients that were changed).
    """
    ny, nx = image.shape
    mean = image.mean()
    transform = torch.fft.fftshift(torch.fft.fft2(image - mean, norm="ortho"))
    power = transform.abs().square()
    x, y = torch.arange(nx) - nx // 2, torch.arange(ny) - ny // 2
    noise = local_background(power, ((x / nx).square() + (y / ny).square()[:, None]).sqrt())
    changed = spot_mask(power / noise, reciprocal) & (power > _SIGNIFICANT * noise)
    drawn = -torch.log(1 - torch.rand(power.shape, generator=generator)) * noise
    factor = torch.where(changed, (drawn / power.clamp(min=1e-30)).sqrt(), torch.ones_like(power))
    # Friedel mates drew different amplitudes: the real part of the inverse is that of their mean.
    values = torch.fft.ifft2(torch.fft.ifftshift(transform * _friedel_mean(factor)), norm="ortho").real
    return values + mean, float(changed.float().mean())


def _friedel_mean(factor: Float[Tensor, "ny nx"]) -> Float[Tensor, "ny nx"]:
    """One factor for both of a Friedel pair: that of the mate of lower row, so that amplitudes stay Rayleigh's."""
    ny, nx = factor.shape
    rows, columns = (-torch.arange(ny) + 2 * (ny // 2)) % ny, (-torch.arange(nx) + 2 * (nx // 2)) % nx
    mates = factor[rows][:, columns]
    place = torch.arange(ny * nx).view(ny, nx)
    return torch.where(place <= place[rows][:, columns], factor, mates)


def spot_mask(excess: Float[Tensor, "ny nx"], reciprocal: Float[Tensor, "2 2"]) -> Bool[Tensor, "ny nx"]:
    """Discs about all nodes of a centred spectrum, but the one at the origin.

    Args:
        excess: power over the background, without a window.
        reciprocal: vectors as columns (x, y), cycles per pixel.
    """
    size = torch.tensor([excess.shape[1], excess.shape[0]])
    most = math.ceil(float(torch.linalg.inv(reciprocal).norm(dim=1).max()))
    half = node_orders(most).double()
    nodes = torch.cat([half, -half]) @ reciprocal.T
    places = nodes[(nodes.abs() < 0.5).all(1)] * size + size // 2
    steps = torch.arange(-_MOST_RADIUS_PX, _MOST_RADIUS_PX + 1)
    window = torch.cartesian_prod(steps, steps)
    around = places.round().long()[:, None] + window
    distances = (around - places[:, None]).norm(dim=-1)
    around = around % size
    peaks = torch.where(distances < _LEAST_RADIUS_PX, excess[around[..., 1], around[..., 0]], 0).amax(1)
    radii = (peaks.sqrt() / math.pi).clamp(_LEAST_RADIUS_PX, _MOST_RADIUS_PX)
    inside = around[distances <= radii[:, None]]
    mask = torch.zeros(excess.shape, dtype=torch.bool)
    mask[inside[:, 1], inside[:, 0]] = True
    return mask
