"""``cryoeq evaluate`` of several classes: what was planted comes out, each class in its own frame."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from class_runs import COUNT, WRONG
from cryoeq.cli.main import run
from cryoeq.io.particles import write_particle_star
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json
from cryoeq.pipelines.class_choice import metrics_of_table


def figures(folder: Path, *words: object) -> dict[str, Any]:
    path = folder / "figures.json"
    assert run(["evaluate", *map(str, words), "--json", str(path), "--device", "cpu"]) == 0
    return read_json(path)


def planted(mixture: Path) -> tuple[int, int]:
    """Good images, and those of them that are in the right class."""
    is_good = read_star(mixture / "truth.star").floats("rlnClassNumber") > 0
    return int(is_good.sum()), int((is_good & (np.arange(COUNT) % WRONG > 0)).sum())


def test_a_run_is_scored_by_class(class_run: Path, mixture: Path, tmp_path: Path) -> None:
    """Poses are those of the truth, in two frames: one frame for all would make half of them wrong."""
    found = figures(tmp_path, class_run, mixture / "truth.star", "-o", tmp_path / "scored")
    good, right = planted(mixture)
    assert found["matched"] == {"1": 2, "2": 1}, "the numbers were exchanged"
    assert (found["good"], found["good_in_right_class"], found["junk_kept"]) == (good, right, 0)
    assert found["junk_roc_auc"] == 1.0
    assert found["junk_by_kind"] == {
        kind: {"images": COUNT // 20, "kept": 0} for kind in ("broken", "edge", "empty", "overlap")
    }
    for each in found["classes"]:
        assert each["rotation_deg"]["percentile_90"] < 0.1
        assert each["hand"] == "same"
    assert sum(each["images"] for each in found["classes"]) == right
    written = {path.name for path in (tmp_path / "scored").iterdir()}
    assert written == {"pose_errors.json", "pose_errors_class001.png", "pose_errors_class002.png"}
    pooled = figures(tmp_path, class_run, mixture / "truth.star", "--no-by-class")
    assert pooled["images"] < good, "the molecule that the one map shows"
    junk = pooled["junk"]
    assert junk == {name: found[name] for name in junk}, "junk is junk, of one class or of several"


def test_junk_counts_where_it_is_kept(class_run: Path, mixture: Path, tmp_path: Path) -> None:
    found = figures(tmp_path, class_run, mixture / "truth.star", "--junk-below", 1)
    assert found["junk_kept"] == COUNT // 5 - sum(found["confusion"]["left_out"])
    assert found["junk_share_of_kept"] == pytest.approx(0.2, abs=0.01)
    assert found["good_in_right_class"] == planted(mixture)[1]


def test_a_selection_of_a_run_is_scored_by_class(
    class_run: Path, mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good images that were left out count as not in the right class."""
    monkeypatch.chdir(tmp_path)
    assert run(["select", str(class_run), "--junk-below", "0.5", "--class", "2", "-o", "one.star"]) == 0
    assert run(["select", "one.star", "--half", "1", "-o", "half.star"]) == 0
    assert metrics_of_table(tmp_path / "half.star").n_classes == 2
    found = figures(tmp_path, "half.star", mixture / "truth.star")
    assert found["good"] == planted(mixture)[0]
    assert found["matched"] == {"2": 1}
    assert found["share_of_good_in_right_class"] < 0.4


def test_classes_of_the_input_are_no_structures(tiny_run: Path, tiny_particles: Path, tmp_path: Path) -> None:
    """A run of one class keeps the numbers of its input; they count where they are asked for."""
    folder = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    star = read_star(folder / "run_data.star")
    classes = (torch.arange(len(star)) % 2 + 1).numpy().astype(np.str_)
    write_particle_star(folder / "run_data.star", star, None, extra_columns={"rlnClassNumber": classes})
    assert "matched" not in figures(tmp_path, folder, tiny_particles / "truth.star")
    found = figures(tmp_path, folder, tiny_particles / "truth.star", "--by-class")
    assert len(found["classes"]) == 2
    assert [each["is_matched"] for each in found["classes"]] == [True, False]
    assert found["good_in_right_class"] == len(star) // 2


def test_a_class_of_few_particles_is_said(
    class_run: Path, mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    star = read_star(class_run / "run_data.star")
    classes = star.particles["rlnClassNumber"].copy()
    classes[:3] = "3"
    path = tmp_path / "three.star"
    write_particle_star(path, star, None, extra_columns={"rlnClassNumber": classes})
    found = figures(tmp_path, path, mixture / "truth.star", "--by-class")
    assert [each["class"] for each in found["classes"]] == [1, 2]
    assert "Class 3 has too few particles" in capsys.readouterr().err


def test_a_table_without_classes_is_refused(
    tiny_run: Path, tiny_particles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(tiny_run), str(tiny_particles / "truth.star"), "--by-class", "--device", "cpu"]) == 3
    assert "rlnClassNumber is missing" in capsys.readouterr().err
    assert run(["evaluate", str(tmp_path), str(tiny_particles / "truth.star")]) == 3
    assert "holds no run_data.star" in capsys.readouterr().err


def test_probabilities_are_told_beside_the_shares_of_junk(class_run: Path, mixture: Path, tmp_path: Path) -> None:
    """Those of the run are 0 to 0.4 of particles, 0.6 to 1 of junk."""
    bins = figures(tmp_path, class_run, mixture / "truth.star")["junk_calibration"]
    assert sum(each["images"] for each in bins) == COUNT
    means = [each["mean_probability"] for each in bins]
    assert means == sorted(means)
    assert [each["junk_share"] for each in bins] == [float(mean > 0.5) for mean in means]
