"""Batches side by side give what they give one after the other, and leave torch's threads as they were."""

import ctypes
import subprocess
import sys

import pytest
import torch

from cryoeq.runtime.batching import in_parallel, numbers_at_a_time


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_order_and_threads_are_given_back(count: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        batches = torch.arange(20).split(3)
        results = list(in_parallel(lambda rows: (rows * rows, torch.get_num_threads()), batches))
        assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(torch.cat([values for values, _ in results]), torch.arange(20).square())
    assert {threads for _, threads in results} == {1}


def test_an_error_in_a_batch_comes_out() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)

    def fail(rows: torch.Tensor) -> int:
        raise RuntimeError(f"row {int(rows[0])}")

    try:
        with pytest.raises(RuntimeError, match="row 0"):
            list(in_parallel(fail, torch.arange(4).split(2)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_batch_too_large_for_memory_is_halved_and_so_are_those_after_it() -> None:
    before, sizes = torch.get_num_threads(), []
    torch.set_num_threads(1)

    def square(rows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("of the GPU")
        return rows * rows

    try:
        results = list(in_parallel(square, torch.arange(20).split(8)))
    finally:
        torch.set_num_threads(before)
    assert torch.cat(results).tolist() == torch.arange(20).square().tolist()
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]


def test_one_image_that_does_not_fit_is_an_error() -> None:
    def fail(rows: torch.Tensor) -> None:
        raise torch.OutOfMemoryError(f"{len(rows)} rows")

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.raises(torch.OutOfMemoryError, match="1 rows"):
            list(in_parallel(fail, torch.arange(4).split(4)))
    finally:
        torch.set_num_threads(before)


def test_batches_follow_the_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert numbers_at_a_time(torch.device("cpu"), 1000) == 1000
    found = []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * 2**19)  # of torch's allocator,
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2 * 2**19)  # all but 512 KiB in use
    for free in (2**20, 2**32, 2**40):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free - 2**19, 2**40))
        found.append(numbers_at_a_time(torch.device("cuda", 0), 1000))
    assert found == [2**21, 2**27, 2**30]


@pytest.mark.gpu
def test_what_the_allocator_keeps_is_free() -> None:
    device = torch.device("cuda:0")
    torch.cuda.empty_cache()
    before = numbers_at_a_time(device, 1000)
    values = torch.zeros(2**25, device=device)  # 128 MiB
    less = numbers_at_a_time(device, 1000)
    del values
    assert torch.cuda.memory_reserved(device) >= torch.cuda.memory_allocated(device) + 2**27
    assert numbers_at_a_time(device, 1000) == pytest.approx(before, abs=2**10)
    assert less < before or before == 2**30


GROWING = """
import random, sys, psutil, torch
from cryoeq.runtime.batching import return_large_arrays
if sys.argv[1] == "returned":
    return_large_arrays()
process, most, kept = psutil.Process(), 0, []
generator = random.Random(0)
for _ in range(200):
    arrays = [torch.ones(generator.randrange(2**21 + 1024, 2**22 + 2**21)) for _ in range(4)]
    kept.append(torch.ones(generator.randrange(2**14, 2**16)))
    most = max(most, process.memory_info().rss)
    del arrays
print(process.memory_info().rss - 4 * sum(map(len, kept)))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
def test_large_arrays_are_returned_to_the_system() -> None:
    """Arrays of 8 to 24 MiB, each of another size, with smaller ones in between that stay."""
    found = {}
    for name in ("kept", "returned"):
        command = [sys.executable, "-c", GROWING, name]
        found[name] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found["returned"] < found["kept"] - 10 * 2**20
