"""What the parsers of other packages make of values that particle files hold: the reason why tokens are found here.

A parser that no longer loses any of them should take over.
"""

import linecache
from collections.abc import Callable
from pathlib import Path

import gemmi
import pytest
import starfile

from cryoeq.errors import ParticleFileError
from cryoeq.io.star import read_star

HEAD = b"data_particles\n\nloop_\n_rlnA #1\n_rlnB #2\n"
Rows = list[tuple[str, ...]]
ROWS: list[tuple[bytes, Rows | None, set[str]]] = [
    (b"1.50 007\n", [("1.50", "007")], set()),
    (b"'a b' \"c d\"\n", [("a b", "c d")], set()),
    (b'"it\'s one" x\n', [("it's one", "x")], {"starfile"}),
    (b"it's x\"y\n", [("it's", 'x"y')], {"starfile"}),
    (b"mic#1.mrc 1\n", [("mic#1.mrc", "1")], {"starfile"}),
    (b"nan <NA>\n", [("nan", "<NA>")], {"starfile"}),
    (b"? .\n", [("?", ".")], {"gemmi"}),
    ("Größe.mrc 1\n".encode(), [("Größe.mrc", "1")], {"gemmi"}),
    (b"Gr\xf6\xdfe.mrc 1\n", [("Gr\udcf6\udcdfe.mrc", "1")], {"gemmi", "starfile"}),
    (b"1 data_1/a.mrc\n", [("1", "data_1/a.mrc")], {"gemmi"}),
    (b"data_1/a.mrc 1\n", [("data_1/a.mrc", "1")], {"gemmi", "starfile"}),
    (b"1 _a.mrc\n", [("1", "_a.mrc")], {"gemmi"}),
    (b"$1.mrc 1\n", [("$1.mrc", "1")], {"gemmi"}),
    (b";1 1\n", [(";1", "1")], {"gemmi"}),
    (b"1 2\n3\n4 5\n", None, {"starfile"}),  # None: an error is right
    (b"1 2\n3\n4 5 6\n", None, {"gemmi"}),
]


def _by_cryoeq(path: Path) -> Rows:
    return list(zip(*(column.tolist() for column in read_star(path).particles.values()), strict=True))


def _by_gemmi(path: Path) -> Rows:
    block = gemmi.cif.read(str(path))["particles"]
    columns = ([gemmi.cif.as_string(value) for value in block.find_loop(tag)] for tag in block[0].loop.tags)
    return list(zip(*columns, strict=True))


def _by_starfile(path: Path) -> Rows:
    linecache.clearcache()  # starfile reads through it
    table = starfile.read(path, always_dict=True, parse_as_string=["rlnA", "rlnB"])["particles"]
    return [tuple(row) for row in table[["rlnA", "rlnB"]].to_numpy().tolist()]


def _is_kept(read: Callable[[Path], Rows], path: Path, rows: Rows | None) -> bool:
    try:
        return read(path) == rows
    except (ValueError, TypeError, LookupError, RuntimeError):
        return rows is None


@pytest.mark.parametrize(("raw", "rows", "lost_by"), ROWS)
def test_which_parser_keeps_which_value(tmp_path: Path, raw: bytes, rows: Rows | None, lost_by: set[str]) -> None:
    path = tmp_path / "s.star"
    path.write_bytes(HEAD + raw)
    readers = {"gemmi": _by_gemmi, "starfile": _by_starfile}
    assert {name for name, read in readers.items() if not _is_kept(read, path, rows)} == lost_by
    if rows is None:
        with pytest.raises(ParticleFileError, match="line 7, row 2: 1 values for 2 labels"):
            _by_cryoeq(path)
    else:
        assert _by_cryoeq(path) == rows
