"""Batches come as they would without a thread: the same ones in the same order, with the same errors in their place."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch

from cryoeq.data.prefetch import prefetch
from cryoeq.domain.particles import ParticleBatch
from cryoeq.errors import ParticleFileError

CPU = torch.device("cpu")


def batches(read: list[int], *, failing: int = 99) -> Iterator[ParticleBatch]:
    for number in range(6):
        if number == failing:
            raise ParticleFileError(f"stack.mrcs: image {number}")
        read.append(number)
        yield ParticleBatch(torch.tensor([number]), torch.full((1, 4, 4), float(number)), None)


def readers() -> int:
    return sum(thread.name.startswith("prefetch") for thread in threading.enumerate())


def test_order_and_number() -> None:
    read: list[int] = []
    ahead, before = [], readers()
    for count, batch in enumerate(prefetch(batches(read), CPU)):
        assert float(batch.images[0, 0, 0]) == int(batch.indices) == count
        ahead.append(len(read) - count)
    assert read == list(range(6))
    assert max(ahead) <= 3  # in use, and two more
    assert readers() == before


def test_an_error_comes_where_its_batch_would() -> None:
    ahead, before = prefetch(batches([], failing=3), CPU), readers()
    assert [int(next(ahead).indices) for _ in range(3)] == [0, 1, 2]
    assert readers() == before + 1
    with pytest.raises(ParticleFileError, match=r"stack\.mrcs: image 3"):
        next(ahead)
    assert readers() == before


def test_who_stops_early_leaves_no_thread() -> None:
    read: list[int] = []
    before = readers()
    with closing(prefetch(batches(read), CPU)) as ahead:
        next(ahead)
    assert readers() == before
    assert len(read) <= 3


def test_nothing_to_read() -> None:
    assert list(prefetch(iter(()), CPU)) == []


@pytest.mark.gpu
def test_copies_on_a_gpu_are_whole() -> None:
    """Read while the GPU is busy, and again after their memory was used for others."""
    device = torch.device("cuda:0")
    for number, batch in enumerate(prefetch(batches([]), device)):
        torch.cuda._sleep(10_000_000)
        assert batch.images.device == device
        assert bool((batch.images == number).all())
