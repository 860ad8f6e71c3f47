"""Non-uniform references of a refinement: used where noise gains nothing by them, else left out and told."""

import pytest
import torch
from torch import Tensor

from cryoeq.geometry.map_filter import filter_radially, low_pass_gains
from cryoeq.pipelines.reconstruct import nonuniform
from cryoeq.pipelines.reconstruct.nonuniform import NonuniformReferences

N, SIDE = 32, 96.0


def halves() -> tuple[Tensor, Tensor]:
    noise = torch.randn(3, N, N, N, generator=torch.Generator().manual_seed(0))
    signal = filter_radially(noise[0], low_pass_gains(N, 8))
    return signal / signal.std() + noise[1], signal / signal.std() + noise[2]


def test_half_maps_are_nearer_to_each_other_after_the_filter() -> None:
    references, (first, second) = NonuniformReferences(SIDE), halves()
    assert references.note() is None
    filtered = references((first, second))
    assert filtered is not None
    before, after = ((one - other).square().mean() for one, other in ((first, second), filtered))
    assert float(after) < 0.5 * float(before)
    note = references.note()
    assert note is not None
    assert (note.level, "Non-uniform filter" in note.text) == ("info", True)


def test_a_filter_by_which_noise_gains_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonuniform, "noise_gain", lambda *_: 0.03)
    references = NonuniformReferences(SIDE)
    assert references(halves()) is None
    note = references.note()
    assert note is not None
    assert note.level == "warning"
    assert "0.030" in note.text
