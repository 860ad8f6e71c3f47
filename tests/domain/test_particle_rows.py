"""Tables with one row per particle: what is done to the rows of one column is done to those of all."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.domain.pose import PoseSet


@dataclass(frozen=True)
class Scored(ParticleRows):
    """A nested table, two columns of different rank, an optional one, and a field common to all rows."""

    poses: PoseSet
    scores: Tensor
    features: Tensor
    ctf: Tensor | None
    name: str


def table(count: int, *, first: int = 0, with_ctf: bool = True) -> Scored:
    numbers = torch.arange(first, first + count, dtype=torch.float32)
    poses = PoseSet(numbers[:, None, None] * torch.eye(3), numbers[:, None] * torch.ones(2), 16)
    ctf = 10 * numbers[:, None] if with_ctf else None
    return Scored(poses, numbers, numbers[:, None, None].repeat(1, 2, 3), ctf, "one")


def assert_holds(found: Scored, numbers: list[int], *, with_ctf: bool = True) -> None:
    """Row by row, in every column, that of the given number; what is common to all rows is unchanged."""
    values = torch.tensor(numbers, dtype=torch.float32)
    torch.testing.assert_close(found.scores, values)
    torch.testing.assert_close(found.features, values[:, None, None].repeat(1, 2, 3))
    torch.testing.assert_close(found.poses.rotations, values[:, None, None] * torch.eye(3))
    torch.testing.assert_close(found.poses.shifts_px, values[:, None] * torch.ones(2))
    assert (found.ctf is None) == (not with_ctf)
    if found.ctf is not None:
        torch.testing.assert_close(found.ctf, 10 * values[:, None])
    assert (found.name, found.poses.box_size_px) == ("one", 16)


@pytest.mark.parametrize("with_ctf", [True, False])
def test_rows_are_taken_in_the_given_order(with_ctf: bool) -> None:
    found = table(6, with_ctf=with_ctf)
    assert_holds(found.rows(torch.tensor([4, 0, 4])), [4, 0, 4], with_ctf=with_ctf)
    assert_holds(found.rows(torch.tensor([], dtype=torch.long)), [], with_ctf=with_ctf)
    assert_holds(found, [0, 1, 2, 3, 4, 5], with_ctf=with_ctf)


@pytest.mark.parametrize("with_ctf", [True, False])
def test_tables_are_joined_row_after_row(with_ctf: bool) -> None:
    parts = [table(2, with_ctf=with_ctf), table(0, with_ctf=with_ctf), table(3, first=7, with_ctf=with_ctf)]
    assert_holds(Scored.cat(parts), [0, 1, 7, 8, 9], with_ctf=with_ctf)
    assert_holds(Scored.cat(parts[:1]), [0, 1], with_ctf=with_ctf)


@pytest.mark.parametrize("with_ctf", [True, False])
def test_rows_are_replaced_in_a_copy(with_ctf: bool) -> None:
    found, rows = table(5, with_ctf=with_ctf), torch.tensor([3, 1])
    assert_holds(found.with_rows(rows, table(2, first=8, with_ctf=with_ctf)), [0, 9, 2, 8, 4], with_ctf=with_ctf)
    assert_holds(found, [0, 1, 2, 3, 4], with_ctf=with_ctf)
    assert_holds(found.with_rows(rows, found.rows(rows)), [0, 1, 2, 3, 4], with_ctf=with_ctf)
    assert_holds(found.with_rows(rows[:0], found.rows(rows[:0])), [0, 1, 2, 3, 4], with_ctf=with_ctf)


def test_taking_rows_undoes_joining() -> None:
    whole, order = table(7), torch.randperm(7, generator=torch.Generator().manual_seed(0))
    parts = [whole.rows(rows) for rows in order.split(3)]
    assert_holds(Scored.cat(parts).rows(order.argsort()), list(range(7)))


@pytest.mark.parametrize(("with_ctf", "count"), [(True, 5), (False, 4)])
def test_columns_go_out_and_come_back(with_ctf: bool, count: int) -> None:
    """Nested tables' columns among them, in one order: what processes of a job send to each other."""
    found = table(4, with_ctf=with_ctf)
    columns = list(found.tensors())
    assert len(columns) == count
    assert all(len(column) == 4 for column in columns)
    assert_holds(found.with_tensors(iter(columns)), [0, 1, 2, 3], with_ctf=with_ctf)
    doubled = found.each(lambda values: 2 * values)
    for ours, theirs in zip(doubled.tensors(), columns, strict=True):
        torch.testing.assert_close(ours, 2 * theirs)
    assert doubled.name == "one"
