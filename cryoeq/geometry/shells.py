"""Shells of the transforms of maps: correlation and power, in float64 and plane by plane."""

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoeq.geometry.fourier import fft_map, ifft_map

_SLAB_COEFFICIENTS = 2**22


def fourier_shell_correlation(
    first: Float[Tensor, "n n n"], second: Float[Tensor, "n n n"], mask: Float[Tensor, "n n n"] | None = None
) -> Float[Tensor, " shells"]:
    """Correlation of two maps in each of the n // 2 + 1 shells, in float64.

    Args:
        first: densities.
        second: densities in the same frame.
        mask: multiplied onto both beforehand, between 0 and 1.
    """
    if mask is not None:
        first, second = first * mask, second * mask
    first_hat, second_hat = torch.fft.rfftn(first), torch.fft.rfftn(second)
    sums = torch.zeros(3, first.shape[-1] // 2 + 1, dtype=torch.float64, device=first.device)
    for start, stop in slabs(first.shape[-1]):
        sums += _shell_sums(first_hat[start:stop], second_hat[start:stop], start, first.shape[-1])
    cross, power_first, power_second = sums
    power = power_first * power_second
    return torch.where(power > 0, cross / power.clamp(min=torch.finfo(torch.float64).tiny).sqrt(), 0.0)


def shell_power(volume: Float[Tensor, "n n n"]) -> Float[Tensor, " shells"]:
    """Mean |V|^2 of the coefficients of each of the n // 2 + 1 shells, scaled as ``fourier.fft_map``."""
    n = volume.shape[-1]
    transform = torch.fft.rfftn(volume) / n
    ones = torch.ones_like(transform)
    sums = sum((_shell_sums(transform[a:b], ones[a:b], a, n) for a, b in slabs(n)), torch.zeros(3, 1))
    return (sums[1] / sums[2]).to(volume.dtype)


def remove_round_part(volume: Float[Tensor, "n n n"]) -> Float[Tensor, "n n n"]:
    """The map without its rotational average: each coefficient less the mean over all with the same |k|."""
    n = volume.shape[-1]
    k = torch.arange(n, device=volume.device) - n // 2
    squared = (k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).flatten()
    transform = fft_map(volume)
    counts = squared.bincount().clamp(min=1)
    means = torch.zeros_like(counts, dtype=volume.dtype).index_add(0, squared, transform.real.flatten()) / counts
    return ifft_map(transform - means[squared].view_as(volume))


def slabs(n: int) -> list[tuple[int, int]]:
    """Ranges of z planes of a half transform, so that the work space of a large map stays small."""
    step = max(1, _SLAB_COEFFICIENTS // (n * (n // 2 + 1)))
    return [(start, min(start + step, n)) for start in range(0, n, step)]


def squared_radii(n: int, start: int, stop: int, device: torch.device) -> Int[Tensor, "planes n half"]:
    """|k|^2 of the z planes ``start`` to ``stop`` of the stored half transform of an n-pixel map."""
    k = torch.arange(n, device=device)
    k = torch.where(k > n // 2, k - n, k)
    return k[start:stop, None, None] ** 2 + k[:, None] ** 2 + k[: n // 2 + 1] ** 2


def _shell_sums(
    first: Complex[Tensor, "planes n half"], second: Complex[Tensor, "planes n half"], start: int, n: int
) -> Float[Tensor, "3 shells"]:
    """Per shell: real part of the cross product, power of the first, power of the second."""
    n_shells = n // 2 + 1
    radii = squared_radii(n, start, start + len(first), first.device).double().sqrt()
    # The corners beyond Nyquist share one more shell, which is dropped.
    shells = (radii + 0.5).floor().long().clamp(max=n_shells).flatten()
    products = ((first * second.conj()).real, first.abs().square(), second.abs().square())
    sums = [torch.bincount(shells, product.flatten().double(), minlength=n_shells + 1) for product in products]
    return torch.stack(sums)[:, :n_shells]
