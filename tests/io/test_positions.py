"""Particles of one micrograph share its number; those that were picked twice have one position."""

import pytest

from cryoeq.io.positions import micrograph_numbers, position_numbers
from cryoeq.io.star import StarTable, text_column


def table(**columns: list[str]) -> StarTable:
    return StarTable(None, {f"rln{name}": text_column(values) for name, values in columns.items()})


def test_rows_of_one_micrograph_share_a_number() -> None:
    numbers = micrograph_numbers(table(MicrographName=list("baabc")))
    assert numbers is not None
    assert numbers.tolist() == [0, 1, 1, 0, 2]
    assert micrograph_numbers(table(ImageName=["1@a", "2@a"])) is None


def test_rows_of_one_position_share_a_number() -> None:
    star = table(MicrographName=list("aabba"), CoordinateX=list("12211"), CoordinateY=list("55555"))
    numbers = position_numbers(star)
    assert numbers is not None
    assert numbers.tolist() == [0, 1, 2, 3, 0]


@pytest.mark.parametrize("x", [["0", "0"], None])
def test_without_coordinates_there_is_no_position(x: list[str] | None) -> None:
    given = {} if x is None else {"CoordinateX": x}
    assert position_numbers(table(MicrographName=["a", "b"], CoordinateY=["0", "0"], **given)) is None
