"""STAR files: every value comes back as the text that it was, and RELION's traps are avoided."""

import bz2
import gzip
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import starfile

from cryoeq.errors import OutputError, ParticleFileError
from cryoeq.io.star import StarTable, read_star, write_star

AWKWARD = ["", "a b", 'x"y', '"q', "#z", "mic#1.mrc", "it's", "nan", "NaN", "<NA>", "007", "1e-3", "data_1/x.mrc", "Å"]


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _table(text: str, path: Path) -> StarTable:
    return read_star(_write(path, text))


def test_awkward_values_come_back_verbatim(tmp_path: Path) -> None:
    numbers = np.array([f"{i}.10" for i in range(len(AWKWARD))])
    write_star(tmp_path / "s.star", StarTable(None, {"rlnA": np.array(AWKWARD), "rlnB": numbers}))
    back = read_star(tmp_path / "s.star")
    assert back.particles["rlnA"].tolist() == AWKWARD
    assert back.particles["rlnB"].tolist() == numbers.tolist()


def test_bytes_that_are_not_utf8_come_back(tmp_path: Path) -> None:
    raw = b"data_particles\n\nloop_\n_rlnImageName #1\n1@\xe9t\xe9.mrcs\n"
    (tmp_path / "latin.star").write_bytes(raw)
    write_star(tmp_path / "out.star", read_star(tmp_path / "latin.star"))
    assert b"1@\xe9t\xe9.mrcs\n" in (tmp_path / "out.star").read_bytes()


def test_an_independent_reader_agrees(tmp_path: Path) -> None:
    optics = {"rlnOpticsGroup": np.array(["1"]), "rlnOpticsGroupName": np.array(["og1"])}
    particles = {"rlnImageName": np.array(["1@a.mrcs", "2@a b.mrcs"]), "rlnDefocusU": np.array(["1.50", "2.25"])}
    write_star(tmp_path / "s.star", StarTable(optics, particles))
    blocks = starfile.read(tmp_path / "s.star", always_dict=True)
    assert list(blocks) == ["optics", "particles"]
    assert blocks["optics"].shape == (1, 2)
    assert blocks["particles"]["rlnImageName"].tolist() == ["1@a.mrcs", "2@a b.mrcs"]
    assert blocks["particles"]["rlnDefocusU"].tolist() == [1.5, 2.25]


def test_what_is_written_avoids_the_traps_of_relion(tmp_path: Path) -> None:
    optics = {"rlnOpticsGroup": np.array(["1"])}
    write_star(tmp_path / "s.star", StarTable(optics, {"rlnImageName": np.array(["1@a.mrcs"])}))
    lines = (tmp_path / "s.star").read_text().splitlines()
    assert [line for line in lines if line.startswith("#")] == ["# version 30001"] * 2
    assert lines.count("loop_") == 2, "a block of one row stays a loop"
    assert [line for line in lines if "data_" in line] == ["data_optics", "data_particles"]


@pytest.mark.parametrize("heading", ["data_", "data_images", "data_particles", "data_whatever"])
def test_any_name_of_the_block_of_old_files(tmp_path: Path, heading: str) -> None:
    star = _table(f"{heading}\nloop_\n_rlnImageName\n1@a.mrcs\n2@a.mrcs\n", tmp_path / "s.star")
    assert star.optics is None
    assert star.particles["rlnImageName"].tolist() == ["1@a.mrcs", "2@a.mrcs"]


def test_blocks_in_any_order_with_others_between(tmp_path: Path) -> None:
    text = "data_particles\n\nloop_\n_rlnImageName #1\n1@a.mrcs\n\n"
    text += "data_general\n\n_rlnX 1\n\ndata_optics\n_rlnOpticsGroup 3\n"
    star = _table(text, tmp_path / "s.star")
    assert star.particles["rlnImageName"].tolist() == ["1@a.mrcs"]
    assert star.optics is not None
    assert star.optics["rlnOpticsGroup"].tolist() == ["3"]


