"""``cryoeq infer`` by the encoders of a run that trained none: learnt from its half maps, of each class."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from cryoeq.cli.main import run
from cryoeq.evaluation.poses import compare_poses
from cryoeq.io.labels import CLASS_NUMBER
from cryoeq.io.particles import star_poses
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json, write_json

pytestmark = pytest.mark.usefixtures("one_thread")


def test_particles_go_to_the_class_that_explains_them(class_run: Path, mixture: Path, tmp_path: Path) -> None:
    folder, poses = Path(shutil.copytree(class_run, tmp_path / "run")), tmp_path / "poses.star"
    job = read_json(folder / "job.json")
    job["settings"]["hybrid"] |= {"projections": 600, "training_steps": 150}
    write_json(folder / "job.json", job)
    command = ["infer", str(folder), str(mixture / "particles.star"), "-o", str(poses), "--device", "cpu"]
    assert run(command) == 0
    learnt = (folder / "encoder.pt").read_bytes()
    found, truth = read_star(poses), read_star(mixture / "truth.star")
    is_good = truth.floats(CLASS_NUMBER) > 0
    # Class 1 of the run is the second molecule of the truth.
    is_right = found.floats(CLASS_NUMBER) == 3 - truth.floats(CLASS_NUMBER)
    assert is_right[is_good].mean() > 0.85
    rows = np.flatnonzero(is_good & is_right & (truth.floats(CLASS_NUMBER) == 1)).tolist()
    errors = compare_poses(star_poses(found.rows(rows)), star_poses(truth.rows(rows))).rotation_rad.rad2deg()
    assert float(errors.median()) < 10
    record = read_json(tmp_path / "poses.json")
    assert sum(record["class_sizes"]) == len(found)
    before = poses.read_bytes()
    assert run(command) == 0  # by the encoder that was kept
    assert (folder / "encoder.pt").read_bytes() == learnt
    assert poses.read_bytes() == before


def test_what_is_no_finished_run_is_refused(
    class_run: Path, mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, star = Path(shutil.copytree(class_run, tmp_path / "run")), str(mixture / "particles.star")
    (folder / "run_half1_class002_unfil.mrc").unlink()
    assert run(["infer", str(folder), star, "-o", str(tmp_path / "poses.star")]) == 3
    assert "holds no run_half1_class002_unfil.mrc" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "empty").mkdir()
    assert run(["infer", str(tmp_path / "empty"), star, "-o", str(tmp_path / "poses.star")]) == 3
    assert "neither an encoder nor a finished reconstruction" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "poses.star").exists()


def test_encoders_of_another_version_are_refused(
    mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cryoeq.io.checkpoint import save_checkpoint

    save_checkpoint(tmp_path / "encoder.pt", {"kind": "views", "classes": [{}]})
    star = str(mixture / "particles.star")
    assert run(["infer", str(tmp_path / "encoder.pt"), star, "-o", str(tmp_path / "poses.star")]) == 3
    assert "encoder.pt does not hold an encoder of this version" in " ".join(capsys.readouterr().err.split())
