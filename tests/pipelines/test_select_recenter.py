"""``cryoeq select --recenter``: coordinates move to the centres that were found, and no particle moves."""

from pathlib import Path

import numpy as np
import pytest

from cryoeq.cli.main import run
from cryoeq.io.particles import read_table, star_poses
from cryoeq.io.star import StarTable

COUNT, PIXEL, MICROGRAPH_PIXEL = 30, 3.0, 1.2
HEAD = """data_optics

loop_
_rlnOpticsGroup #1
_rlnImagePixelSize #2
_rlnMicrographPixelSize #3
1 {pixel} {first}
7 {pixel} {second}

data_particles

loop_
_rlnImageName #1
_rlnOpticsGroup #2
_rlnCoordinateX #3
_rlnCoordinateY #4
_rlnAngleRot #5
_rlnAngleTilt #6
_rlnAnglePsi #7
_rlnOriginX{unit} #8
_rlnOriginY{unit} #9
_note #10
"""


def select(*words: object, code: int = 0) -> None:
    assert run(["select", *map(str, words)]) == code


def written(folder: Path, *, unit: str = "Angst", second: float = 0.6) -> Path:
    """A star file with coordinates and offsets in Angstrom, or in pixels of the images (RELION 3.0)."""
    generator = np.random.default_rng(3)
    offsets = generator.normal(0, 8, (COUNT, 2)) / (1.0 if unit else PIXEL)
    coordinates = generator.uniform(100, 900, (COUNT, 2))
    rows = [
        f"{i + 1:06d}@s.mrcs {7 if i % 3 == 0 else 1} {coordinates[i, 0]:.6f} {coordinates[i, 1]:.6f} 1 2 3 "
        f"{offsets[i, 0]:.6f} {offsets[i, 1]:.6f} n{i}\n"
        for i in range(COUNT)
    ]
    path = folder / "p.star"
    path.write_text(HEAD.format(pixel=PIXEL, first=MICROGRAPH_PIXEL, second=second, unit=unit) + "".join(rows))
    return path


