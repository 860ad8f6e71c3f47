"""Filters of maps in Fourier space, in little memory: one transform and one map, whatever the filter."""

from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from cryoeq.geometry.shells import radius_of, slabs, squared_radii, transform_planes
from cryoeq.geometry.soft_mask import falling_cosine

_MAP = (-3, -2, -1)
_MOST_KEPT = 2**18  # voxels of a box whose filter is kept

Change = Callable[[Complex[Tensor, "n rows half"], Int[Tensor, "n rows half"]], Complex[Tensor, "n rows half"]]


def filter_map(values: Float[Tensor, "n n n"], change: Change) -> Float[Tensor, "n n n"]:
    """The map whose half transform (``torch.fft.rfftn``) was changed.

    Args:
        values: densities (z, y, x).
        change: change of the transform: given rows of it and the squared radii |k|^2 of its coefficients, returns new
            rows.
    """
    n = len(values)
    planes = _changed_planes(values, change)
    filtered = torch.empty_like(values)
    for start, stop in slabs(n):
        filtered[start:stop] = torch.fft.irfft2(planes[start:stop], s=(n, n))
    return filtered


def filter_and_mask(
    values: Float[Tensor, "n n n"], change: Change, mask: Float[Tensor, "n n n"]
) -> Complex[Tensor, "n n half"]:
    """``transform_planes`` of the map that was filtered and then masked, without that map itself.

    Args:
        values: densities (z, y, x).
        change: change of the transform, as for ``filter_map``.
        mask: mask in the box of the map.
    """
    n = len(values)
    planes = _changed_planes(values, change)
    for start, stop in slabs(n):
        masked = torch.fft.irfft2(planes[start:stop], s=(n, n)) * mask[start:stop]
        planes[start:stop] = torch.fft.rfft2(masked)
    return planes


def filter_radially(values: Float[Tensor, "n n n"], gains: Float[Tensor, " radii"]) -> Float[Tensor, "n n n"]:
    """The map with every Fourier coefficient multiplied by a factor that depends on |k| only.

    Args:
        values: densities (z, y, x).
        gains: factor of each squared radius |k|^2, from 0 to 3 (n // 2)^2.
    """
    gains, n = gains.to(values.dtype), len(values)

    def change(rows: Complex[Tensor, "n rows half"], squared: Int[Tensor, "n rows half"]) -> Tensor:
        factors = torch.take(gains, squared[: n // 2 + 1])
        return rows * torch.cat([factors, factors[1 : (n + 1) // 2].flip(0)])  # those of -z are those of z

    return filter_map(values, change)


def low_pass_gains(n: int, shell: int, edge_shells: int = 2, device: torch.device | None = None) -> Tensor:
    """Factor of each squared radius: 1 up to a shell, 0 beyond, a raised cosine in between.

    Args:
        n: side of the map.
        shell: shell at which the factor is 1/2, in cycles per box.
        edge_shells: width of the edge, centred on the shell; RELION's default is 2.
        device: device of the factors.
    """
    radii = radius_of(torch.arange(3 * (n // 2) ** 2 + 1, device=device))
    return falling_cosine((radii - max(shell - edge_shells / 2, 0.0)) / edge_shells)


def _changed_planes(values: Float[Tensor, "n n n"], change: Change) -> Complex[Tensor, "n n half"]:
    """``transform_planes`` of the map whose half transform was changed."""
    n = len(values)
    planes = transform_planes(values)
    for start, stop in slabs(n):
        squared = squared_radii(n, start, stop, values.device).transpose(0, 1)
        rows = torch.fft.fft(planes[:, start:stop], dim=0)
        planes[:, start:stop] = torch.fft.ifft(change(rows, squared), dim=0)
    return planes


def low_pass(volume: Float[Tensor, "n n n"], radius: float) -> Float[Tensor, "n n n"]:
    """The map without what lies beyond a radius in Fourier space."""
    # Moved to the origin and back once: the filter is where the transform is, and divisions as in ``fft_map``.
    n = volume.shape[-1]
    transform = torch.fft.fftn(torch.fft.ifftshift(volume, dim=_MAP), dim=_MAP) / n
    filtered = torch.fft.ifftn(transform * _is_within(n, (radius + 0.5) ** 2, volume.device), dim=_MAP)
    return torch.fft.fftshift(filtered.real, dim=_MAP) * n


def _is_within(n: int, squared_radius: float, device: torch.device) -> Bool[Tensor, "n n n"]:
    """Whether a coefficient is within a radius; the origin is at 0. That of a small box is kept: not to be changed."""
    return (_kept_within if n**3 <= _MOST_KEPT else _computed_within)(n, squared_radius, device)


def _computed_within(n: int, squared_radius: float, device: torch.device) -> Bool[Tensor, "n n n"]:
    k = torch.fft.ifftshift(torch.arange(n, device=device) - n // 2)
    return k[:, None, None] ** 2 + k[:, None] ** 2 + k**2 <= squared_radius


_kept_within = lru_cache(maxsize=32)(_computed_within)
