"""``progress.csv``: what was reported comes back."""

import csv
import math
import re
from pathlib import Path

import pytest

from cryoeq.errors import OutputError
from cryoeq.outputs.progress_file import ProgressRow, read_progress, write_progress

ROWS = [
    ProgressRow(0.5, "initial model", 1, 150, {"log_likelihood": 1.25}),
    ProgressRow(
        2.25,
        "refining, both halves",
        10,
        10,
        {"log_likelihood": 3.5, "max_probability": math.nan, "fsc_resolution_angstrom": math.inf},
    ),
    ProgressRow(3.0, "refining, both halves", 10, 10, {"max_probability": 0.75}),
]


def test_rows_come_back_without_what_is_not_a_number(tmp_path: Path) -> None:
    write_progress(tmp_path / "progress.csv", ROWS)
    back = read_progress(tmp_path / "progress.csv")
    assert back == [ROWS[0], ProgressRow(2.25, "refining, both halves", 10, 10, {"log_likelihood": 3.5}), ROWS[2]]


@pytest.mark.parametrize(
    "damaged", ["seconds,stage,done,total\n1.0,search,1,2\n1.0,search\n", "<html>\n<p>no such file</p>\n", "a\n1,2,3\n"]
)
def test_a_damaged_file_is_named(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "progress.csv"
    path.write_text(damaged)
    with pytest.raises(OutputError, match=rf"{re.escape(str(path))}, row \d .*no row of a run's progress"):
        read_progress(path)


def test_it_is_a_table(tmp_path: Path) -> None:
    write_progress(tmp_path / "progress.csv", ROWS)
    with (tmp_path / "progress.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == [
        "seconds",
        "stage",
        "done",
        "total",
        "log_likelihood",
        "max_probability",
        "fsc_resolution_angstrom",
    ]
    assert rows[1] == ["2.25", "refining, both halves", "10", "10", "3.5", "", ""]


def test_nothing_is_read_where_there_is_nothing(tmp_path: Path) -> None:
    assert read_progress(tmp_path / "progress.csv") == []
    write_progress(tmp_path / "progress.csv", [])
    assert read_progress(tmp_path / "progress.csv") == []


@pytest.mark.parametrize("damage", ["x,training,1,2,3\n", "1,training,1.5,2\n", "1,training\n", "1,a,1,2,3,4,5,6\n"])
def test_a_damaged_row_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "progress.csv"
    write_progress(path, [ProgressRow(1.0, "training", 1, 2, {"loss": 0.5})])
    path.write_text(path.read_text() + damage)
    with pytest.raises(OutputError, match=r"progress\.csv, row 2 below the header"):
        read_progress(path)