def test_windows_line_ends_comments_and_empty_lines(tmp_path: Path) -> None:
    text = "# data_particles in a comment\r\ndata_particles\r\n\r\nloop_\r\n_rlnA #1\r\n_rlnB #2\r\n"
    text += "  1\t2 \r\n# no\r\n\r\n3 4\r\n"
    (tmp_path / "s.star").write_bytes(text.encode())
    star = read_star(tmp_path / "s.star")
    assert {name: column.tolist() for name, column in star.particles.items()} == {
        "rlnA": ["1", "3"],
        "rlnB": ["2", "4"],
    }


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_encodings_of_windows(tmp_path: Path, encoding: str) -> None:
    text = "data_optics\n\nloop_\n_rlnOpticsGroup #1\n1\n\ndata_particles\nloop_\n_rlnImageName\n1@Å.mrcs\n"
    text = text.replace("\n", "\r\n")
    (tmp_path / "s.star").write_bytes(text.encode(encoding))
    star = read_star(tmp_path / "s.star")
    assert star.optics is not None
    assert star.particles["rlnImageName"].tolist() == ["1@Å.mrcs"]
    (tmp_path / "s.star").write_bytes(text.encode("utf-16")[:-1])
    with pytest.raises(ParticleFileError, match="cannot be read as UTF-16"):
        read_star(tmp_path / "s.star")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress], ids=["gzip", "bzip2"])
def test_packed_tables(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(b"data_particles\nloop_\n_rlnImageName\n" + b"1@a.mrcs\n" * 1000)
    (tmp_path / "s.star.gz").write_bytes(packed)
    assert len(read_star(tmp_path / "s.star.gz")) == 1000
    (tmp_path / "s.star.gz").write_bytes(packed[:-9])
    with pytest.raises(ParticleFileError, match="cannot be unpacked"):
        read_star(tmp_path / "s.star.gz")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_comments_behind_headings_labels_and_rows(tmp_path: Path, newline: str) -> None:
    text = "data_optics # one\nloop_ # of them\n_rlnOpticsGroup #1 number\n1 # a comment\n"
    text += "data_particles  # v 3\n\nloop_\t# table\n_rlnA #1\n_rlnB #2\n1 #2\n3 4 # both '5\n"
    (tmp_path / "s.star").write_bytes(text.replace("\n", newline).encode())
    star = read_star(tmp_path / "s.star")
    assert star.optics is not None
    assert star.optics["rlnOpticsGroup"].tolist() == ["1"]
    assert [column.tolist() for column in star.particles.values()] == [["1", "3"], ["#2", "4"]]


def test_other_tables_are_at_hand(tmp_path: Path) -> None:
    text = "data_general\n_rlnX 1 # c\n_rlnY 'a b'\n\ndata_particles\nloop_\n_rlnImageName\n1@a.mrcs\n"
    star = _table(text, tmp_path / "s.star")
    assert {name: column.tolist() for name, column in star.others["general"].items()} == {
        "rlnX": ["1"],
        "rlnY": ["a b"],
    }


def test_a_row_that_starts_like_a_heading(tmp_path: Path) -> None:
    star = _table("data_particles\nloop_\n_rlnMicrographName\n_rlnB\ndata_01/a.mrc 1\n", tmp_path / "s.star")
    assert star.particles["rlnMicrographName"].tolist() == ["data_01/a.mrc"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data_particles\nloop_\n_rlnA\n_rlnB\n1 2\n3\n", "line 6, row 2: 1 values for 2 labels"),
        ("data_particles\nloop_\n_rlnA\n_rlnB\n1 2\n3 4 5\n", "row 2: 3 values for 2 labels"),
        ("data_particles\nloop_\n_rlnA\n_rlnA\n1 2\n", "label _rlnA appears twice"),
        ("data_particles\n_rlnA #1\n_rlnB #2\n1 2\n", "line 4: '1 2'.* or loop_ before a table"),
        ("data_general\n_rlnA 1\nloop_\n_rlnB\n2\n", "line 3: 'loop_'"),
        ("data_general\n_rlnA\n", "line 2: '_rlnA'"),
        ("data_a\nloop_\n_rlnA\n1\n\ndata_a\nloop_\n_rlnA\n2\n", "line 7: a second table data_a"),
        ("data_particles\nloop_\n_rlnA\n", "no table of particles"),
        ("data_optics\nloop_\n_rlnA\n1\n", "no table of particles"),
        ("hello\n", "no table of particles"),
        ("", "no table of particles"),
    ],
)
def test_damaged_files(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ParticleFileError, match=said):
        _table(text, tmp_path / "s.star")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ParticleFileError, match="does not exist"):
        read_star(tmp_path / "none.star")
    with pytest.raises(ParticleFileError, match="cannot be read"):
        read_star(tmp_path)
    with pytest.raises(OutputError, match="folder does not exist"):
        write_star(tmp_path / "none" / "s.star", StarTable(None, {"rlnA": np.array(["1"])}))


