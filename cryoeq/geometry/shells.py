"""Shells of the transforms of maps: correlation and power, in float64 and plane by plane.

Sums are first taken over each squared radius |k|^2, an integer, and then over shells: the index is exact and cheap, and
a filter of |k| can be applied to the sums instead of to the transform.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoeq.geometry.fourier import fft_map, ifft_map

_SLAB_COEFFICIENTS = 2**18


@dataclass(frozen=True)
class ShellSpectra:
    """Sums over the stored coefficients of each shell of two transforms, in float64.

    Args:
        cross: real part of the cross product.
        power_first: |F|^2 of the first.
        power_second: |F|^2 of the second.
    """

    cross: Float[Tensor, " shells"]
    power_first: Float[Tensor, " shells"]
    power_second: Float[Tensor, " shells"]

    @property
    def correlation(self) -> Float[Tensor, " shells"]:
        """Fourier shell correlation; 0 where a shell of either map is empty."""
        power = self.power_first * self.power_second
        return torch.where(power > 0, self.cross / power.clamp(min=torch.finfo(power.dtype).tiny).sqrt(), 0.0)


def fourier_shell_correlation(
    first: Float[Tensor, "n n n"], second: Float[Tensor, "n n n"], mask: Float[Tensor, "n n n"] | None = None
) -> Float[Tensor, " shells"]:
    """Correlation of two maps in each of the n // 2 + 1 shells, in float64.

    Args:
        first: densities.
        second: densities in the same frame.
        mask: multiplied onto both beforehand, between 0 and 1.
    """
    first_hat, second_hat = (torch.fft.rfftn(values if mask is None else values * mask) for values in (first, second))
    return shell_spectra(first_hat, second_hat).correlation


def shell_spectra(first_hat: Complex[Tensor, "n n half"], second_hat: Complex[Tensor, "n n half"]) -> ShellSpectra:
    """Cross product and power per shell of the half transforms (``torch.fft.rfftn``) of two maps."""
    n = len(first_hat)
    sums = torch.zeros(3, _n_radii(n), dtype=torch.float64, device=first_hat.device)
    for start, stop in slabs(n):
        first, second = first_hat[start:stop], second_hat[start:stop]
        cross = first.real * second.real + first.imag * second.imag
        sums += _sum_over_radii((cross, _power(first), _power(second)), squared_radii(n, start, stop, cross.device))
    return ShellSpectra(*fold_into_shells(sums, n))


def amplitudes_by_radius(transform: Complex[Tensor, "n n half"]) -> Float[Tensor, "2 radii"]:
    """Sum of |F| over the stored coefficients of each squared radius of a half transform, and their number."""
    n = len(transform)
    sums = torch.zeros(2, _n_radii(n), dtype=torch.float64, device=transform.device)
    for start, stop in slabs(n):
        amplitudes = transform[start:stop].abs()
        radii = squared_radii(n, start, stop, transform.device)
        sums += _sum_over_radii((amplitudes, torch.ones_like(amplitudes)), radii)
    return sums


def fold_into_shells(sums: Float[Tensor, "kinds radii"], n: int) -> Float[Tensor, "kinds shells"]:
    """Sums over the n // 2 + 1 shells ROUND(|k|) from sums over squared radii, without the corners beyond Nyquist."""
    shells = radius_of(torch.arange(sums.shape[1], device=sums.device)).add(0.5).long().clamp(max=n // 2 + 1)
    return sums.new_zeros(len(sums), n // 2 + 2).index_add(1, shells, sums)[:, :-1]


def radius_of(squared: Int[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """|k| in float64 of squared radii."""
    return squared.double().sqrt()


def shell_power(volume: Float[Tensor, "n n n"]) -> Float[Tensor, " shells"]:
    """Mean |V|^2 of the coefficients of each of the n // 2 + 1 shells, scaled as ``fourier.fft_map``."""
    n = volume.shape[-1]
    transform = torch.fft.rfftn(volume) / n
    spectra = shell_spectra(transform, torch.ones_like(transform))
    return (spectra.power_first / spectra.power_second).to(volume.dtype)


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


def _n_radii(n: int) -> int:
    return 3 * (n // 2) ** 2 + 1


def _power(transform: Complex[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    return transform.real.square() + transform.imag.square()


def _sum_over_radii(
    values: tuple[Float[Tensor, "planes n half"], ...], squared: Int[Tensor, "planes n half"]
) -> Float[Tensor, "kinds radii"]:
    """Sum of each kind of values over every squared radius."""
    n, index = squared.shape[1], squared.flatten()
    return torch.stack([torch.bincount(index, kind.flatten().double(), _n_radii(n)) for kind in values])
