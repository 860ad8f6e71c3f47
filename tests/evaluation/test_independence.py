"""Maps that are no independent halves are told from those that are."""

import pytest
import torch
from torch import Tensor

from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError
from cryoeq.evaluation.independence import (
    are_the_same,
    find_dependence,
    find_inverted_contrast,
    is_masked,
    reaches_nyquist,
    require_independent,
)
from cryoeq.evaluation.resolution import FscCurves, compare_maps
from cryoeq.geometry.map_filter import filter_map

N = 32


@pytest.fixture
def halves(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two maps whose signal falls off, under white noise."""
    k = torch.arange(N) - N // 2
    blob = 30 * torch.exp(-(k[:, None, None] ** 2 + 2 * k[:, None] ** 2 + (k - 2) ** 2) / 8)
    first, second = (blob + torch.randn(N, N, N, generator=generator) for _ in range(2))
    return first, second


def curves(first: Tensor, second: Tensor) -> FscCurves:
    return compare_maps(Volume(first, 2.0), Volume(second, 2.0))


def test_halves_are_let_pass(halves: tuple[Tensor, Tensor]) -> None:
    require_independent(curves(*halves))
    require_independent(curves(halves[0], 0.2 * halves[1]))


def test_good_halves_are_let_pass_though_their_fsc_stays_high(generator: torch.Generator) -> None:
    signal = torch.randn(N, N, N, generator=generator)
    first, second = (signal + 0.5 * torch.randn(N, N, N, generator=generator) for _ in range(2))
    found = curves(first, second)
    assert 0.6 < float(found.unmasked[4:].min()) < 0.85
    require_independent(found)


@pytest.mark.parametrize("factor", [1.0, -0.5, 3.0])
def test_one_map_twice_is_refused(halves: tuple[Tensor, Tensor], factor: float) -> None:
    same = curves(halves[0], factor * halves[0])
    assert are_the_same(same) == (factor > 0)
    found = "are the same map: their FSC is at least" if factor > 0 else "anticorrelate: their FSC is -1.00"
    with pytest.raises(MapFileError, match=found):
        require_independent(same)
    assert not are_the_same(curves(*halves))


@pytest.mark.parametrize("scale", [1.0, -0.01])
def test_inverted_contrast_is_told_from_nothing_in_common(
    halves: tuple[Tensor, Tensor], generator: torch.Generator, scale: float
) -> None:
    inverted = find_inverted_contrast(curves(halves[0], -abs(scale) * halves[1]))
    assert inverted is not None
    assert "from 64.0 to" in inverted.found
    assert find_inverted_contrast(curves(halves[0], abs(scale) * halves[1])) is None
    for _ in range(20):
        first, second = (torch.randn(N, N, N, generator=generator) for _ in range(2))
        assert find_dependence(curves(first, scale * second)) is None


def test_inverted_contrast_is_found_beside_a_background(halves: tuple[Tensor, Tensor]) -> None:
    """A gradient that both halves have makes the first shell agree."""
    background = torch.cos(2 * torch.pi * torch.arange(N) / N)
    found = curves(halves[0] + background, background - halves[1])
    assert float(found.unmasked[1]) > 0
    assert find_inverted_contrast(found) is not None


@pytest.mark.parametrize("is_soft", [False, True])
def test_a_filtered_copy_is_refused(halves: tuple[Tensor, Tensor], is_soft: bool) -> None:
    def low_pass(rows: Tensor, squared: Tensor) -> Tensor:
        radii = squared.sqrt()
        return rows * ((11 - radii).div(3).clamp(0, 1) if is_soft else radii < 8)

    copy = 3 * filter_map(halves[0], low_pass)
    with pytest.raises(MapFileError, match="the second map is a filtered copy of the other"):
        require_independent(curves(halves[0], copy))
    with pytest.raises(MapFileError, match="the first map is a filtered copy of the other"):
        require_independent(curves(copy, halves[0]))
    require_independent(curves(halves[1], copy))


def test_a_masked_map_is_told_from_one_with_empty_corners(halves: tuple[Tensor, Tensor]) -> None:
    k = torch.arange(N) - N // 2
    squared = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2
    for radius, expected in ((N // 2, False), (N // 3, True)):
        assert is_masked(Volume(halves[0] * (squared < radius**2), 2.0)) is expected
    assert not is_masked(Volume(halves[0], 2.0))


def test_nyquist_is_reached_where_no_shell_is_below(halves: tuple[Tensor, Tensor]) -> None:
    assert reaches_nyquist(curves(halves[0], halves[0] + halves[1]))
    assert not reaches_nyquist(curves(*halves))


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_a_half_with_the_average_or_the_sum_is_refused(halves: tuple[Tensor, Tensor], weight: float) -> None:
    full = weight * (halves[0] + halves[1])
    with pytest.raises(MapFileError, match="the second map is the average or sum of both halves"):
        require_independent(curves(halves[0], full))
    with pytest.raises(MapFileError, match="the first map is the average or sum of both halves"):
        require_independent(curves(full, halves[1]))