def test_numbers_by_column_and_row(tmp_path: Path) -> None:
    text = "data_particles\nloop_\n_rlnDefocusU\n_rlnB\n1.5 1\n15e2 x\n"
    star = _table(text, tmp_path / "s.star")
    assert star.floats("rlnDefocusU").tolist() == [1.5, 1500.0]
    assert star.floats("rlnPhaseShift", default=0.0).tolist() == [0.0, 0.0]
    with pytest.raises(ParticleFileError, match=r"s\.star, row 2: rlnB is 'x'"):
        star.floats("rlnB")
    with pytest.raises(ParticleFileError, match=r"s\.star: column rlnDefocusV is missing.*Pass --no-ctf"):
        star.floats("rlnDefocusV", advice="pass --no-ctf")
    with pytest.raises(ParticleFileError, match="column rlnImageName is missing"):
        star.require("rlnImageName")


@pytest.mark.parametrize("value", ["nan", "inf", "", "1,5"])
def test_values_that_are_no_finite_numbers(value: str) -> None:
    with pytest.raises(ParticleFileError, match="row 3: rlnDefocusU is"):
        StarTable(None, {"rlnDefocusU": np.array(["1", "2", value])}).floats("rlnDefocusU")


def test_a_hundred_thousand_rows_in_seconds(tmp_path: Path) -> None:
    rows = "".join(f"{i:06d}@Extract/job012/mic{i // 100}.mrcs {i}.500000 {i}.25 45.0 1\n" for i in range(100_000))
    labels = "".join(f"_rln{name}\n" for name in "ABCDE")
    started_s = time.process_time()
    star = _table(f"data_particles\nloop_\n{labels}{rows}", tmp_path / "s.star")
    write_star(tmp_path / "out.star", star)
    assert len(star) == 100_000
    assert time.process_time() - started_s < 10


def test_tables_of_many_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are parsed and written some at a time; what is not UTF-8 may be in one of them only."""
    monkeypatch.setattr("cryoeq.io.star_text._CHUNK", 3)
    raw = b"data_particles\n\nloop_\n_rlnImageName #1\n_rlnB #2\n"
    rows = [f"{i}@a.mrcs\t'b {i}'\n".encode() for i in range(10)]
    rows[7] = b"7@\xe9t\xe9.mrcs\tb\n"
    (tmp_path / "s.star").write_bytes(raw + b"".join(rows))
    star = read_star(tmp_path / "s.star")
    assert star.particles["rlnB"].tolist() == [f"b {i}" if i != 7 else "b" for i in range(10)]
    write_star(tmp_path / "out.star", star)
    written = (tmp_path / "out.star").read_bytes()
    assert written.split(b"_rlnB #2\n")[1] == b"".join(rows).replace(b"'", b'"') + b"\n"
    some = star.rows([8, 2])
    assert some.particles["rlnImageName"].tolist() == ["8@a.mrcs", "2@a.mrcs"]
    (tmp_path / "s.star").write_bytes(raw + b"".join(rows[:5]) + b"5\n")
    with pytest.raises(ParticleFileError, match="row 6: 1 values for 2 labels"):
        read_star(tmp_path / "s.star")


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "n", "n_groups", "n_columns"),
    [
        ("relion31_segments/relion31.6opticsgroups.star", 139, 6, None),
        ("relion31_segments/relion31.star", 5, 1, 26),
        ("relion31_segments/relion31.v2.star", 5, 1, 26),
        ("real_70s_tilts/particles.star", 1430, 4, 17),
        ("toy_cryodrgn/toy_projections.star", 1000, None, 9),
        ("empiar_10076_seven/empiar_10076_7.star", 7, None, 10),
    ],
)
def test_files_of_others(
    reference_data: Path, tmp_path: Path, name: str, n: int, n_groups: int | None, n_columns: int | None
) -> None:
    star = read_star(reference_data / name)
    assert len(star) >= 5 if n == 139 else len(star) == n
    assert (None if star.optics is None else len(star.optics["rlnOpticsGroup"])) == n_groups
    assert n_columns in (None, len(star.particles))
    write_star(tmp_path / "out.star", star)
    back = read_star(tmp_path / "out.star")
    assert list(back.particles) == list(star.particles)
    assert all((back.particles[column] == star.particles[column]).all() for column in star.particles)
