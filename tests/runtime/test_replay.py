"""A step that is replayed as a CUDA graph is the step: it reads what it is given, and fails into itself."""

from collections.abc import Hashable

import pytest
import torch
from torch import Tensor

from cryoeq.runtime.replay import Replay

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CUDA = torch.device("cuda:0")


class Counted:
    """A step that counts how often Python carries it out."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, key: Hashable, values: Tensor, factor: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        doubled = values.clone()
        doubled += values
        table = torch.arange(len(values), device=values.device)
        return doubled * factor + table, values, (doubled @ doubled)[None].expand(2)


def test_on_a_cpu_nothing_is_captured(generator: torch.Generator) -> None:
    step, factor = Counted(), torch.tensor(3.0)
    replay = Replay(step)
    for _ in range(4):
        values = torch.randn(5, generator=generator)
        assert torch.equal(replay("key", values, factor)[0], 6 * values + torch.arange(5))
    assert step.calls == 4


@pytest.mark.gpu
@on_gpu
def test_a_graph_reads_what_it_is_given(generator: torch.Generator) -> None:
    step = Counted()
    replay, plain = Replay(step), Counted()
    kept = []
    for number in range(6):
        size = 5 + number % 2
        given = torch.randn(size, generator=generator).to(CUDA), torch.tensor(float(number), device=CUDA)
        found, expected = replay(size, *given), plain(size, *given)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.cpu(), other.cpu())
        kept.append((found, expected))
    assert replay.failure is None
    assert step.calls == 4  # of each size once as it stands, once for the capture
    for found, expected in kept:  # later replays have not changed them
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.cpu(), other.cpu())


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("mistake", ["wait", "copy"])
def test_what_cannot_be_captured_is_carried_out_as_it_stands(mistake: str) -> None:
    def step(key: Hashable, values: Tensor) -> tuple[Tensor, ...]:
        if mistake == "wait":
            return (values * float(values.sum()),)
        return (values + torch.arange(3).to(values.device),)

    replay = Replay(step)
    for number in range(4):
        values = torch.full((3,), float(number), device=CUDA)
        (found,) = replay("key", values)
        assert torch.equal(found, step("key", values)[0])
    assert replay.failure is not None
    assert "captur" in replay.failure
