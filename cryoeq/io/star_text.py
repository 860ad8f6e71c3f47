"""The text of STAR files: tables by name, every value as it stands, and rows counted.

Tokens are found here and not by a package, since none keeps every value of the particle files in use (pinned by
``tests/io/test_star_parsers.py``). gemmi takes no letter beyond ASCII, no value that begins with ``_``, ``$``, ``;`` or
``data_`` (all of them beginnings of file names), and no row count: where one row lacks a value and another has one more
it moves all between into other columns. starfile guesses types, reads ``nan`` as missing, turns ``'`` into ``"``, cuts
values at ``#``, and fills rows that are too short. Neither is faster into the same columns.
"""

import codecs
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, groupby, islice, takewhile
from operator import itemgetter
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from cryoeq.errors import ParticleFileError
from cryoeq.io.atomic import atomic_path
from cryoeq.io.compressed import Unpacked, is_compressed, open_compressed
from cryoeq.io.foreign import ForeignFormat, recognise

Text = Shaped[np.ndarray, "_"]
Columns = Mapping[str, Text]
Line = tuple[int, str]  # its number in the file, from 1, and its text

REPAIR = "Export the star file again"
_TOKEN = re.compile(r'"([^"]*)"(?=\s|$)|\'([^\']*)\'(?=\s|$)|(\S+)')
_NEEDS_QUOTES = re.compile(r'[^\S\n]|^$|^["\'#]', re.MULTILINE)
_SUSPECT = " \t\r\v\f\x1c\x1d\x1e\x1f\"'#"
_JOIN = "Join star files with relion_star_handler --combine, or export them again"
_PEEKED = 1024
_BINARY = ForeignFormat("a binary file", "Check the path")
# Rows that are parsed or written at once: as Python's strings they take five times the memory of the columns, and more
# of them at once leave the processor's cache, which costs a third of the time.
_CHUNK = 500


def text_column(values: Sequence[str]) -> Text:
    """A column: 16 bytes for each value, and what its letters take beyond 15.

    Args:
        values: may hold bytes that are not UTF-8, as ``surrogateescape`` reads them.
    """
    try:
        return np.array(values, dtype=np.dtypes.StringDType())
    except UnicodeEncodeError:
        return np.array(values, dtype=np.str_)


def read_blocks(path: Path) -> dict[str, dict[str, Text]]:
    """The tables of any star file, by their names without ``data_``; a list of labels and values has one row.

    UTF-8, with or without a byte order mark, and UTF-16 are read; bytes that are neither stay as they are.

    Raises:
        ParticleFileError: no such file, not a text, a repeated label or block, or a row with too few or too
            many values.
    """
    with _lines_of(path) as lines:
        blocks: dict[str, dict[str, Text]] = {}
        for name, rows in _split_blocks(lines):
            if name in blocks:
                found = f"{path}, line {next(rows)[0]}: a second table data_{name}"
                raise ParticleFileError(found, "Each table of a star file has a name of its own", _JOIN)
            blocks[name] = _parse_block(path, rows)
        return blocks


@contextmanager
def _lines_of(path: Path) -> Iterator[io.TextIOWrapper]:
    """The lines of a text file; what goes wrong while they are read is an error of that file."""
    try:
        with _opened(path) as file:
            encoding = _encoding(path, file.peek(_PEEKED)[:_PEEKED])
            yield io.TextIOWrapper(file, encoding, errors="surrogateescape")
    except FileNotFoundError as error:
        raise ParticleFileError(f"{path} does not exist", "", "Check the path") from error
    except OSError as error:
        raise ParticleFileError(
            f"{path} cannot be read: {error.strerror}", "", "Check the path and its permissions"
        ) from error
    except UnicodeError as error:
        raise ParticleFileError(f"{path} cannot be read as UTF-16 ({error})", "A star file is text", REPAIR) from error


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader | Unpacked]:
    """The bytes of a file, unpacked where gzip or bzip2 has packed it."""
    with path.open("rb") as file:
        if not is_compressed(file.peek(_PEEKED)):
            yield file
            return
    with open_compressed(path, ParticleFileError) as unpacked:
        yield unpacked


def _encoding(path: Path, start: bytes) -> str:
    """The encoding of a text, by its first bytes."""
    if start[:2] in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:
        return "utf-16"
    if len(start) > 1 and all(start[:32:2]) and not any(start[1:32:2]):  # ASCII without a byte order mark
        return "utf-16-le"
    if other := recognise(start, expects_text=True) or (_BINARY if b"\0" in start else None):
        raise ParticleFileError(f"{path} is {other.name}", "A star file is text", other.advice)
    return "utf-8-sig"


def _split_blocks(lines: Iterable[str]) -> Iterator[tuple[str, Iterator[Line]]]:
    """Name and lines of each block, without empty lines and comments; to be consumed before the next block."""
    for (number, name), rows in groupby(_named_lines(lines), itemgetter(0)):
        if number:
            yield name, (row for _, row in rows)


