"""Batches side by side give what they give one after the other, and leave torch's threads as they were."""

import pytest
import torch

from cryoeq.training.parallel import in_parallel


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
