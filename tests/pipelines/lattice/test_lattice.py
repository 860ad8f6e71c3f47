"""``cryoeq lattice``: cells reduced, lattices found in micrographs and subtracted from them."""

import json
import math
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
import torch

from cryoeq.cli.main import run
from cryoeq.io.mrc import write_image, write_map
from cryoeq.simulation.density import sample_atoms
from phantoms import chiral_phantom

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def crystal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``cryoeq simulate --crystal`` leaves it: one micrograph of 384 px of 4 Angstrom."""
    folder = tmp_path_factory.mktemp("crystal")
    write_map(folder / "phantom.mrc", sample_atoms(chiral_phantom(36.0), 24, 4.0))
    options = "--crystal 110 90 100 --disorder 3 --micrograph 384 --snr 0.1 --device cpu".split()  # noqa: SIM905
    assert run(["simulate", str(folder / "phantom.mrc"), *options, "-o", str(folder / "out")]) == 0
    return folder / "out"


def test_the_lattice_of_a_file_is_found_indexed_and_subtracted(
    crystal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    micrograph, out = crystal / "micrograph_001.mrc", tmp_path / "out"
    assert run(["lattice", "find", str(micrograph), "--subtract", "-o", str(out)]) == 0
    assert "γ = 1" in capsys.readouterr().out
    written = json.loads((out / "lattice.json").read_text())
    assert written["a_angstrom"] == pytest.approx(90, rel=0.01)
    assert written["b_angstrom"] == pytest.approx(110, rel=0.01)
    assert written["gamma_deg"] == pytest.approx(100, abs=0.7)
    assert abs(written["determinant"]) == 1
    change = np.array(written["change_of_basis_columns"]).T
    np.testing.assert_allclose(
        np.array(written["basis_angstrom"]).T, np.array(written["found_basis_angstrom"]).T @ change, rtol=1e-12
    )
    truth = np.array(json.loads((crystal / "truth.json").read_text())["micrographs"][0]["basis_angstrom"])
    change = np.linalg.solve(np.array(written["basis_angstrom"]).T, truth.T)
    assert np.abs(change - change.round()).max() < 0.03  # the same lattice, in the same orientation
    spots = starfile.read(out / "spots.star")
    assert len(spots) == written["n_spots"] > 10
    predicted = spots[["cryoeqMillerH", "cryoeqMillerK"]].to_numpy() @ np.array(written["reciprocal_per_angstrom"])
    measured = spots[["cryoeqFrequencyX", "cryoeqFrequencyY"]].to_numpy()
    assert np.linalg.norm(predicted - measured, axis=1).max() < 1.6 / (384 * 4)
    assert (out / "spectrum.png").read_bytes().startswith(PNG)
    assert mrcfile.validate(out / "micrograph_001_subtracted.mrc"), capsys.readouterr().out
    assert run(["lattice", "find", str(out / "micrograph_001_subtracted.mrc"), "-o", str(tmp_path / "again")]) == 4


def test_a_hot_pixel_does_not_hide_the_lattice(
    crystal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = torch.from_numpy(mrcfile.read(crystal / "micrograph_001.mrc")).reshape(384, 384).clone()
    image[100, 7], image[300:302, 51] = 1e30, -1e6
    write_image(tmp_path / "hot.mrc", image, 4.0)
    assert run(["lattice", "find", str(tmp_path / "hot.mrc"), "-o", str(tmp_path / "out")]) == 0
    assert "3 hot or dead pixels were replaced" in capsys.readouterr().err
    written = json.loads((tmp_path / "out" / "lattice.json").read_text())
    assert written["a_angstrom"] == pytest.approx(90, rel=0.01)
    assert written["b_angstrom"] == pytest.approx(110, rel=0.01)


def test_a_strip_is_no_micrograph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "strip.mrc", torch.randn(7, 128, generator=torch.Generator().manual_seed(2)), 2.0)
    assert run(["lattice", "find", str(tmp_path / "strip.mrc"), "-o", str(tmp_path / "out")]) == 3
    assert "strip.mrc is 128 x 7 px. A micrograph of 32 px or more a side" in capsys.readouterr().err


def test_noise_has_no_lattice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = torch.randn(200, 256, generator=torch.Generator().manual_seed(2))
    write_image(tmp_path / "noise.mrc", image, 2.0)
    assert run(["lattice", "find", str(tmp_path / "noise.mrc"), "-o", str(tmp_path / "out")]) == 4
    message = capsys.readouterr().err
    assert "no lattice stands out of the noise" in message
    assert "--max-cell" in message
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["spectrum.png"]


@pytest.mark.parametrize("reducer", ["lagrange-gauss", "lll", "neural"])
def test_a_plane_cell_is_reduced(reducer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "cell.json"
    command = ["lattice", "reduce", "--cell", "82.3 61 30", "--reducer", reducer, "--json", str(target)]
    assert run(command) == 0
    assert "Determinant" in capsys.readouterr().out
    reduced = json.loads(target.read_text())
    third = math.sqrt(82.3**2 + 61**2 - 2 * 82.3 * 61 * math.cos(math.radians(30)))
    assert sorted(reduced["lengths"]) == pytest.approx([third, 61.0])


def test_a_space_cell_is_niggli_reduced_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lattice", "reduce", "--cell", "50 60 70 85 95 160", "--json", str(tmp_path / "c.json")]) == 0
    assert "niggli" in capsys.readouterr().out
    lengths = json.loads((tmp_path / "c.json").read_text())["lengths"]
    assert lengths == sorted(lengths)


def test_a_basis_of_six_dimensions(tmp_path: Path) -> None:
    rows = torch.eye(6).long()
    rows[0] += 7 * rows[1] - 3 * rows[4]
    rows[2] += 5 * rows[0]
    (tmp_path / "basis.txt").write_text("\n".join(" ".join(map(str, row)) for row in rows.tolist()))
    command = ["lattice", "reduce", "--basis", str(tmp_path / "basis.txt"), "--json", str(tmp_path / "r.json")]
    assert run(command) == 0
    assert json.loads((tmp_path / "r.json").read_text())["lengths"] == pytest.approx([1.0] * 6)


def test_a_grid_of_tiles_is_reduced_jointly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A nearly hexagonal cell with 2 % of noise in 4 x 5 tiles: one basis throughout, in order and sign too."""
    generator = np.random.default_rng(3)
    cell = np.array([[100.0, 0.0], [-49.5, 86.8]])
    tiles = cell * (1 + 0.02 * generator.standard_normal((20, 2, 2)))
    tiles[::3] = tiles[::3, ::-1]
    tiles[1::4, 0] += 3 * tiles[1::4, 1]
    text = "\n\n".join("\n".join(f"{x} {y}" for x, y in tile) for tile in tiles)
    (tmp_path / "tiles.txt").write_text(text)
    command = ["lattice", "reduce", "--basis", str(tmp_path / "tiles.txt"), "--tiles", "4,5"]
    assert run([*command, "--json", str(tmp_path / "grid.json")]) == 0
    assert "jointly 0.0% of neighbours" in " ".join(capsys.readouterr().out.split())
    written = json.loads((tmp_path / "grid.json").read_text())
    assert written["neighbours_in_different_bases"] == 0
    assert [(tile["row"], tile["column"]) for tile in written["tiles"][4:6]] == [(0, 4), (1, 0)]
    reduced = np.array([tile["reduced_basis"] for tile in written["tiles"]])
    assert np.linalg.norm(reduced - reduced[0], axis=-1).max() < 25
    for tile, given in zip(written["tiles"], tiles, strict=True):
        change = np.array(tile["change_of_basis_columns"])
        np.testing.assert_allclose(change @ given, tile["reduced_basis"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["reduce"], 2, "--cell or as --basis"),
        (["reduce", "--cell", "1 2"], 2, "has 2 numbers"),
        (["reduce", "--cell", "10 10 180"], 2, "flat or impossible"),
        (["reduce", "--cell", "10 10 90", "--reducer", "niggli"], 2, "niggli for 3"),
        (["reduce", "--basis", "{folder}/short.txt", "--reducer", "neural"], 3, "no fewer numbers than vectors"),
        (["reduce", "--basis", "{folder}/flat.txt"], 3, "not independent"),
        (["reduce", "--basis", "{folder}/none.txt"], 3, "cannot be read"),
        (["reduce", "--basis", "{folder}/nine.txt", "--reducer", "neural"], 2, "no trained reducer of 9"),
        (["reduce", "--cell", "10 10 90", "--tiles", "2,2"], 2, "--tiles is for a --basis file"),
        (["reduce", "--basis", "{folder}/nine.txt", "--tiles", "2,2"], 3, "4 bases were expected"),
        (["reduce", "--basis", "{folder}/flat.txt", "--tiles", "1,2"], 3, "holds 2 lines"),
        (["find", "{folder}/none.mrc"], 3, "does not exist"),
        (["find", "{folder}/stack.mrc"], 3, "holds 2 images"),
        (["find", "{folder}/stack.mrc", "--min-cell", "500"], 2, "--min-cell must be below"),
    ],
)
def test_wrong_use_is_explained(
    options: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.txt").write_text("1 2\n3 4\n5 6\n")
    (tmp_path / "flat.txt").write_text("1 2\n2 4\n")
    (tmp_path / "nine.txt").write_text("\n".join(" ".join(str(int(i == j)) for j in range(9)) for i in range(9)))
    with mrcfile.new(tmp_path / "stack.mrc") as file:
        file.set_data(np.zeros((2, 16, 16), np.float32))
        file.voxel_size = 1.0
    target = ["-o", str(tmp_path / "out")] if options[0] == "find" else []
    assert run(["lattice", *(option.format(folder=tmp_path) for option in options), *target]) == code
    assert message in capsys.readouterr().err