def _named_lines(lines: Iterable[str]) -> Iterator[tuple[tuple[int, str], Line]]:
    """Number and name of its block with each line; number 0 before the first."""
    block = (0, "")
    for number, line in enumerate(map(str.strip, lines), 1):
        # A row of a table can start with data_ too (a folder of that name); a heading stands alone on its line.
        if line.startswith("data_") and len(_without_comment(line)) == 1:
            block = (block[0] + 1, line.split(None, 1)[0][5:])
        elif line and line[0] != "#":
            yield block, (number, line)


def _without_comment(line: str) -> list[str]:
    """The words of a line of structure, up to a comment."""
    return list(takewhile(lambda word: word[0] != "#", line.split()))


def _parse_block(path: Path, lines: Iterator[Line]) -> dict[str, Text]:
    """The columns of a ``loop_``, or a list of label-value pairs as a table of one row."""
    first = next(lines)
    if _without_comment(first[1]) == ["loop_"]:
        labels, rows = _split_loop(lines)
        chunks = _parse_rows(path, rows, len(labels))
    else:
        labels, values = _split_list(path, chain([first], lines))
        chunks = iter([[text_column([value]) for value in values]])
    if repeated := [label for label in labels if labels.count(label) > 1]:
        raise ParticleFileError(f"{path}: label {repeated[0]} appears twice", "Each label may appear once", REPAIR)
    columns = zip(*([text_column([]) for _ in labels], *chunks), strict=True)
    return {label.removeprefix("_"): _joined(parts) for label, parts in zip(labels, columns, strict=True)}


def _split_loop(lines: Iterator[Line]) -> tuple[list[str], Iterator[Line]]:
    """Labels of a loop, and its rows."""
    labels: list[str] = []
    for line in lines:
        if line[1][0] != "_":
            return labels, chain([line], lines)
        labels.append(line[1].split()[0])
    return labels, iter(())


def _split_list(path: Path, lines: Iterator[Line]) -> tuple[list[str], list[str]]:
    """Labels and values of a list of pairs."""
    labels, values = [], []
    for number, line in lines:
        label, *value = _tokens(line)
        if line[0] != "_" or not value:
            found = f"{path}, line {number}: {line[:80]!r}"
            raise ParticleFileError(found, "A label with its value was expected, or loop_ before a table", REPAIR)
        labels.append(label)
        values.append(value[0])
    return labels, values


def _parse_rows(path: Path, rows: Iterator[Line], n_labels: int) -> Iterator[list[Text]]:
    """The columns of some rows after the other."""
    n_rows = 0
    while chunk := list(islice(rows, _CHUNK)):
        tokens = [_tokens(line) for _, line in chunk]
        for i, row in enumerate(tokens):
            if len(row) == n_labels:
                continue
            if len(row) < n_labels or not row[n_labels].startswith("#"):
                found = f"{path}, line {chunk[i][0]}, row {n_rows + i + 1}: {len(row)} values for {n_labels} labels"
                expected = "Every row needs one value per label, names with spaces in quotes"
                raise ParticleFileError(found, expected, REPAIR)
            del row[n_labels:]  # a comment
        yield [text_column(column) for column in zip(*tokens, strict=True)]
        n_rows += len(chunk)


def _joined(parts: Sequence[Text]) -> Text:
    if any(part.dtype.kind == "U" for part in parts):  # bytes that are not UTF-8 in one chunk
        return np.array([value for part in parts for value in part.tolist()], dtype=np.str_)
    return np.concatenate(parts)


def _tokens(line: str) -> list[str]:
    if '"' not in line and "'" not in line:
        return line.split()
    return ["".join(groups) for groups in _TOKEN.findall(line)]


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


def copy_rows(source: Path, path: Path, block: str, is_kept: Sequence[bool]) -> None:
    """Copy a star file line by line, but for some rows of one of its tables: all else stays, comments too.

    Args:
        source: a star file that ``read_blocks`` has read; unpacked where it is packed.
        path: the file to create or replace.
        block: name of the table without ``data_``.
        is_kept: for each of its rows, whether it is copied.

    Raises:
        ParticleFileError: the file is not what it was when it was read.
        OutputError: the disk is full or the path cannot be written.
    """
    with _lines_of(source) as lines:
        rows = _row_lines(lines, block)
    if rows and len(rows) != len(is_kept):
        found = f"{source}: {len(rows)} rows now, {len(is_kept)} when it was read"
        raise ParticleFileError(found, "", "Start again when nothing else writes to it")
    left_out = {number for number, kept in zip(rows, is_kept, strict=False) if not kept}
    with (
        _lines_of(source) as lines,
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file,
    ):
        file.writelines(line for number, line in enumerate(lines, 1) if number not in left_out)


def _row_lines(lines: Iterable[str], block: str) -> list[int]:
    """Line numbers of the rows of a table; none for a list of labels and values, which is one row."""
    for name, content in _split_blocks(lines):
        if name == block:
            is_loop = _without_comment(next(content)[1]) == ["loop_"]
            return [number for number, _ in _split_loop(content)[1]] if is_loop else []
    return []


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
