"""``cryoeq symmetry``: half maps found by name, files, doubts in words, refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.domain.volume import Volume
from cryoeq.io.mrc import read_map, write_map
from cryoeq.io.text import read_json
from cryoeq.maps.alignment import rotate_map
from cryoeq.pipelines.resolution.half_map_names import halves_beside
from cryoeq.simulation.density import sample_atoms
from phantoms import chiral_phantom, symmetric_phantom

N, PIXEL = 24, 7.0
HALVES = ("run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc")
NOWHERE = torch.zeros(3)


def write_maps(folder: Path, values: torch.Tensor) -> Path:
    generator = torch.Generator().manual_seed(3)
    noise = 0.3 * values.std()
    halves = [values + noise * torch.randn(values.shape, generator=generator) for _ in range(2)]
    for name, half in zip(HALVES, halves, strict=True):
        write_map(folder / name, Volume(half, PIXEL))
    write_map(folder / "run_class001.mrc", Volume((halves[0] + halves[1]) / 2, PIXEL))
    return folder


@pytest.fixture(scope="module")
def threefold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    atoms = symmetric_phantom("C3", torch.Generator().manual_seed(0))
    turn = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # z onto x
    values = rotate_map(sample_atoms(atoms, N, PIXEL).values, turn, NOWHERE)
    return write_maps(tmp_path_factory.mktemp("threefold"), values)


@pytest.fixture(scope="module")
def done(threefold: Path) -> Path:
    assert run(["symmetry", str(threefold / "run_class001.mrc"), "-o", str(threefold / "found")]) == 0
    return threefold / "found"


def test_files_and_scores(done: Path, threefold: Path) -> None:
    assert {path.name for path in done.iterdir()} == {
        "symmetry.json", "symmetry.png", "aligned.mrc", "symmetrised.mrc",
    }  # fmt: skip
    figures: dict[str, Any] = read_json(done / "symmetry.json")
    assert figures["point_group"] == "C3"
    assert [Path(path).name for path in figures["half_maps"]] == list(HALVES)
    group = next(each for each in figures["groups"] if each["symmetry"] == "C3")
    assert abs(group["axis"][0]) > 0.999
    assert group["holds"]
    assert len(group["fsc"]) == len(figures["frequency_per_angstrom"]) == len(figures["half_map_fsc"])
    assert group["particles"] is None


def test_the_maps_stand_on_the_axes(done: Path) -> None:
    third = torch.tensor([[-0.5, -(0.75**0.5), 0.0], [0.75**0.5, -0.5, 0.0], [0.0, 0.0, 1.0]])
    for name, lowest in (("aligned", 0.8), ("symmetrised", 0.99)):
        values = read_map(done / f"{name}.mrc").values
        turned = rotate_map(values, third, NOWHERE)
        assert float(torch.corrcoef(torch.stack([values.flatten(), turned.flatten()]))[0, 1]) > lowest


def test_a_half_map_finds_the_other_and_one_group_can_be_scored(
    threefold: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["symmetry", str(threefold / HALVES[1]), "--json", str(tmp_path / "s.json")]
    for sym, verdict in (("c3", "C3 holds"), ("C2", "C2 does not hold")):
        assert run([*words, "--sym", sym]) == 0
        assert verdict in capsys.readouterr().err
        assert [group["symmetry"] for group in read_json(tmp_path / "s.json")["groups"]] == [sym.upper()]


def test_one_group_that_is_part_of_a_larger_one_holds(tmp_path: Path) -> None:
    values = sample_atoms(symmetric_phantom("C4", torch.Generator().manual_seed(0)), N, PIXEL).values
    words = ["symmetry", str(write_maps(tmp_path, values) / HALVES[0]), "--json", str(tmp_path / "s.json")]
    assert run([*words, "--sym", "C2"]) == 0
    figures: dict[str, Any] = read_json(tmp_path / "s.json")
    assert figures["point_group"] == "C2"
    assert not figures["is_of_revolution"]


def test_without_half_maps_a_doubt_is_said(threefold: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_map(tmp_path / "map.mrc", read_map(threefold / "run_class001.mrc"))
    assert run(["symmetry", str(tmp_path / "map.mrc"), "--sym", "C3", "--resolution", "20"]) == 0
    assert "No half maps" in capsys.readouterr().err


def test_what_cannot_be_scored_is_refused(threefold: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = str(threefold / "run_class001.mrc")
    write_map(tmp_path / "small.mrc", sample_atoms(chiral_phantom(28.0), 16, 5.0))
    for words, code, said in (
        (["--sym", "C1"], 2, "--sym"),
        (["--sym", "X3"], 2, "--sym"),
        (["--half-maps", str(tmp_path / "small.mrc"), str(tmp_path / "small.mrc")], 3, "box"),
        (["--half-maps", str(threefold / HALVES[0]), str(threefold / HALVES[0])], 3, "half"),
        (["--run", str(tmp_path)], 2, "job.json"),
    ):
        assert run(["symmetry", whole, *words]) == code, words
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "is_found"),
    [("run_class001.mrc", True), (HALVES[0], True), ("run_class002.mrc", False), ("map.mrc", False)],
)
def test_half_maps_are_known_by_name(name: str, is_found: bool, threefold: Path) -> None:
    found = halves_beside(threefold / name)
    assert (found is not None) == is_found
    if found is not None:
        assert {path.name for path in found} == set(HALVES)


@pytest.mark.slow
def test_particles_of_a_run_are_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    atoms = symmetric_phantom("C3", torch.Generator().manual_seed(0))
    write_map(tmp_path / "molecule.mrc", sample_atoms(atoms, N, PIXEL))
    simulated, made = tmp_path / "particles", tmp_path / "run"
    assert run(["simulate", str(tmp_path / "molecule.mrc"), "-o", str(simulated), "-n", "400", "--snr", "0.3"]) == 0
    star = str(simulated / "truth.star")
    assert run(["reconstruct", star, "-o", str(made), "--pose-inference", "known"]) == 0
    target = tmp_path / "s.json"
    assert run(["symmetry", str(made / "run_class001.mrc"), "--run", str(made), "--json", str(target)]) == 0
    figures = read_json(target)
    asked = {each["symmetry"]: each["particles"] for each in figures["groups"] if each["particles"]}
    assert figures["point_group"] == "C3"
    assert asked["C3"]["sigmas"] > 3
    assert all(gain["sigmas"] < 0 for name, gain in asked.items() if name != "C3")
    # Nobody's axes but those of the run's own map, at its place, say anything of its particles.
    for name, size in (("turned", N), ("other", N + 2)):
        values = rotate_map(sample_atoms(atoms, size, PIXEL).values, torch.eye(3)[[2, 0, 1]], NOWHERE)
        write_map(tmp_path / f"{name}.mrc", Volume(values, PIXEL))
        assert run(["symmetry", str(tmp_path / f"{name}.mrc"), "--run", str(made)]) == 3
        assert str(made) in capsys.readouterr().err
