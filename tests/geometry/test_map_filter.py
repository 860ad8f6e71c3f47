"""Filters in Fourier space against the plain transform there and back."""

import pytest
import torch

from cryoeq.geometry import shells
from cryoeq.geometry.map_filter import filter_map, filter_radially, low_pass_gains
from cryoeq.geometry.shells import squared_radii


@pytest.mark.parametrize("n", [15, 16])
def test_a_filter_is_a_product_with_the_transform(
    n: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shells, "_SLAB_COEFFICIENTS", 4 * n * (n // 2 + 1))  # several slabs
    values = torch.randn(n, n, n, generator=generator, dtype=torch.float64)
    kept = values.clone()
    squared = squared_radii(n, 0, n, values.device)
    gains = torch.rand(3 * (n // 2) ** 2 + 1, generator=generator, dtype=torch.float64)
    expected = torch.fft.irfftn(torch.fft.rfftn(values) * gains[squared], s=values.shape)
    torch.testing.assert_close(filter_radially(values, gains), expected)
    asked = []

    def change(rows: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
        asked.append(radii)
        return rows

    torch.testing.assert_close(filter_map(values, change), values)
    assert torch.equal(torch.cat(asked, dim=1), squared)
    assert torch.equal(values, kept)


def test_the_edge_of_a_low_pass_filter_is_centred_on_its_shell() -> None:
    gains = low_pass_gains(16, 5)
    assert gains[:17].eq(1).all()
    assert float(gains[25]) == pytest.approx(0.5)
    assert gains[36:].abs().max() < 1e-15
    assert bool((gains.diff() <= 0).all())