def places(table: StarTable, pixel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates, and offsets in pixels of the micrographs."""
    coordinates = np.stack([table.floats(name) for name in ("rlnCoordinateX", "rlnCoordinateY")], 1)
    return coordinates, star_poses(table).shifts_angstrom.double().numpy() / pixel[:, None]


@pytest.mark.parametrize("unit", ["Angst", ""])
@pytest.mark.parametrize("given", [None, 2.0])
def test_a_particle_stays_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unit: str, given: float | None
) -> None:
    star = written(tmp_path, unit=unit)
    options = [] if given is None else ["--micrograph-angpix", given]
    select(star, "--recenter", *options, "-o", tmp_path / "out.star")
    assert "moved by" in capsys.readouterr().out
    before, after = read_table(star), read_table(tmp_path / "out.star")
    group = np.array(before.particles["rlnOpticsGroup"].tolist())
    pixel = np.where(group == "7", 0.6, MICROGRAPH_PIXEL) if given is None else np.full(COUNT, given)
    (old, old_offset), (new, new_offset) = places(before, pixel), places(after, pixel)
    assert np.abs(old_offset).max() > 3
    # A positive offset moves the image to the right: the particle lies left of the centre of its box.
    np.testing.assert_allclose(new - new_offset, old - old_offset, atol=1e-4)
    assert np.abs(new_offset).max() <= 0.5 + 1e-4
    np.testing.assert_allclose((new - old) - np.round(new - old), 0, atol=1e-5)
    for column in ("rlnImageName", "rlnOpticsGroup", "rlnAnglePsi", "note"):
        assert after.particles[column].tolist() == before.particles[column].tolist()
    assert after.optics is not None
    assert before.optics is not None
    assert {name: column.tolist() for name, column in after.optics.items()} == {
        name: column.tolist() for name, column in before.optics.items()
    }


def test_the_image_that_is_extracted_there_is_centred(tmp_path: Path) -> None:
    """A spot in a micrograph, extracted around whole pixels as pickers do: its distance from pixel n // 2."""
    box, spot = 32, np.array([71.4, 55.8])  # x, y
    y, x = np.mgrid[:128, :128]
    micrograph = np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / 8)

    def centre(coordinate: np.ndarray) -> np.ndarray:
        column, row = (np.round(coordinate) - box // 2).astype(int)
        image = micrograph[row : row + box, column : column + box]
        weights = image / image.sum()
        return np.array([(weights * np.arange(box)).sum(), (weights * np.arange(box)[:, None]).sum()]) - box // 2

    first = np.array([66.0, 60.0])
    offset = -centre(first)  # that centres the particle
    text = HEAD.format(pixel=1.0, first=1.0, second=1.0, unit="Angst")
    (tmp_path / "p.star").write_text(f"{text}000001@s.mrcs 1 66 60 0 0 0 {offset[0]:.6f} {offset[1]:.6f} n\n")
    select(tmp_path / "p.star", "--recenter", "-o", tmp_path / "out.star")
    (coordinate,), (left,) = places(read_table(tmp_path / "out.star"), np.ones(1))
    assert np.abs(centre(first)).max() > 4
    assert np.abs(centre(coordinate)).max() <= 0.5
    np.testing.assert_allclose(-centre(coordinate), left, atol=1e-3)


def cs_table(*, with_pixel: bool) -> np.ndarray:
    kinds = [
        ("uid", "<u8"), ("blob/path", "S16"), ("blob/idx", "<u4"), ("blob/psize_A", "<f4"),
        ("alignments3D/shift", "<f4", (2,)), ("alignments3D/pose", "<f4", (3,)), ("alignments3D/psize_A", "<f4"),
        ("location/micrograph_shape", "<u4", (2,)), ("location/center_x_frac", "<f4"),
        ("location/center_y_frac", "<f4"), *([("location/micrograph_psize_A", "<f4")] if with_pixel else []),
    ]  # fmt: skip
    table, generator = np.zeros(COUNT, kinds), np.random.default_rng(4)
    table["uid"], table["blob/idx"], table["blob/path"] = np.arange(COUNT), np.arange(COUNT), b">J1/s.mrcs"
    table["blob/psize_A"], table["alignments3D/psize_A"] = 2.0, 2.5
    table["alignments3D/shift"] = generator.normal(0, 4, (COUNT, 2))
    table["location/micrograph_shape"] = 400, 1000  # rows, columns
    table["location/center_x_frac"] = generator.uniform(0.2, 0.8, COUNT)
    table["location/center_y_frac"] = generator.uniform(0.2, 0.8, COUNT)
    table["location/center_y_frac"][5], table["alignments3D/shift"][5] = 0.001, (0.0, 9.0)
    if with_pixel:
        table["location/micrograph_psize_A"] = MICROGRAPH_PIXEL
    return table


@pytest.mark.parametrize("with_pixel", [True, False])
def test_a_table_of_cryosparc(tmp_path: Path, capsys: pytest.CaptureFixture[str], with_pixel: bool) -> None:
    before = cs_table(with_pixel=with_pixel)
    with (tmp_path / "p.cs").open("wb") as file:
        np.save(file, before)
    options = [] if with_pixel else ["--micrograph-angpix", MICROGRAPH_PIXEL]
    select(tmp_path / "p.cs", "--recenter", *options, "-o", tmp_path / "out.cs")
    assert "1 particles have their centre outside" in capsys.readouterr().err
    after = np.load(tmp_path / "out.cs")
    scale = 2.5 / MICROGRAPH_PIXEL
    for axis, (name, side) in enumerate([("location/center_x_frac", 1000), ("location/center_y_frac", 400)]):
        old, new = before[name].astype(float) * side, after[name].astype(float) * side
        old_offset, new_offset = (each["alignments3D/shift"][:, axis] * scale for each in (before, after))
        np.testing.assert_allclose(new - new_offset, old - old_offset, atol=1e-3)
        assert np.abs(new_offset).max() <= 0.5 + 1e-4
        assert np.abs(new - old).max() > 3
    for name in ("uid", "blob/path", "blob/idx", "alignments3D/pose", "location/micrograph_shape"):
        assert after[name].tolist() == before[name].tolist()


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = written(tmp_path).read_text()
    path, out = tmp_path / "q.star", tmp_path / "out.star"
    path.write_text(text.replace("_rlnMicrographPixelSize", "_rlnMicrographOriginalPixelSize"))
    select(path, "--recenter", "-o", out, code=2)
    assert "no rlnMicrographPixelSize" in (said := capsys.readouterr().err)
    assert "--micrograph-angpix" in said
    path.write_text(text.replace("_rlnCoordinateX", "_rlnOther"))
    select(path, "--recenter", "-o", out, code=3)
    assert "rlnCoordinateX is missing" in capsys.readouterr().err
    path.write_text(text.replace("_rlnOriginXAngst", "_rlnOther"))
    select(path, "--recenter", "-o", out, code=3)
    assert "rlnOriginXAngst is missing" in capsys.readouterr().err
    select(written(tmp_path), "--micrograph-angpix", 2, "-o", out, code=2)
    assert not out.exists()
    with (tmp_path / "p.cs").open("wb") as file:
        np.save(file, cs_table(with_pixel=False))
    select(tmp_path / "p.cs", "--recenter", "-o", tmp_path / "out.cs", code=2)
    select(tmp_path / "p.cs", "--recenter", "--micrograph-angpix", 1, "-o", out, code=2)
    assert "kept in a .cs only" in capsys.readouterr().err
    assert not out.exists()


def test_with_a_condition_the_rows_that_it_keeps(tmp_path: Path) -> None:
    star = written(tmp_path)
    some = tmp_path / "some.star"
    lines = star.read_text().splitlines(keepends=True)
    some.write_text("".join(line for line in lines if "@" not in line or int(line[:6]) % 2))
    select(star, "--only", some, "--recenter", "-o", tmp_path / "out.star")
    select(star, "--recenter", "-o", tmp_path / "all.star")
    every, kept = read_table(tmp_path / "all.star"), read_table(tmp_path / "out.star")
    for column in ("rlnImageName", "rlnCoordinateX", "rlnOriginYAngst"):
        assert kept.particles[column].tolist() == every.particles[column].tolist()[::2]


def test_offsets_in_pixels_too_are_what_is_left(tmp_path: Path) -> None:
    star = written(tmp_path)
    head, row, rows = star.read_text().partition("000001@")
    lines = [f"{line} {' '.join(str(float(value) / PIXEL) for value in line.split()[7:9])}" for line in
             (row + rows).splitlines()]  # fmt: skip
    star.write_text(head + "_rlnOriginX #11\n_rlnOriginY #12\n" + "\n".join(lines) + "\n")
    select(star, "--recenter", "-o", tmp_path / "out.star")
    after = read_table(tmp_path / "out.star")
    for axis in "XY":
        angstrom, px = after.floats(f"rlnOrigin{axis}Angst"), after.floats(f"rlnOrigin{axis}")
        np.testing.assert_allclose(px * PIXEL, angstrom, atol=1e-5)
        assert np.abs(angstrom).max() <= MICROGRAPH_PIXEL / 2 + 1e-5
