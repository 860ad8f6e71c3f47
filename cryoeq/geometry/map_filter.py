"""Filters of maps in Fourier space, in little memory: one transform and one map, whatever the filter."""

from collections.abc import Callable

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoeq.geometry.shells import radius_of, slabs, squared_radii

Change = Callable[[Complex[Tensor, "n rows half"], Int[Tensor, "n rows half"]], Complex[Tensor, "n rows half"]]


def filter_map(values: Float[Tensor, "n n n"], change: Change) -> Float[Tensor, "n n n"]:
    """The map whose half transform (``torch.fft.rfftn``) was changed.

    The way back goes plane by plane: the inverse transform of torch copies its whole input first, and takes longer.

    Args:
        values: densities.
        change: given rows of the half transform and the squared radii |k|^2 of its coefficients, returns the new rows.
    """
    n = values.shape[-1]
    transform = torch.fft.rfftn(values)
    for start, stop in slabs(n):
        squared = squared_radii(n, start, stop, values.device).transpose(0, 1)
        transform[:, start:stop] = torch.fft.ifft(change(transform[:, start:stop], squared), dim=0)
    filtered = torch.empty_like(values)
    for start, stop in slabs(n):
        filtered[start:stop] = torch.fft.irfft2(transform[start:stop], s=(n, n))
    return filtered


def filter_radially(values: Float[Tensor, "n n n"], gains: Float[Tensor, " radii"]) -> Float[Tensor, "n n n"]:
    """The map with every Fourier coefficient multiplied by a factor that depends on |k| only.

    Args:
        values: densities.
        gains: factor of each squared radius |k|^2, from 0 to 3 (n // 2)^2.
    """
    gains = gains.to(values.dtype)
    return filter_map(values, lambda rows, squared: rows * gains[squared])


def low_pass_gains(n: int, shell: int, edge_shells: int = 2, device: torch.device | None = None) -> Tensor:
    """Factor of each squared radius: 1 up to a shell, 0 beyond, a raised cosine in between.

    Args:
        n: side of the map.
        shell: where the factor is 1/2, in cycles per box.
        edge_shells: width of the edge, centred on the shell: RELION's default.
        device: of the result.
    """
    radii = radius_of(torch.arange(3 * (n // 2) ** 2 + 1, device=device))
    return raised_cosine((radii - max(shell - edge_shells / 2, 0.0)) / edge_shells)


def raised_cosine(depth: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Falls from 1 at depth 0 and below to 0 at depth 1 and above, as a half period of a cosine."""
    return torch.cos(depth.clamp(0, 1) * torch.pi).add(1).div(2)
