"""``progress.csv``: metrics of a run while it worked, one row per report, for spreadsheets and plots."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryoeq.errors import OutputError
from cryoeq.io.text import write_text

_FIXED = ("seconds", "stage", "done", "total")


@dataclass(frozen=True)
class ProgressRow:
    """One report of progress with metrics.

    Args:
        seconds: time since the run began.
        stage: name of the stage.
        done: iterations or units finished.
        total: iterations or units in all.
        metrics: metrics by key, for example {"loss": 0.93}.
    """

    seconds: float
    stage: str
    done: int
    total: int
    metrics: Mapping[str, float]


def write_progress(path: Path, rows: Sequence[ProgressRow]) -> None:
    """Write one column per metric; its cell is empty in rows without the metric, or where it is NaN or infinite.

    Args:
        path: the file to create or replace.
        rows: in the order of the reports.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*_FIXED, *names])
    for row in rows:
        cells = (row.metrics.get(name, math.nan) for name in names)
        numbers = [f"{value:.6g}" if math.isfinite(value) else "" for value in cells]
        table.writerow([f"{row.seconds:.2f}", row.stage, row.done, row.total, *numbers])
    write_text(path, text.getvalue())


def read_progress(path: Path) -> list[ProgressRow]:
    """Rows of ``write_progress``; none where there is no such file.

    Raises:
        OutputError: the file is damaged; the message names the row.
    """
    if not path.is_file():
        return []
    rows: list[ProgressRow] = []
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        try:
            rows.extend(map(_parse, csv.DictReader(file)))
        except (ValueError, TypeError, KeyError, csv.Error) as error:
            raise OutputError(
                f"{path}, row {len(rows) + 1} below the header: no row of a run's progress ({error})",
                "cryoeq reconstruct writes seconds, stage, done, total and metrics in each row",
                "Restore the file, or delete it: the report goes without the curves of the run",
            ) from error
    return rows


def _parse(record: Mapping[str, str]) -> ProgressRow:
    metrics = {name: float(value) for name, value in record.items() if name not in _FIXED and value}
    return ProgressRow(float(record["seconds"]), record["stage"], int(record["done"]), int(record["total"]), metrics)
