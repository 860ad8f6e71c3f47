"""Small tables of numbers (curves, spots), written by the starfile package; those of particles are text (``star``)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cryoeq.io.text import write_text

Number = int | float
_VERSION = "# version 30001\n"


def write_small_tables(
    path: Path,
    blocks: Mapping[str, Mapping[str, Number | str | Sequence[Number]]],
    *,
    float_format: str | None = None,
) -> None:
    """Write a star file.

    Args:
        path: the file to create or replace.
        blocks: by its name without ``data_``, a list of labels with their values, or a ``loop_`` of labels with their
            columns.
        float_format: format of floating-point numbers, for example ``.7f``; None for the six decimals of RELION, and
            an exponent below 0.001.

    Raises:
        OutputError: the disk is full or the path cannot be written.
    """
    import pandas as pd  # here, because they take half a second
    import starfile

    def as_text(value: object) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:{float_format or ('.6e' if 0 < abs(value) < 1e-3 else '.6f')}}"

    tables = {
        name: pd.DataFrame(block)
        if any(isinstance(column, list) for column in block.values())
        else {label: as_text(value) for label, value in block.items()}
        for name, block in blocks.items()
    }
    text = starfile.to_string(tables, float_format=as_text, sep=" ")
    write_text(path, _VERSION + text.partition("\n")[2])  # its first line is the time: no two files would be equal
