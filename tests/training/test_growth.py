"""The half sets' iterations: what their sums reach."""

from collections.abc import Callable
from typing import Any

import torch

from cryoeq.training.basin import Basin
from cryoeq.training.growth import GrowthSettings, GrowthState, Steps, begin_growth, finish, grow

Make = Callable[..., Any]


def at_the_end(steps: Steps) -> GrowthState:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def test_sums_reach_the_last_shell_though_the_poses_do_not(make_known: Make, observe: Make) -> None:
    images = observe(make_known(24, sigma=30.0).dataset)
    volume = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(0))
    settings = GrowthSettings(1, 7, (3,), 0, 24, 1, 0.0, 0.42, torch.eye(3)[None])
    half_set = torch.arange(24) % 2 + 1
    state = begin_growth(Basin(volume, torch.zeros(24, 2), 0.0), images, half_set, settings, 3)
    halves = at_the_end(grow(state, images, settings, seed=0))
    every = at_the_end(finish(halves, images, settings, seed=0))
    for found in (halves, every):
        assert found.sums is not None
        for sums in found.sums:
            assert (sums.shell_weights[1:8] > 0).all()
