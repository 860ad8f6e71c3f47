"""What each command does with the folder of a run of several classes: one class, or one clear sentence."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.data.dataset import ParticleDataset
from cryoeq.errors import ConfigError
from cryoeq.io.particles import read_particles, write_particle_star
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json, write_json
from cryoeq.outputs.relion_job import write_output_nodes
from cryoeq.pipelines.class_choice import rows_of_one_frame

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["screen", "RUN"], "holds particles of classes 1, 2, each in a frame of its own"),
        (["screen", "RUN/run_data.star"], "holds particles of classes 1, 2"),
        (["screen", "RUN", "--class", "3"], "--class 3: RUN/run_data.star has no particle of it. The classes are 1"),
        (["orientations", "RUN"], "Choose one by --class N"),
        (["orientations", "RUN/run_data.star"], "Choose one by --class N"),
        (["select", "RUN", "--balance-views"], "each in a frame of its own"),
        (["reconstruct", "RUN/run_data.star", "--pose-inference", "known", "-o", "x"], "cryoeq select RUN/run_data"),
        (["fsc", "RUN"], "Give RUN/run_half1_class001_unfil.mrc or RUN/run_half1_class002_unfil.mrc"),
        (["symmetry", "RUN"], "RUN is a folder"),
        (["evaluate", "--bound", "RUN"], "cryoeq select RUN --class 1"),
    ],
)
def test_one_sentence_says_what_to_do(
    class_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").symlink_to(class_run)
    assert run(words) in {2, 3}
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert [path.name for path in tmp_path.iterdir()] == ["RUN"]


def test_a_class_is_screened_against_its_own_map(class_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(class_run, tmp_path / "run"))
    assert run(["screen", str(folder), "--class", "2", "--scorer", "error"]) == 0
    screened, before = read_star(folder / "screening_class002" / "screened.star"), read_star(folder / "run_data.star")
    of_class = before.rows(np.flatnonzero(before.floats("rlnClassNumber") == 2).tolist())
    for column, values in of_class.particles.items():
        np.testing.assert_array_equal(screened.particles[column], values)
    scores = screened.floats("rlnParticleSelectZScore")
    is_junk = screened.floats("cryoeqJunkProbability") > 0.5
    assert np.median(scores[is_junk]) > np.median(scores[~is_junk])
    assert read_json(folder / "screening_class002" / "screening.json")["views"]["n_views"] == len(screened)
    shutil.copy(folder / "run_half1_class001_unfil.mrc", folder / "run_half1_class002_unfil.mrc")
    shutil.copy(folder / "run_half2_class001_unfil.mrc", folder / "run_half2_class002_unfil.mrc")
    assert run(["screen", str(folder), "--class", "2", "--scorer", "error", "-o", str(tmp_path / "other")]) == 0
    other = read_star(tmp_path / "other" / "screened.star").floats("rlnParticleSelectZScore")
    assert not np.allclose(other, scores)


def test_orientations_are_those_of_the_class(class_run: Path, tmp_path: Path) -> None:
    classes = read_star(class_run / "run_data.star").floats("rlnClassNumber")
    for number in (1, 2):
        path = tmp_path / f"{number}.json"
        assert run(["orientations", str(class_run), "--class", str(number), "--json", str(path)]) == 0
        assert read_json(path)["n_particles"] == int((classes == number).sum())


def test_symmetry_of_a_folder_is_that_of_its_class(class_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(class_run, tmp_path / "run"))
    job = read_json(folder / "job.json")
    job["results"]["classes"][1]["symmetry"] = "C3"
    write_json(folder / "job.json", job)
    found = {}
    for number in (1, 2):
        path = tmp_path / f"{number}.json"
        assert run(["orientations", str(folder), "--class", str(number), "--json", str(path)]) == 0
        found[number] = read_json(path)["symmetry"]
    assert found == {1: "C1", 2: "C3"}


def test_particles_of_the_class_are_asked_about_a_symmetry(
    class_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The class is found by the map; a map of no class is refused."""
    words = ["symmetry", str(class_run / "run_class002.mrc"), "--run", str(class_run), "--sym", "C2"]
    assert run(words) == 0
    assert "particles -" in capsys.readouterr().out, "the molecule has no symmetry, and its particles tell"
    shutil.copy(class_run / "run_mask_class001.mrc", tmp_path / "other.mrc")
    halves = [str(class_run / f"run_half{half}_class001_unfil.mrc") for half in (1, 2)]
    assert run(["symmetry", str(tmp_path / "other.mrc"), "--half-maps", *halves, "--run", str(class_run)]) == 3
    assert "is not a map of" in capsys.readouterr().err


def test_a_selection_of_one_class_is_one_structure(
    class_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["select", str(class_run), "--class", "1", "--junk-below", "0.5", "-o", "one.star"]) == 0
    one = read_star(Path("one.star"))
    assert len(rows_of_one_frame(one, Path("one.star"), None)) == len(one)
    assert run(["orientations", "one.star"]) == 0
    assert run(["select", "one.star", "--balance-views", "--healpix-order", "1", "-o", "even.star"]) == 0
    assert run(["select", str(class_run), "--junk-below", "0.5", "-o", "good.star"]) == 0
    with pytest.raises(ConfigError, match="classes 1, 2"):
        rows_of_one_frame(read_star(Path("good.star")), Path("good.star"), None)
    options = ["--pose-inference", "known", "--device", "cpu", "-o", "map"]
    assert run(["reconstruct", "one.star", *options]) == 0


def test_a_file_that_names_classes_of_something_else_is_of_one_frame(class_run: Path, tmp_path: Path) -> None:
    """Such as the stack of a 2D classification: there is no record that says otherwise."""
    star = read_star(class_run / "run_data.star")
    write_particle_star(tmp_path / "particles.star", star, None)
    copy = read_star(tmp_path / "particles.star")
    assert len(rows_of_one_frame(copy, tmp_path / "particles.star", None)) == len(star)
    assert len(rows_of_one_frame(copy, tmp_path / "particles.star", 2)) < len(star)


def test_some_rows_of_a_stack_are_a_stack(mixture: Path) -> None:
    stack = read_particles(mixture / "truth.star", with_poses=True)
    rows = torch.tensor([5, 3, 200])
    part = stack.rows(rows)
    assert len(part.table) == len(part.star) == len(part.images) == 3
    torch.testing.assert_close(part.images.read(torch.arange(3)), stack.images.read(rows), rtol=0, atol=0)
    assert part.table.poses is not None
    assert stack.table.poses is not None
    torch.testing.assert_close(part.table.poses.rotations, stack.table.poses.rotations[rows], rtol=0, atol=0)
    whole, some = (ParticleDataset.open(each, sign=1).batch(torch.arange(3)) for each in (stack, part))
    assert whole.ctf is not None
    assert some.ctf is not None
    assert part.star.particles["rlnImageName"].tolist() == stack.star.particles["rlnImageName"][rows.numpy()].tolist()


def test_relion_is_told_of_all_maps(class_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(class_run, tmp_path / "job001"))
    write_output_nodes(folder)
    nodes = (folder / "RELION_OUTPUT_NODES.star").read_text()
    for number in (1, 2):
        for name in (f"run_class00{number}.mrc", f"run_half1_class00{number}_unfil.mrc"):
            assert f"{folder.as_posix()}/{name} DensityMap.mrc" in nodes
    assert nodes.count("halfmap") == 4
