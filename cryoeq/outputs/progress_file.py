"""``progress.csv``: the metrics that a run reported while it worked, one row per report, for spreadsheets and plots."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryoeq.io.text import write_text

_FIXED = ("seconds", "stage", "done", "total")


@dataclass(frozen=True)
class ProgressRow:
    """One report of progress with metrics.

    Args:
        seconds: since the run began.
        stage: what was being done.
        done: units finished.
        total: units in all.
        metrics: numbers of interest by name, for example {"loss": 0.93}.
    """

    seconds: float
    stage: str
    done: int
    total: int
    metrics: Mapping[str, float]


def write_progress(path: Path, rows: Sequence[ProgressRow]) -> None:
    """Write one column per figure; the cell of a figure that a row does not have, or that is NaN, is empty.

    Args:
        path: the file to create or replace.
        rows: in the order in which they came.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*_FIXED, *names])
    for row in rows:
        cells = (row.metrics.get(name, math.nan) for name in names)
        numbers = ["" if math.isnan(value) else f"{value:.6g}" for value in cells]
        table.writerow([f"{row.seconds:.2f}", row.stage, row.done, row.total, *numbers])
    write_text(path, text.getvalue())


def read_progress(path: Path) -> list[ProgressRow]:
    """What ``write_progress`` wrote; nothing where there is no such file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [_parse(record) for record in csv.DictReader(file)]


def _parse(record: Mapping[str, str]) -> ProgressRow:
    metrics = {name: float(value) for name, value in record.items() if name not in _FIXED and value}
    return ProgressRow(float(record["seconds"]), record["stage"], int(record["done"]), int(record["total"]), metrics)
