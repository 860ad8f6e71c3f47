"""What a GPU tells late, or never: memory that runs out, and what is touched in no known order."""

import gc
from collections.abc import Callable, Iterator

import pytest
import torch

from pretended_cuda.figures import report, reset
from pretended_cuda.machine import MACHINE, PretendedCudaError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not MACHINE.watch, reason="PRETENDED_CUDA is not set"),
]
CUDA = torch.device("cuda:0")
MB = 2**20


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What was complained about, which does not fail the test."""
    yield MACHINE.complaints
    MACHINE.complaints.clear()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Leaves so many bytes of the device."""
    gc.collect()
    torch.cuda.empty_cache()

    def leave(size: int) -> None:
        monkeypatch.setattr(MACHINE, "capacity", MACHINE.used[0] + size)

    return leave


def test_memory_runs_out(small: Callable[[int], None]) -> None:
    small(3 * MB)
    kept = torch.zeros(2 * MB, dtype=torch.uint8, device=CUDA)
    with pytest.raises(torch.OutOfMemoryError, match="pretended"):
        torch.zeros(2 * MB, dtype=torch.uint8, device=CUDA)
    del kept
    assert len(torch.zeros(2 * MB, dtype=torch.uint8, device=CUDA)) == 2 * MB


def test_the_allocator_keeps_what_tensors_free(small: Callable[[int], None]) -> None:
    small(8 * MB)
    before, held = torch.cuda.mem_get_info(CUDA)[0], torch.cuda.memory_allocated(CUDA)
    values = torch.zeros(5 * MB, dtype=torch.uint8, device=CUDA)
    assert torch.cuda.memory_allocated(CUDA) == held + 5 * MB
    del values
    assert torch.cuda.memory_allocated(CUDA) == held
    assert torch.cuda.memory_reserved(CUDA) == held + 5 * MB
    assert torch.cuda.mem_get_info(CUDA)[0] == before - 5 * MB
    torch.cuda.empty_cache()
    assert torch.cuda.mem_get_info(CUDA)[0] == before


def test_a_copy_to_the_host_comes_late() -> None:
    copied = torch.ones(3, device=CUDA).to("cpu", non_blocking=True)
    assert bool(copied.isnan().all())
    torch.cuda.synchronize()
    assert copied.tolist() == [1, 1, 1]


def test_a_pinned_source_may_not_change_under_its_copy(complaints: list[str]) -> None:
    source = torch.ones(3).pin_memory()
    assert source.is_pinned()
    assert not torch.ones(3).is_pinned()
    there = source.to(CUDA, non_blocking=True)
    torch.cuda.synchronize()
    source.add_(1)
    assert complaints == []
    there.copy_(source, non_blocking=True)
    source.add_(1)
    torch.cuda.synchronize()
    assert "pinned memory was changed" in complaints[0]


def test_two_streams_need_an_event(complaints: list[str]) -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        values = torch.ones(3).pin_memory().to(CUDA, non_blocking=True)
    with pytest.raises(PretendedCudaError, match="no event orders them"):
        values + 1
    assert len(complaints) == 1
    with torch.cuda.stream(stream):
        values = torch.ones(3).pin_memory().to(CUDA, non_blocking=True)
        copied = stream.record_event()
    torch.cuda.current_stream().wait_event(copied)
    assert (values + 1).tolist() == [2, 2, 2]
    assert len(complaints) == 1


@pytest.mark.parametrize("is_recorded", [True, False])
def test_memory_of_another_stream_needs_record_stream(complaints: list[str], is_recorded: bool) -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        values = torch.ones(3).pin_memory().to(CUDA, non_blocking=True)
        copied = stream.record_event()
    torch.cuda.current_stream().wait_event(copied)
    if is_recorded:
        values.record_stream(torch.cuda.current_stream())
    used = values + 1
    del values
    gc.collect()
    assert [("record_stream" in said) for said in complaints] == [True] * (not is_recorded)
    assert len(used) == 3


def test_kernels_bytes_and_waits_are_counted() -> None:
    reset()
    values = torch.ones(1000, device=CUDA)  # empty, fill_
    total = (values + values).sum()
    before = report()["waits"]
    assert float(total) == 2000
    seen = report()
    assert seen["kernels_by_name"]["add.Tensor"] == 1
    assert seen["kernels_by_name"]["sum.dim_IntList"] == 1
    assert seen["bytes"] >= 4 * 1000 * 4
    assert seen["waits"] == before + 1
    reset()
    assert report()["kernels"] == 0
