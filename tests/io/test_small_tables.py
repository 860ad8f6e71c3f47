"""Small tables keep the numbers and avoid the traps of RELION, and equal content makes equal files."""

import math
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryoeq.io.small_tables import write_small_tables
from cryoeq.io.star_text import read_blocks

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5)


def test_lists_and_tables(tmp_path: Path) -> None:
    general = {"rlnFinalResolution": 4.25, "rlnNumber": 3, "rlnMaskName": "a b/m.mrc", "rlnLatin": "m\udce9.mrc"}
    columns = {"rlnSpectralIndex": [0, 1], "rlnResolution": [2.5e-4, -0.5], "rlnA": [999.0, 0.0]}
    write_small_tables(tmp_path / "s.star", {"general": general, "fsc": columns})
    blocks = read_blocks(tmp_path / "s.star")
    read = {name: {label: column.tolist() for label, column in block.items()} for name, block in blocks.items()}
    assert read["general"] == {
        "rlnFinalResolution": ["4.250000"],
        "rlnNumber": ["3"],
        "rlnMaskName": ["a b/m.mrc"],
        "rlnLatin": ["m\udce9.mrc"],
    }
    assert read["fsc"] == {
        "rlnSpectralIndex": ["0", "1"],
        "rlnResolution": ["2.500000e-04", "-0.500000"],
        "rlnA": ["999.000000", "0.000000"],
    }
    text = (tmp_path / "s.star").read_bytes().decode(errors="replace")
    assert [line for line in text.splitlines() if "data_" in line] == ["data_general", "data_fsc"]
    assert text.count("loop_") == 1, "RELION reads a list of pairs where there is one value each"


def test_tables_of_one_row_and_of_none_are_loops(tmp_path: Path) -> None:
    for rows in ([1.5], []):
        write_small_tables(tmp_path / "s.star", {"spots": {"rlnA": rows, "rlnB": rows}}, float_format=".3f")
        assert "loop_\n_rlnA #1\n_rlnB #2\n" in (tmp_path / "s.star").read_text()
        assert read_blocks(tmp_path / "s.star")["spots"]["rlnB"].tolist() == [f"{value:.3f}" for value in rows]


def test_equal_content_makes_equal_files(tmp_path: Path) -> None:
    write_small_tables(tmp_path / "a.star", {"general": {"rlnA": 1.0}})
    time.sleep(1.01)  # starfile notes the second
    write_small_tables(tmp_path / "b.star", {"general": {"rlnA": 1.0}})
    assert (tmp_path / "a.star").read_bytes() == (tmp_path / "b.star").read_bytes()


@given(NUMBERS)
def test_numbers_come_back_to_six_digits(tmp_path_factory: pytest.TempPathFactory, numbers: list[float]) -> None:
    path = tmp_path_factory.getbasetemp() / "numbers.star"
    write_small_tables(path, {"fsc": {"rlnA": numbers}})
    for text, number in zip(read_blocks(path)["fsc"]["rlnA"].tolist(), numbers, strict=True):
        assert math.isclose(float(text), number, rel_tol=1e-6, abs_tol=5.1e-7)
