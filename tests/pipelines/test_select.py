"""``cryoeq select``: which rows are kept, that nothing else changes, and what is refused."""

import base64
import gzip
import io
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cryoeq.cli.main import run
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.io.particles import read_particles, read_table
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json
from cryoeq.outputs.run_folder import RunFolder

COUNT = 24
# What Dataset.load("out.cs").save("again.cs") of cryosparc-tools 5.0.3 wrote of classes 1 and 3, half set 2, of
# ``cs_table``: packed by zlib.
BY_CRYOSPARC_TOOLS = (
    r"c-oun7wQ`j$;hycv06PPwK%y*-AW-^L%lRJMO{Zh-KNw+T~kLvLp>=cKS{qJu_OZ|S`%z&h$NhuQUOtGf+Sd+kywxl69$SJ>1ZMu"
    r"RGe9r8t({}PJ`-7%*jm8%T3KIDK>V|FD}T*EI~08RXQUxtpuhU$#4`!1^LCPNNS9+sv+c%<ebFfV%!b^OUDCkDoHKM%rC-iPGU|$"
    r"Mj~7~7RX4;FDfZY%!|)2N=XF;x?5sSaVk(85^z=u8WuW0V`>%f11@F;FleyzGSn~D%PmSSW&jBZKrsWu0((XVWZ+<jzzgglVjDnw"
    r"2Ubj@Sn(RQzzzx9Gl9i4z(#Un8pVm%C;@u}hPjFZNH;ieV;aSc*C+#f1ctdP0%VjuKc-Rqc#SHsM_`z%EWorNrcr`;jq0#RV3?~W"
    r"*n#3h6w@eCyhg3CM_`z%GQb`b$23YDuTeYf5g6vG58%WA07<>WaR"
)
HEAD = """# version 30001

data_optics

loop_ # groups
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnImagePixelSize #3
1 used 5.0
2 "not used" 2.50

data_particles

loop_
_rlnImageName #1
_rlnClassNumber #2
_cryoeqJunkProbability #3
_rlnMaxValueProbDistribution #4
_rlnRandomSubset #5
_rlnOpticsGroup #6
_note #7
"""
TAIL = "\ndata_general\n\n_rlnX  'kept as it is' # a comment\n"
ROWS = [
    f"{i:06d}@s.mrcs  {i % 3 + 1}\t{i / COUNT:.4f} {1 - (i * 7 % COUNT) / COUNT:.3f}  {i % 2 + 1} 1 'row {i}'  # {i}\n"
    for i in range(COUNT)
]


@pytest.fixture
def star(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "p.star"
    path.write_text(HEAD + "".join(ROWS) + TAIL)
    return path


def numbers(path: Path) -> list[int]:
    """Rows of the input that a selection holds."""
    return [int(name.partition("@")[0]) for name in read_table(path).particles["rlnImageName"].tolist()]


def select(*words: object, code: int = 0) -> None:
    assert run(["select", *map(str, words)]) == code


def test_all_but_the_rows_that_are_left_out_stays_byte_by_byte(star: Path) -> None:
    select(star, "--class", "1,3", "--junk-below", 0.5, "-o", "out.star")
    expected = [i for i in range(COUNT) if i % 3 != 1 and round(i / COUNT, 4) < 0.5]
    assert Path("out.star").read_text() == HEAD + "".join(ROWS[i] for i in expected) + TAIL


@pytest.mark.parametrize("heading", ["data_", "data_images"])
def test_files_of_relion_30_stay_flat(star: Path, heading: str) -> None:
    text = f"\n{heading}\n\nloop_\n_rlnImageName\n_rlnClassNumber\n"
    rows = [f"{i}@s.mrcs {i % 2 + 1}\n" for i in range(6)]
    star.write_text(text + "".join(rows))
    select(star, "--class", 2, "-o", "out.star")
    assert Path("out.star").read_text() == text + "".join(rows[1::2])


@pytest.mark.parametrize(
    "encode", [lambda text: gzip.compress(text.encode()), lambda text: text.encode("utf-16")], ids=["gzip", "utf-16"]
)
def test_packed_files_and_other_encodings_become_plain(star: Path, encode: Callable[[str], bytes]) -> None:
    text = star.read_text()
    star.write_bytes(encode(text))
    select(star, "--class", 1, "-o", "out.star")
    assert Path("out.star").read_text() == HEAD + "".join(ROWS[::3]) + TAIL


def test_one_row_as_a_list_stays_a_list(star: Path) -> None:
    star.write_text("data_particles\n\n_rlnImageName 1@s.mrcs\n_rlnClassNumber 2\n")
    select(star, "--class", 2, "-o", "out.star")
    assert Path("out.star").read_text() == star.read_text()


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--class", "2"], lambda i: i % 3 == 1),
        (["--half", "1"], lambda i: i % 2 == 0),
        (["--junk-below", "0.25"], lambda i: i < 6),
        (["--half", "2", "--class", "3,1"], lambda i: i % 2 == 1 and i % 3 != 1),
    ],
)
def test_conditions_of_single_particles(star: Path, words: list[str], kept: Any) -> None:
    select(star, *words, "-o", "out.star")
    expected = [i for i in range(COUNT) if kept(i)]
    assert numbers(Path("out.star")) == expected
    select("out.star", *words, "-o", "again.star")
    assert Path("again.star").read_bytes() == Path("out.star").read_bytes(), "twice is once"
    select(star, *words, "--invert", "-o", "others.star")
    assert numbers(Path("others.star")) == [i for i in range(COUNT) if i not in expected]


