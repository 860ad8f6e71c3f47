"""Shells of maps against sums over the full, centred transform."""

import pytest
import torch

from cryoeq.geometry import shells
from cryoeq.geometry.fourier import fft_map, shell_index
from cryoeq.geometry.shells import fourier_shell_correlation, shell_power, squared_radii


def shell_sums(values: torch.Tensor) -> torch.Tensor:
    """Sum of values of a centred transform over the half of each shell that RELION stores: kx >= 0, up to Nyquist."""
    n = values.shape[-1]
    kx = torch.arange(n) - n // 2
    # At even n the Nyquist plane stands for both its signs.
    stored = ((kx >= 0) | (kx == -n / 2)).expand(n, n, n)
    shells = shell_index(n, 3)
    return torch.stack([values[stored & (shells == shell)].sum() for shell in range(n // 2 + 1)])


@pytest.fixture(params=[15, 16])
def maps(request: pytest.FixtureRequest, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    n = request.param
    first = torch.randn(n, n, n, generator=generator)
    return first, 0.5 * first + torch.randn(n, n, n, generator=generator)


def test_power_is_the_mean_over_the_full_transform(maps: tuple[torch.Tensor, torch.Tensor]) -> None:
    power = fft_map(maps[0]).abs().square()
    expected = shell_sums(power) / shell_sums(torch.ones_like(power))
    found = shell_power(maps[0])
    assert found.dtype == maps[0].dtype
    assert len(found) == len(expected)
    torch.testing.assert_close(found, expected)


def test_correlation_is_that_of_the_full_transform(maps: tuple[torch.Tensor, torch.Tensor]) -> None:
    first, second = (fft_map(volume.double()) for volume in maps)
    cross = shell_sums((first * second.conj()).real)
    expected = cross / (shell_sums(first.abs().square()) * shell_sums(second.abs().square())).sqrt()
    torch.testing.assert_close(fourier_shell_correlation(*maps), expected)


def test_slabs_make_no_difference(maps: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shell_power(maps[0])
    n = len(maps[0])
    monkeypatch.setattr(shells, "_SLAB_COEFFICIENTS", 4 * n * (n // 2 + 1))
    assert shells.slabs(n)[:2] == [(0, 4), (4, 8)]
    assert shells.slabs(n)[-1][1] == n
    torch.testing.assert_close(shell_power(maps[0]), whole)


@pytest.mark.parametrize("n", [7, 8])
def test_squared_radii_are_those_of_the_half_transform(n: int) -> None:
    k = torch.fft.fftfreq(n, 1 / n).square()
    expected = k[2:5, None, None] + k[:, None] + torch.fft.rfftfreq(n, 1 / n).square()
    assert torch.equal(squared_radii(n, 2, 5, torch.device("cpu")).float(), expected)
