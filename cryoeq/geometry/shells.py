"""Shells of the transforms of maps: correlation and power, in float64 and plane by plane.

Sums are first taken over each squared radius |k|^2, an integer, and then over shells: the index is exact and cheap, and
a filter of |k| can be applied to the sums instead of to the transform.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoeq.geometry.fourier import fft_map, ifft_map

_SLAB_COEFFICIENTS = 2**18
_LARGER_ON_GPU = 64
_FSC_RANGE = (1e-3, 0.999)  # beyond it, a signal-to-noise ratio is mere chance


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
    return shell_spectra(transform_planes(first, mask), transform_planes(second, mask)).correlation


def signal_to_noise(fsc: Float[Tensor, " shells"]) -> Float[Tensor, " shells"]:
    """Signal-to-noise ratio of one half map per shell.

    Shell 0 is the mean density, a single number whose correlation has no meaning: that of its neighbour stands in.
    """
    reliable = torch.cat([fsc[1:2], fsc[1:]]).clamp(*_FSC_RANGE)
    return reliable / (1 - reliable)


def transform_planes(
    values: Float[Tensor, "n n n"], mask: Float[Tensor, "n n n"] | None = None
) -> Complex[Tensor, "n n half"]:
    """The transform of each z plane of a map, times a mask if there is one: a half transform but for the last axis, z.

    That is taken row by row where it is needed, so that neither the product nor the whole transform need be stored.
    """
    n = len(values)
    planes = values.new_empty(n, n, n // 2 + 1, dtype=values.dtype.to_complex())
    for start, stop in slabs(n, values.device):
        slab = slice(start, stop)
        planes[slab] = torch.fft.rfft2(values[slab] if mask is None else values[slab] * mask[slab])
    return planes


def shell_spectra(first: Complex[Tensor, "n n half"], second: Complex[Tensor, "n n half"]) -> ShellSpectra:
    """Cross product and power per shell of two maps, of which ``transform_planes`` are given."""

    def products(one: Tensor, other: Tensor) -> tuple[Tensor, ...]:
        return _real_product(one, other), _real_product(one, one), _real_product(other, other)

    return ShellSpectra(*fold_into_shells(_sums_over_rows(products, 3, first, second), len(first)))


def amplitudes_by_radius(planes: Complex[Tensor, "n n half"]) -> Float[Tensor, "2 radii"]:
    """Sum of |F| over the stored coefficients of each squared radius, and their number; of ``transform_planes``."""

    def amplitudes(rows: Tensor) -> tuple[Tensor, ...]:
        found = rows.abs()
        return found, torch.ones_like(found)

    return _sums_over_rows(amplitudes, 2, planes)


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

    def powers(rows: Tensor) -> tuple[Tensor, ...]:
        found = _real_product(rows, rows)
        return found, torch.ones_like(found)

    power, number = fold_into_shells(_sums_over_rows(powers, 2, transform_planes(volume)), n)
    return (power / number / n**2).to(volume.dtype)


def remove_round_part(volume: Float[Tensor, "n n n"]) -> Float[Tensor, "n n n"]:
    """The map without its rotational average: each coefficient less the mean over all with the same |k|."""
    n = volume.shape[-1]
    k = torch.arange(n, device=volume.device) - n // 2
    squared = (k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).flatten()
    transform = fft_map(volume)
    counts = squared.bincount().clamp(min=1)
    means = torch.zeros_like(counts, dtype=volume.dtype).index_add(0, squared, transform.real.flatten()) / counts
    return ifft_map(transform - means[squared].view_as(volume))


def slabs(n: int, device: torch.device | None = None) -> list[tuple[int, int]]:
    """Ranges of z planes of a half transform, so that the work space of a large map stays small.

    Args:
        n: side of the map.
        device: where they are worked on; None for the CPU. A GPU gets more at a time, lest it wait for its orders.
    """
    coefficients = _SLAB_COEFFICIENTS * (_LARGER_ON_GPU if device is not None and device.type == "cuda" else 1)
    step = max(1, coefficients // (n * (n // 2 + 1)))
    return [(start, min(start + step, n)) for start in range(0, n, step)]


def squared_radii(n: int, start: int, stop: int, device: torch.device) -> Int[Tensor, "planes n half"]:
    """|k|^2 of the z planes ``start`` to ``stop`` of the stored half transform of an n-pixel map."""
    k = torch.arange(n, device=device)
    k = torch.where(k > n // 2, k - n, k)
    return k[start:stop, None, None] ** 2 + k[:, None] ** 2 + k[: n // 2 + 1] ** 2


def _n_radii(n: int) -> int:
    return 3 * (n // 2) ** 2 + 1


def _real_product(first: Complex[Tensor, "*any"], second: Complex[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Real part of first times second conjugate."""
    return first.real * second.real + first.imag * second.imag


def _sums_over_rows(
    kinds_of: Callable[..., tuple[Float[Tensor, "n rows half"], ...]], count: int, *planes: Complex[Tensor, "n n half"]
) -> Float[Tensor, "kinds radii"]:
    """Sums over every squared radius of what is made of rows of transforms, of which the planes are given.

    Coefficients at z and -z have one radius: they are added first, which halves the work.
    """
    n, half = len(planes[0]), len(planes[0]) // 2 + 1
    sums = torch.zeros(count, _n_radii(n), dtype=torch.float64, device=planes[0].device)
    for start, stop in slabs(n, sums.device):
        radii = squared_radii(n, start, stop, sums.device)[:, :half].transpose(0, 1).flatten()
        rows = (torch.fft.fft(transform[:, start:stop], dim=0) for transform in planes)
        for number, values in enumerate(kinds_of(*rows)):
            folded = torch.cat(
                [values[:1], values[1 : (n + 1) // 2] + values[half:].flip(0), values[(n + 1) // 2 : half]]
            )
            sums[number].scatter_add_(0, radii, folded.double().flatten())
    return sums
