"""Maps that are no independent halves are told from those that are."""

import pytest
import torch
from torch import Tensor

from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError
from cryoeq.evaluation.independence import are_the_same, require_independent
from cryoeq.evaluation.resolution import FscCurves, compare_maps

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
    if factor > 0:
        with pytest.raises(MapFileError, match="are the same map: their FSC is at least"):
            require_independent(same)
    assert not are_the_same(curves(*halves))


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_a_half_with_the_average_or_the_sum_is_refused(halves: tuple[Tensor, Tensor], weight: float) -> None:
    full = weight * (halves[0] + halves[1])
    with pytest.raises(MapFileError, match="the second map is the average or sum of both halves"):
        require_independent(curves(halves[0], full))
    with pytest.raises(MapFileError, match="the first map is the average or sum of both halves"):
        require_independent(curves(full, halves[1]))
