"""``cryoeq screen``: from a run folder to scores in a star file and a picture of the views."""

from pathlib import Path

import numpy as np
import pytest
import starfile

from cryoeq.cli.main import run
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json
from cryoeq.pipelines.screening.screen import SCORE_COLUMN


@pytest.fixture(scope="module")
def known_run(tmp_path_factory: pytest.TempPathFactory, tiny_particles: Path) -> Path:
    """The tiny particles reconstructed from their true poses."""
    folder = tmp_path_factory.mktemp("known") / "run"
    options = ["--pose-inference", "known", "--device", "cpu", "-o", str(folder)]
    assert run(["reconstruct", str(tiny_particles / "truth.star"), *options]) == 0
    return folder


@pytest.mark.parametrize("scorer", ["error", "knn", "graph", "sheaf"])
def test_every_particle_gets_a_score_and_keeps_its_columns(known_run: Path, tmp_path: Path, scorer: str) -> None:
    assert run(["screen", str(known_run), "--scorer", scorer, "-o", str(tmp_path)]) == 0
    before, after = read_star(known_run / "run_data.star"), read_star(tmp_path / "screened.star")
    for column, values in before.particles.items():
        np.testing.assert_array_equal(after.particles[column], values)
    scores = starfile.read(tmp_path / "screened.star")["particles"][SCORE_COLUMN].to_numpy()
    assert len(scores) == 48
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) > 10
    results = read_json(tmp_path / "screening.json")
    assert results["particles"]["scorer"] == scorer
    assert results["particles"]["synthetic_outlier_roc_auc"] > 0.6
    assert (tmp_path / "coverage.png").stat().st_size > 10_000


def test_a_star_file_is_enough_for_the_views(
    tiny_particles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["screen", str(tiny_particles / "truth.star"), "-o", str(tmp_path)]
    assert run([*given, "--gap-threshold", "20"]) == 0
    printed = capsys.readouterr()
    views = read_json(tmp_path / "screening.json")["views"]
    assert views["n_views"] == 48
    assert views["gap_threshold_deg"] == pytest.approx(20)
    assert not views["is_covered"]
    assert all(gap["radius_deg"] > 20 for gap in views["gaps"])
    assert "48 views are few" in printed.err
    assert "Gap 1 " in printed.out
    assert not (tmp_path / "screened.star").exists()


def test_the_option_of_version_0_1_is_read_with_a_note(
    tiny_particles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["screen", str(tiny_particles / "truth.star"), "-o", str(tmp_path), "--hole-deg", "20"]) == 0
    assert "--hole-deg is now called --gap-threshold" in capsys.readouterr().err
    assert read_json(tmp_path / "screening.json")["views"]["gap_threshold_deg"] == pytest.approx(20)


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["screen", str(tmp_path)]) == 2
    assert "holds no job.json" in capsys.readouterr().err
