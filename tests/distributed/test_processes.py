"""What the processes of a job tell each other: every row is one process's, and comes back in its place."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cryoeq.runtime import distributed as processes
from cryoeq.runtime.distributed import BatchShard

ROWS = 23


def talk() -> dict[str, Any]:
    """Run by each process."""
    rank, rows = processes.process_rank(), torch.arange(ROWS) * 3
    mixed = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    own = processes.shard(mixed)
    squares = torch.stack([own, own.square()], 1).double()
    said: dict[str, Any] = {
        "rank": rank,
        "share": processes.shard(rows),
        "halves": [processes.shard_half_set(rows, half) for half in (1, 2)],
        "gathered": processes.all_gather_rows((squares, own.double()), own, ROWS + 1),
        "sum": processes.all_reduce(torch.tensor([rank + 1.0, 2.0])),
        "complex sum": processes.all_reduce(torch.tensor([complex(rank, 1)])),
        "first": processes.broadcast(torch.tensor(rank + 5.0)),
        "largest": processes.all_reduce_max(torch.tensor([rank, -rank, 7])),
        "any": processes.all_reduce_max(torch.tensor([rank == 1, False])),
        "claims": [processes.any_rank(rank == 1), processes.any_rank(False)],
    }
    table = torch.zeros(ROWS, 2, dtype=torch.complex128)
    table[processes.shard(torch.arange(ROWS))] = torch.complex(squares, -squares)
    processes.exchange_rows(table)
    said["exchanged"] = table
    values = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for count in (ROWS, 1):  # of one image all processes make the same
        share = BatchShard.local(count)
        said[f"mean {count}"] = share.mean(values[share.positions].mean(0)) - values[:count].mean(0)
        said[f"batch {count}"] = share.gather(values[share.positions]) - values[:count]
        said[f"weight {count}"] = processes.all_reduce(torch.tensor(share.weight))
    parameters = [
        torch.nn.Parameter(torch.zeros(2, 3)),
        torch.nn.Parameter(torch.zeros(4)),
        torch.nn.Parameter(rows * 0.0),
    ]
    for parameter in parameters[:2]:
        parameter.grad = torch.full_like(parameter, rank + 1.0)
    processes.all_reduce_gradients(parameters)
    said["gradients"] = [parameter.grad for parameter in parameters]
    return said


@pytest.mark.parametrize("count", [2, 3, 4])
def test_what_processes_tell_each_other(together: Callable[..., list[Any]], count: int) -> None:
    said = together(count, __file__, "talk")
    rows = torch.arange(ROWS)
    assert [one["rank"] for one in said] == list(range(count))
    assert torch.cat([one["share"] for one in said]).tolist() == (rows * 3).tolist()
    for half in (0, 1):
        assert torch.cat([one["halves"][half] for one in said]).tolist() == (rows * 3).tolist()
        if count % 2 == 0:  # two groups
            assert [len(one["halves"][half]) > 0 for one in said] == [
                rank // (count // 2) == half for rank in range(count)
            ]
    mixed = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    triangle = count * (count + 1) / 2
    for one in said:
        squares, numbers = one["gathered"]  # nobody has worked on the last
        assert squares.tolist() == [*torch.stack([rows, rows.square()], 1).tolist(), [0, 0]]
        assert numbers.tolist() == [*rows.tolist(), 0]
        assert one["sum"].tolist() == [triangle, 2.0 * count]
        assert one["complex sum"].tolist() == [complex(triangle - count, count)]
        assert float(one["first"]) == 5.0
        assert one["claims"] == [True, False]
        assert one["largest"].tolist() == [count - 1, 0, 7]
        assert one["any"].tolist() == [True, False]
        assert one["exchanged"].real.tolist() == squares[mixed].tolist()
        assert one["exchanged"].imag.tolist() == (-squares[mixed]).tolist()
        for images in (ROWS, 1):
            assert float(one[f"mean {images}"].abs().max()) < 1e-14
            assert float(one[f"batch {images}"].abs().max()) == 0
            assert float(one[f"weight {images}"]) == pytest.approx(1.0)
        assert one["gradients"][0].tolist() == [[triangle] * 3] * 2
        assert one["gradients"][1].tolist() == [triangle] * 4
        assert one["gradients"][2] is None


def test_a_process_that_is_alone_keeps_what_it_has() -> None:
    values = torch.randn(5, 2)
    assert processes.all_reduce(values) is values
    assert processes.broadcast(values) is values
    assert processes.all_reduce_max(values) is values
    assert processes.shard(torch.arange(5)).tolist() == list(range(5))
    assert processes.shard_half_set(torch.arange(5), 2).tolist() == list(range(5))
    assert BatchShard.local(5).weight == 1.0
    assert processes.is_main_process()
    assert not processes.any_rank(False)
