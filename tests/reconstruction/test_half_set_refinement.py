"""The half sets' iterations: what their sums reach."""

from collections.abc import Callable
from typing import Any

import torch

from cryoeq.geometry.fourier import fft_map
from cryoeq.geometry.map_filter import low_pass
from cryoeq.reconstruction.half_set_refinement import begin_refinement, final_iteration, refine_half_sets, to_box
from cryoeq.reconstruction.initial_model import InitialModel
from cryoeq.reconstruction.state import RefinementSettings, RefinementState, Steps

Make = Callable[..., Any]


def at_the_end(steps: Steps) -> RefinementState:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def test_sums_reach_the_last_shell_though_the_poses_do_not(make_known: Make, observe: Make) -> None:
    images = observe(make_known(24, sigma=30.0).dataset)
    volume = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(0))
    settings = RefinementSettings(1, 7, (3,), 0, 24, 1, 0.0, 0.42, torch.eye(3)[None])
    half_set = torch.arange(24) % 2 + 1
    state = begin_refinement(InitialModel(volume, torch.zeros(24, 2), 0.0), images, half_set, settings, 3)
    halves = at_the_end(refine_half_sets(state, images, settings, seed=0))
    every = at_the_end(final_iteration(halves, images, settings, seed=0))
    for found in (halves, every):
        assert found.sums is not None
        for sums in found.sums:
            assert (sums.shell_weights[1:8] > 0).all()


def test_a_larger_box_keeps_map_poses_and_shells() -> None:
    """Of a state in half the box: the same coefficients, shifts in the new pixels, no shell made up."""
    n, generator = 16, torch.Generator().manual_seed(0)
    volume = low_pass(torch.randn(n, n, n, generator=generator), 6)
    state = RefinementState(
        maps=(volume, volume), half_set=torch.tensor([1, 2]), rotations=torch.eye(3).repeat(2, 1, 1),
        shifts_px=torch.tensor([[1.0, -2.0], [0.5, 0.0]]), confidence=torch.ones(2), log_evidence=torch.zeros(2),
        fsc=torch.ones(n // 2 + 1), radius=6, iteration=3,
    )  # fmt: skip
    larger = to_box(state, 2 * n)
    inner = slice(n // 2, 3 * n // 2)
    torch.testing.assert_close(fft_map(larger.maps[0])[inner, inner, inner], fft_map(volume), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(larger.shifts_px, 2 * state.shifts_px)
    assert larger.fsc.shape == (n + 1,)
    assert not larger.fsc[n // 2 + 1 :].any()
    assert to_box(state, n) is state
