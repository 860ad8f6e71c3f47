"""``progress.csv``: what was reported comes back."""

import csv
import math
from pathlib import Path

from cryoeq.outputs.progress_file import ProgressRow, read_progress, write_progress

ROWS = [
    ProgressRow(0.5, "searching", 1, 150, {"log evidence": 1.25}),
    ProgressRow(2.25, "refining, all", 10, 10, {"log evidence": 3.5, "confidence": math.nan}),
    ProgressRow(3.0, "refining, all", 10, 10, {"confidence": 0.75}),
]


def test_rows_come_back_without_what_is_not_a_number(tmp_path: Path) -> None:
    write_progress(tmp_path / "progress.csv", ROWS)
    back = read_progress(tmp_path / "progress.csv")
    assert back == [ROWS[0], ProgressRow(2.25, "refining, all", 10, 10, {"log evidence": 3.5}), ROWS[2]]


def test_it_is_a_table(tmp_path: Path) -> None:
    write_progress(tmp_path / "progress.csv", ROWS)
    with (tmp_path / "progress.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["seconds", "stage", "done", "total", "log evidence", "confidence"]
    assert rows[1] == ["2.25", "refining, all", "10", "10", "3.5", ""]


def test_nothing_is_read_where_there_is_nothing(tmp_path: Path) -> None:
    assert read_progress(tmp_path / "progress.csv") == []
    write_progress(tmp_path / "progress.csv", [])
    assert read_progress(tmp_path / "progress.csv") == []
