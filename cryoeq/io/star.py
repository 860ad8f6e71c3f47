"""STAR files of particles; every value is kept as text, verbatim.

Why not the starfile package: a tool that promises to hand every column back verbatim may not guess. Version 0.5.13
reads ``nan`` as missing, turns ``'`` into ``"``, cuts a row at ``#``, takes a row that starts with ``data_`` for a
new block, and fills a row that is too short with empty cells, so that a damaged file cannot be reported by its row.
Tests use it as an independent reader of what is written here.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Shaped

from cryoeq.errors import ParticleFileError
from cryoeq.io.atomic import atomic_path

Text = Shaped[np.ndarray, "_"]
Numbers = Float64[np.ndarray, "_"]
Columns = Mapping[str, Text]

_TOKEN = re.compile(r'"([^"]*)"(?=\s|$)|\'([^\']*)\'(?=\s|$)|(\S+)')
_NEEDS_QUOTES = re.compile(r'[^\S\n]|^$|^["\'#]', re.MULTILINE)
_SUSPECT = " \t\r\v\f\x1c\x1d\x1e\x1f\"'#"
_REPAIR = "Export the star file again"
# Rows that are parsed or written at once: as Python's strings they take five times the memory of the columns.
_CHUNK = 20_000


@dataclass(frozen=True)
class StarTable:
    """The optics groups and the particles of a star file.

    Args:
        optics: columns of ``data_optics`` as text; None for files of RELION 3.0, which have none.
        particles: columns of the particles as text; their names carry no leading underscore.
        path: file of the table, for messages; None for a new one.
    """

    optics: Columns | None
    particles: Columns
    path: Path | None = None

    def __len__(self) -> int:
        return len(next(iter(self.particles.values()), ()))

    def rows(self, numbers: Sequence[int]) -> "StarTable":
        """Some of the particles, with their optics groups.

        Args:
            numbers: row numbers, from 0.
        """
        return replace(self, particles={name: values[list(numbers)] for name, values in self.particles.items()})

    def require(self, column: str, *, advice: str = "") -> Text:
        """The text of a particle column.

        Args:
            column: its name, for example ``rlnDefocusU``.
            advice: advice to the user where the column is missing.

        Raises:
            ParticleFileError: there is no such column; the message names it.
        """
        if column not in self.particles:
            expected = f"cryoeq needs {column} for every particle"
            if not advice and "rlnMicrographName" in self.particles and "rlnImageName" not in self.particles:
                advice = "This is a table of micrographs: give the star file of the particles extracted from them"
            raise ParticleFileError(f"{self.path or 'star'}: column {column} is missing", expected, advice or _REPAIR)
        return self.particles[column]

    def floats(self, column: str, *, default: float | None = None, advice: str = "") -> Numbers:
        """The numbers of a particle column.

        Args:
            column: its name.
            default: value where the column is missing; None makes that an error.
            advice: advice to the user where the column is missing.

        Raises:
            ParticleFileError: the column is missing, or a value is not a finite number; the message names the first
                row.
        """
        if default is not None and column not in self.particles:
            return np.full(len(self), default)
        return self._numbers(self.require(column, advice=advice), column, "row")

    def optics_floats(self, column: str, *, default: float | None = None) -> Numbers:
        """The numbers of an optics column, as ``floats`` those of a particle column."""
        optics = self.optics or {}
        if column in optics:
            return self._numbers(optics[column], column, "optics group in row")
        if default is not None:
            return np.full(len(next(iter(optics.values()), ())), default)
        raise ParticleFileError(
            f"{self.path or 'star'}: optics column {column} is missing", f"cryoeq needs {column}", _REPAIR
        )

    def _numbers(self, text: Text, column: str, row_name: str) -> Numbers:
        try:
            numbers = text.astype(np.float64)
        except ValueError:
            numbers = np.array([_float_or_nan(value) for value in text.tolist()])
        if not np.isfinite(numbers).all():
            row = int(np.flatnonzero(~np.isfinite(numbers))[0])
            found = f"{self.path or 'star'}, {row_name} {row + 1}: {column} is {str(text[row])!r}"
            raise ParticleFileError(found, "A finite number was expected", "Correct the value or remove the particle")
        return numbers


def text_column(values: Sequence[str]) -> Text:
    """A column: 16 bytes for each value, and what its letters take beyond 15.

    Args:
        values: may hold bytes that are not UTF-8, as ``surrogateescape`` reads them.
    """
    try:
        return np.array(values, dtype=np.dtypes.StringDType())
    except UnicodeEncodeError:
        return np.array(values, dtype=np.str_)


def decimals(values: Shaped[np.ndarray, "_"]) -> Text:
    """Numbers as RELION writes them, with six decimals."""
    return text_column([f"{value:.6f}" for value in values.tolist()])


def _float_or_nan(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return float("nan")


def read_star(path: Path) -> StarTable:
    """Read the optics groups and the particles of a RELION star file, of version 3.0 or later.

    The particles are the block ``data_particles``, else the one that has image names, else the last that is not optics.

    Raises:
        ParticleFileError: no such file, no table in it, a repeated label, or a row with too few or too many values.
    """
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            blocks = {name: _parse_block(path, lines) for name, lines in _split_blocks(file)}
    except FileNotFoundError as error:
        raise ParticleFileError(f"{path} does not exist", "", "Check the path") from error
    except OSError as error:
        raise ParticleFileError(
            f"{path} cannot be read: {error.strerror}", "", "Check the path and its permissions"
        ) from error
    optics = blocks.pop("optics", None)
    named = [block for block in blocks.values() if "rlnImageName" in block]
    particles = blocks.get("particles") or (named[-1] if named else next(reversed(blocks.values()), None))
    if not particles or not len(next(iter(particles.values()))):
        expected = "cryoeq expects a data_particles block with a loop_ of particles"
        raise ParticleFileError(
            f"{path} holds no table of particles", expected, "Check that it is a particle star file"
        )
    return StarTable(optics or None, particles, path)


def _split_blocks(lines: Iterable[str]) -> Iterator[tuple[str, Iterator[str]]]:
    """Name and lines of each block, without empty lines and comments; to be consumed before the next block."""
    for (number, name), rows in groupby(_named_lines(lines), itemgetter(0)):
        if number:
            yield name, (row for _, row in rows)


def _named_lines(lines: Iterable[str]) -> Iterator[tuple[tuple[int, str], str]]:
    """Number and name of its block with each line; number 0 before the first."""
    block = (0, "")
    for line in map(str.strip, lines):
        # A row of a table can start with data_ too (a folder of that name); a heading stands alone on its line.
        if line.startswith("data_") and len(line.split(None, 1)) == 1:
            block = (block[0] + 1, line[5:])
        elif line and line[0] != "#":
            yield block, line


def _parse_block(path: Path, lines: Iterator[str]) -> dict[str, Text]:
    """The columns of a ``loop_``, or a list of label-value pairs as a table of one row."""
    first = next(lines)
    if first == "loop_":
        labels, rows = _split_loop(lines)
    else:
        pairs = [_tokens(line) for line in (first, *lines) if line[0] == "_"]
        labels, rows = [pair[0] for pair in pairs], iter([[value for pair in pairs for value in pair[1:2]]])
    if repeated := [label for label in labels if labels.count(label) > 1]:
        raise ParticleFileError(f"{path}: label {repeated[0]} appears twice", "Each label may appear once", _REPAIR)
    chunks: list[list[Text]] = [[text_column([]) for _ in labels]]
    n_rows = 0
    while chunk := list(islice(rows, _CHUNK)):
        bad = next((i for i, row in enumerate(chunk) if len(row) != len(labels)), None)
        if bad is not None:
            found = f"{path}, row {n_rows + bad + 1}: {len(chunk[bad])} values for {len(labels)} labels"
            raise ParticleFileError(found, "Every row needs one value per label, names with spaces in quotes", _REPAIR)
        chunks.append([text_column(column) for column in zip(*chunk, strict=True)])
        n_rows += len(chunk)
    columns = zip(*chunks, strict=True)
    return {label.removeprefix("_"): _joined(parts) for label, parts in zip(labels, columns, strict=True)}


def _split_loop(lines: Iterator[str]) -> tuple[list[str], Iterator[list[str]]]:
    """Labels of a loop, and the values of its rows."""
    labels: list[str] = []
    for line in lines:
        if line[0] != "_":
            return labels, map(_tokens, chain([line], lines))
        labels.append(line.split()[0])
    return labels, iter(())


def _joined(parts: Sequence[Text]) -> Text:
    if any(part.dtype.kind == "U" for part in parts):  # bytes that are not UTF-8 in one chunk
        return np.array([value for part in parts for value in part.tolist()], dtype=np.str_)
    return np.concatenate(parts)


def _tokens(line: str) -> list[str]:
    if '"' not in line and "'" not in line:
        return line.split()
    return ["".join(groups) for groups in _TOKEN.findall(line)]


def write_star(path: Path, star: StarTable) -> None:
    """Write ``data_optics`` (if any) and ``data_particles`` so that RELION 3.1 and later read them.

    There is no comment but the version: RELION looks for ``data_`` on every line, comments too.

    Raises:
        OutputError: the disk is full or the path cannot be written.
    """
    optics = {} if star.optics is None else {"optics": star.optics}
    write_blocks(path, optics | {"particles": star.particles})


def write_blocks(path: Path, blocks: Mapping[str, Columns]) -> None:
    """Write any tables.

    Args:
        path: the file to create or replace.
        blocks: columns of each table, by its name without ``data_``.

    Raises:
        OutputError: the disk is full or the path cannot be written.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file,
    ):
        for name, columns in blocks.items():
            file.writelines(_format_block(name, columns))