def test_the_best_are_those_of_what_other_conditions_left(star: Path, capsys: pytest.CaptureFixture[str]) -> None:
    select(star, "--class", 2, "--keep", 0.5, "-o", "out.star")
    of_class = sorted(range(1, COUNT, 3), key=lambda i: i * 7 % COUNT)[: COUNT // 6]
    assert numbers(Path("out.star")) == sorted(of_class), "the most probable, in the order of the file"
    printed = capsys.readouterr().out
    assert "4 of 8, by rlnMaxValueProbDistribution, highest first" in printed
    assert "8 of 24, by rlnClassNumber" in printed
    select(star, "--class", 2, "--keep", 0.5, "--by", "_cryoeqJunkProbability", "-o", "out.star")
    assert numbers(Path("out.star")) == [1, 4, 7, 10], "low ones are better"
    select(
        star, "--class", 2, "--keep", 0.5, "--by", "rlnMaxValueProbDistribution", "--best", "lowest", "-o", "out.star"
    )
    assert numbers(Path("out.star")) == sorted(set(range(1, COUNT, 3)) - set(of_class))


def test_the_score_of_screen_comes_first(star: Path, capsys: pytest.CaptureFixture[str]) -> None:
    star.write_text(star.read_text().replace("_note", "_rlnParticleSelectZScore").replace("'row ", "'"))
    select(star, "--keep", 0.25, "-o", "out.star")
    assert numbers(Path("out.star")) == [0, 1, 2, 3, 4, 5]
    assert "by rlnParticleSelectZScore, lowest first" in capsys.readouterr().out


def test_images_of_other_files(star: Path) -> None:
    select(star, "--class", 1, "-o", "one.star")
    text = Path("one.star").read_text()
    Path("renumbered.star").write_text(text.replace("\n0000", "\n").replace("@", "@./x/../"))
    select(star, "--only", "renumbered.star", "-o", "only.star")
    assert Path("only.star").read_text() == text
    select(star, "--exclude", "renumbered.star", "--half", 1, "-o", "others.star")
    assert numbers(Path("others.star")) == [i for i in range(0, COUNT, 2) if i % 3]


def test_names_that_are_not_among_the_particles_are_told(star: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("more.star").write_text("data_\nloop_\n_rlnImageName\n3@s.mrcs\n2@other.mrcs\n")
    select(star, "--only", "more.star", "-o", "out.star")
    assert numbers(Path("out.star")) == [3]
    said = capsys.readouterr().err
    assert f"1 of 2 images that more.star names are not in {star}, by rlnImageName; the first is 2@other.mrcs" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "No condition is given"),
        (["--invert"], "No condition is given"),
        (["--class", "7"], "--class 7 leaves none of 24 particles. The classes are 1, 2, 3"),
        (["--class", "0"], "--class is '0'. Expected a number greater than or equal to 1"),
        (["--class", "x"], "--class is 'x'"),
        (["--class", ","], "--class is []"),
        (["--half", "3"], "--half is 3"),
        (["--keep", "80"], "--keep is 80"),
        (["--junk-below", "0.2", "--half", "1", "--class", "3", "--only", "none.star"], "none.star does not exist"),
        (
            ["--class", "2", "--junk-below", "0.04"],
            "none of 8 particles. cryoeqJunkProbability is 0.0417 or more",
        ),
        (["--keep", "0.5", "--by", "rlnX"], "column rlnX is missing"),
        (["--keep", "0.5", "--by", "_note"], "row 1: note is 'row 0'"),
        (["--keep", "0.5", "--by", "rlnOpticsGroup"], "Add --best highest or lowest"),
        (["--balance-views"], "column rlnAngleRot is missing"),
        (["--junk-below", "1", "--invert"], "--invert leaves none"),
        (["--half", "1", "-o", "p.star"], "p.star would be written over"),
        (["--half", "1", "-o", "other.star"], "other.star is there already, and no selection"),
        (["--half", "1", "-o", "out.cs"], "A .cs can be written of a .cs alone"),
        (["--half", "1", "-o", "nowhere/out.star"], "its folder does not exist"),
    ],
)
def test_what_is_refused(star: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    Path("other.star").write_text("mine")
    before = star.read_bytes()
    assert run(["select", str(star), *words]) in {2, 3}
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert {path.name for path in star.parent.iterdir()} == {"p.star", "other.star"}
    assert (star.read_bytes(), Path("other.star").read_text()) == (before, "mine")


@pytest.mark.parametrize(
    ("label", "words", "said"),
    [
        ("rlnClassNumber", ["--class", "1"], "rlnClassNumber is missing.*A run of one structure"),
        ("cryoeqJunkProbability", ["--junk-below", "0.5"], "cryoeqJunkProbability is missing.*--keep"),
        ("rlnRandomSubset", ["--half", "1"], "rlnRandomSubset is missing.*half sets"),
        ("rlnMaxValueProbDistribution", ["--keep", "0.5"], "neither rlnParticleSelectZScore nor.*--by COLUMN"),
    ],
)
def test_columns_that_are_missing(
    star: Path, capsys: pytest.CaptureFixture[str], label: str, words: list[str], said: str
) -> None:
    star.write_text(star.read_text().replace(label, "rlnElse"))
    select(star, *words, code=3)
    assert re.search(said, capsys.readouterr().err.replace("\n", " "))


@pytest.mark.parametrize("value", ["1.5", "-0.1", "nan", "x"])
def test_probabilities_of_junk_are_probabilities(star: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    star.write_text(star.read_text().replace(" 3\t0.0833 ", f" 3\t{value} "))
    select(star, "--junk-below", 0.5, code=3)
    assert "row 3: cryoeqJunkProbability is" in capsys.readouterr().err


def test_warnings_of_what_has_no_effect(star: Path, capsys: pytest.CaptureFixture[str]) -> None:
    select(star, "--junk-below", 1, "--class", "1,9", "-o", "out.star")
    said = capsys.readouterr().err
    assert "--junk-below 1 keeps all of 8 particles" in said
    assert "No particle is of class 9; there are 1, 2, 3" in said
    select(star, "--keep", 0.5, "--by", "rlnClassNumber", "--best", "lowest", "-o", "out.star")
    assert "4 particles were left out with a rlnClassNumber that kept ones have too" in capsys.readouterr().err
    select(star, "--half", 1, "--by", "rlnClassNumber", "--sym", "C2", "-o", "out.star")
    said = capsys.readouterr().err
    assert "because of no --keep: --by" in said
    assert "because of no --balance-views: --sym" in said


def test_nothing_but_an_earlier_selection_is_replaced(star: Path) -> None:
    select(star, "--half", 1)
    select(star, "--half", 2)
    assert numbers(Path("selected.star"))[0] == 0
    assert numbers(Path("selected_2.star"))[0] == 1, "no name given: a free one"
    select(star, "--half", 2, "-o", "selected.star")
    assert numbers(Path("selected.star"))[0] == 1
    Path("mine.star.json").write_text("[]")
    select(star, "--half", 2, "-o", "mine.star", code=2)
    assert Path("mine.star.json").read_text() == "[]"


def test_the_record_tells_what_was_chosen(star: Path) -> None:
    select(star, "--class", "1,2", "--half", 2, "-o", "out.star")
    record = read_json(Path("out.star.json"))
    assert record["inputs"] == [{"path": str(star)}]
    assert (record["of"], record["kept"]) == (24, 8)
    assert [(each["condition"], each["of"], each["kept"]) for each in record["conditions"]] == [
        ("--class 1,2", 24, 16),
        ("--half 2", 16, 8),
    ]
    assert record["settings"]["classes"] == [1, 2]


def test_images_are_found_from_another_folder(
    tiny_particles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a selection of a selection too; a stack of that name beside the selection is not taken for them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "particles.mrcs").write_bytes(b"another")
    select(tiny_particles / "truth.star", "--half", 1, "-o", "far/half.star")
    select("far/half.star", "--keep", 0.5, "--by", "rlnDefocusU", "--best", "lowest", "-o", "low.star")
    stack = read_particles(tmp_path / "low.star")
    assert stack.table.stack_paths == ((tiny_particles / "particles.mrcs").resolve(),)
    assert len(stack.table) == 12


def test_a_run_is_selected_by_its_table(
    tiny_particles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    select(folder, "--half", 1, code=3)
    assert "run holds no run_data.star" in capsys.readouterr().err
    (folder / "run_data.star").write_bytes((tiny_particles / "truth.star").read_bytes())
    select(folder, "--half", 1, "--balance-views", "--balance-percentile", 50, "--healpix-order", 1, "--sym", "c2")
    printed = capsys.readouterr().out
    assert "views (C2):" in printed
    assert "directions thinned out, the fullest from" in printed
    assert read_json(Path("selected.star.json"))["inputs"] == [{"path": str(folder / "run_data.star")}]


def test_views_are_those_of_the_symmetry_of_the_run(
    tiny_particles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ReconstructConfig.model_validate({"particles": "p.star", "output": "run", "search": {"symmetry": "d3"}})
    run_folder = RunFolder.create(tmp_path / "run", command=["cryoeq"], settings=settings.model_dump(mode="json"))
    run_folder.path("run_data.star").write_bytes((tiny_particles / "truth.star").read_bytes())
    select("run", "--balance-views", "-o", "out.star")
    select("run", "--balance-views", "--sym", "C2", "-o", "out.star")
    printed, said = capsys.readouterr()
    assert "48 particles are few for 128 directions" in said
    assert printed.index("views (D3)") < printed.index("views (C2)")
    run_folder.path("job.json").write_text("{}")
    select("run", "--balance-views", "-o", "out.star", code=2)
    assert "Name the point group by --sym" in capsys.readouterr().err


def cs_table(count: int = COUNT) -> np.ndarray:
    kinds: list[Any] = [
        ("uid", "<u8"), ("blob/path", "S16"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)), ("blob/psize_A", "<f4"),
        ("alignments3D/split", "<u4"), ("alignments3D/shift", "<f4", (2,)), ("alignments3D/pose", "<f4", (3,)),
        ("alignments3D/psize_A", "<f4"), ("alignments3D/class", "<u4"), ("alignments3D/class_posterior", "<f4"),
        ("alignments3D/alpha", "<f4"),
    ]  # fmt: skip
    table, rows = np.zeros(count, kinds), np.arange(count)
    table["uid"], table["blob/idx"], table["blob/path"] = rows.astype("<u8") + np.uint64(2**63), rows, b">J1/s.mrcs"
    table["blob/shape"], table["blob/psize_A"], table["alignments3D/psize_A"] = 16, 1.25, 1.25
    table["alignments3D/split"], table["alignments3D/class"] = rows % 2, rows % 3
    table["alignments3D/pose"] = rows[:, None] / 16
    table["alignments3D/class_posterior"] = 1 - (rows * 7 % count) / 32
    table["alignments3D/alpha"] = rows % 5
    return table


@pytest.fixture
def cs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "p.cs").open("wb") as file:
        np.save(file, cs_table())
    return tmp_path / "p.cs"


def test_tables_of_cryosparc_keep_every_field(cs: Path) -> None:
    select(cs, "--class", "1,3", "--half", 2, "-o", "out.cs")
    before, after = np.load(cs), np.load("out.cs")
    expected = [i for i in range(COUNT) if i % 3 != 1 and i % 2]
    assert after.dtype == before.dtype
    assert after.tobytes() == before[expected].tobytes()
    select(cs, "--half", 1)
    assert np.load("selected.cs")["uid"].tolist() == before["uid"][::2].tolist()


def test_cryosparc_tools_read_the_same(cs: Path) -> None:
    select(cs, "--class", "1,3", "--half", 2, "-o", "out.cs")
    ours, theirs = np.load("out.cs"), np.load(io.BytesIO(zlib.decompress(base64.b85decode(BY_CRYOSPARC_TOOLS))))
    assert ours.dtype.names == theirs.dtype.names
    for name in ours.dtype.names:
        np.testing.assert_array_equal(ours[name], theirs[name], name)
        assert ours.dtype[name] == theirs.dtype[name] or name == "blob/path", "it cuts texts to the longest"


def test_a_group_file_lies_beside_a_table_of_cryosparc(cs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the form of cryoSPARC's own: what is in the table, slot by slot, with the type of each."""
    table = np.zeros(COUNT, [*cs_table().dtype.descr, ("alignments_class_1/pose", "<f4", (3,)), ("ctf/df1_A", "<f4")])
    for name in cs_table().dtype.names or ():
        table[name] = cs_table()[name]
    with cs.open("wb") as file:
        np.save(file, table)
    select(cs, "--class", "1,3", "--half", 2, "-o", "out.cs")
    group = yaml.safe_load(Path("out.csg").read_text())
    kinds = {"blob": "blob", "ctf": "ctf", "alignments3D": "alignments3D", "alignments_class_1": "alignments3D"}
    count = len(np.load("out.cs"))
    assert group["results"] == {
        slot: {"metafile": ">out.cs", "num_items": count, "type": f"particle.{kind}"} for slot, kind in kinds.items()
    }
    assert (group["group"]["name"], group["group"]["type"]) == ("particles", "particle")
    assert "out.csg" in capsys.readouterr().out
    select(cs, "--half", 1, "-o", "out.cs")
    assert yaml.safe_load(Path("out.csg").read_text())["results"]["blob"]["num_items"] == COUNT // 2
    select(cs, "--half", 1, "-o", "out.star")
    assert not Path("out.star.csg").exists()


def test_a_group_file_of_others_is_not_replaced(cs: Path) -> None:
    Path("mine.csg").write_text("mine")
    select(cs, "--half", 1, "-o", "mine.cs", code=2)
    Path("selected.csg").write_text("mine")
    select(cs, "--half", 1)
    assert Path("selected_2.cs").is_file()
    assert (Path("mine.csg").read_text(), Path("selected.csg").read_text()) == ("mine", "mine")
    assert not Path("mine.cs").exists()


def test_fields_of_cryosparc_tell_who_is_best(cs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    select(cs, "--keep", 0.25, "--by", "alignments3D/class_posterior", "-o", "out.cs")
    assert sorted(row * 7 % COUNT for row in np.load("out.cs")["blob/idx"].tolist()) == [0, 1, 2, 3, 4, 5]
    select(cs, "--keep", 0.25, "--by", "alignments3D/alpha", code=2)
    assert "--by alignments3D/alpha. Which end of it is better is not known" in capsys.readouterr().err
    select(cs, "--keep", 0.25, "--by", "alignments3D/pose", code=3)
    assert "alignments3D/class_posterior" in capsys.readouterr().err
    select(cs, "--junk-below", 0.5, code=3)


def test_a_star_of_a_cs_says_what_it_leaves_out(cs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    select(cs, "--class", 2, "-o", "out.star")
    assert "All other fields are kept in a .cs only" in capsys.readouterr().err
    star = read_star(Path("out.star"))
    assert star.particles["rlnImageName"].tolist() == [f"{i + 1:06d}@J1/s.mrcs" for i in range(1, COUNT, 3)]
    assert set(star.particles["rlnClassNumber"].tolist()) == {"2"}
    select(cs, "--exclude", "out.star", "-o", "others.cs")
    assert set(np.load("others.cs")["alignments3D/class"].tolist()) == {0, 2}


def test_a_run_of_cryosparc_particles_gives_both(cs: Path) -> None:
    """Conditions on columns that a .cs does not have."""
    folder = cs.parent / "run"
    folder.mkdir()
    (folder / "run_data.cs").write_bytes(cs.read_bytes())
    (folder / "run_data.star").write_text(HEAD + "".join(ROWS))
    select(folder, "--junk-below", 0.25, "-o", "out.cs")
    select(folder, "--junk-below", 0.25, "-o", "out.star")
    assert np.load("out.cs")["blob/idx"].tolist() == numbers(Path("out.star")) == [0, 1, 2, 3, 4, 5]
    with (folder / "run_data.cs").open("wb") as file:
        np.save(file, cs_table(7))
    select(folder, "--junk-below", 0.25, "-o", "out.cs", code=3)


@pytest.mark.parametrize("seed", [0, 1])
def test_views_are_thinned_out_by_seed(cs: Path, seed: int) -> None:
    table = cs_table()
    table["alignments3D/pose"][:20] = 0.5
    table["alignments3D/pose"][20:] = np.array([[0.0, angle, 0.0] for angle in (1.0, 1.6, 2.2, 2.8)])
    with cs.open("wb") as file:
        np.save(file, table)
    words = ["--balance-views", "--balance-percentile", 20, "--healpix-order", 2, "--seed", seed]
    select(cs, *words, "-o", "out.cs")
    kept = np.load("out.cs")["blob/idx"]
    assert set(kept.tolist()) >= {20, 21, 22, 23}
    assert len(kept) == 5
    select(cs, *words, "-o", "out.star")
    select("out.star", *words, "-o", "again.star")
    assert Path("again.star").read_bytes() == Path("out.star").read_bytes()
