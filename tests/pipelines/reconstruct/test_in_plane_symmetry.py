"""``cryoeq reconstruct --in-plane-symmetry``: what it writes and says."""

from pathlib import Path

import pytest

from cryoeq.cli.main import run
from cryoeq.io.text import read_json
from cryoeq.outputs.run_folder import RunFolder

MODEL = Path(__file__).parents[3] / "data_samples" / "1wcm_ca.pdb.gz"


def test_a_run_says_whether_the_symmetry_is_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulated, found = tmp_path / "simulated", tmp_path / "found"
    words = ["--box", "24", "-n", "200", "--snr", "1", "--astigmatism", "800", "--astigmatism-angle", "20"]
    assert run(["simulate", str(MODEL), "-o", str(simulated), *words]) == 0
    known = ["--pose-inference", "known", "--in-plane-symmetry"]
    assert run(["reconstruct", str(simulated / "truth.star"), "-o", str(found), *known]) == 0
    assert "In-plane symmetry holds" in " ".join(capsys.readouterr().err.split())
    results = read_json(found / "job.json")["results"]
    assert 0.01 < results["in_plane_p_value"] <= 1
    assert results["missing_astigmatism_angstrom"] >= 0
    assert RunFolder(found).path("in_plane_symmetry.png").is_file()


def test_without_half_maps_it_says_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulated, found = tmp_path / "simulated", tmp_path / "found"
    assert run(["simulate", str(MODEL), "-o", str(simulated), "--box", "16", "-n", "20", "--snr", "0.001"]) == 0
    known = ["--pose-inference", "known", "--in-plane-symmetry"]
    assert run(["reconstruct", str(simulated / "truth.star"), "-o", str(found), *known]) == 0
    assert "there are no half maps that agree to some resolution" in " ".join(capsys.readouterr().err.split())