def _format_block(name: str, columns: Columns) -> Iterator[str]:
    """One block as a ``loop_``, also when it has one row: RELION requires it."""
    labels = "".join(f"_{label} #{number}\n" for number, label in enumerate(columns, 1))
    yield f"\n# version 30001\n\ndata_{name}\n\nloop_\n{labels}"
    for start in range(0, len(next(iter(columns.values()), ())), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        rows = zip(*(_quoted(column[chunk]) for column in columns.values()), strict=True)
        yield "".join("\t".join(row) + "\n" for row in rows)
    yield "\n"


def _quoted(column: Text) -> list[str]:
    """Its values, with those in quotes that would otherwise fall apart or vanish when read."""
    values: list[str] = (column if column.dtype.kind in "TU" else column.astype(np.str_)).tolist()
    joined = "\n".join(values)
    if _is_plain(joined) or not _NEEDS_QUOTES.search(joined):
        return values
    return [_in_quotes(value) if not value or _NEEDS_QUOTES.search(value) else value for value in values]


def _is_plain(joined: str) -> bool:
    """Whether no value needs quotes for sure, at a twentieth of the cost of asking each."""
    is_full = bool(joined) and joined[0] != "\n" and joined[-1] != "\n" and "\n\n" not in joined
    return is_full and joined.isascii() and not any(letter in joined for letter in _SUSPECT)


def _in_quotes(value: str) -> str:
    return f"'{value}'" if '"' in value else f'"{value}"'
