"""The scripts for large machines and large data run small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def said(*words: str) -> str:
    command = [sys.executable, *words]
    paths = os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": paths}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_every_stage_of_a_gpu(tmp_path: Path) -> None:
    text = said(str(FOLDER / "gpu.py"), "--work", str(tmp_path), "--bf16")
    for stage in ("preprocess", "encoder", "training step", "slices", "E-step", "back-projection"):
        assert f"\n{stage}" in text
    assert "where the time goes" in text
    assert "'exit_code': 0" in text
    assert not (FOLDER / "gpu.json").exists() or "cuda" in (FOLDER / "gpu.json").read_text()


@pytest.mark.slow
def test_symmetries_that_are_named(tmp_path: Path) -> None:
    text = said(str(FOLDER / "symmetry.py"), "--work", str(tmp_path), "--no-runs", "--table", str(tmp_path / "t.md"))
    for name, group in (("5me2", "C2"), ("7l2i", "C4"), ("8bk7", "D2"), ("6msm", "none (pseudo-C2)")):
        assert f"| {name} | {group} |" in text
    assert (tmp_path / "t.md").read_text() in text


@pytest.mark.slow
def test_hands_that_are_told(tmp_path: Path) -> None:
    table = tmp_path / "t.md"
    text = said(str(FOLDER / "hand.py"), "--no-runs", "--table", str(table))
    page = (FOLDER / "hand.md").read_text(encoding="utf-8")
    assert all(line in page for line in table.read_text(encoding="utf-8").splitlines())
    assert table.read_text(encoding="utf-8") in text


@pytest.mark.slow
def test_the_full_box(tmp_path: Path) -> None:
    """The table of a record, and no run that is recorded is done again."""
    poses = {"rotation_deg": {"median": 0.5, "mean": 0.6, "share_below_30": 1.0}, "shift_px": {"median": 0.1}}
    cost = {"exit_code": 0, "wall_s": 2.0, "cpu_s": 1.0, "peak_rss_mib": 3.0}
    record = {"set": "1wcm", "mode": "search", "seed": 0, "options": [], "map": None, "poses": poses} | cost
    records, table = tmp_path / "r.json", tmp_path / "t.md"
    records.write_text(json.dumps([record]))
    words = ("--work", str(tmp_path), "--records", str(records), "--no-runs", "--table", str(table))
    text = said(str(FOLDER / "full_box.py"), *words)
    assert "| 1wcm | search | 1 | 0.5 | 0.6 | 0 | 0.1 |" in text
    assert table.read_text() in text


@pytest.mark.slow
def test_weak_scaling(tmp_path: Path) -> None:
    text = said(
        str(FOLDER / "scaling.py"), "--repeats", "1", "--scale", "0.05", "--output", str(tmp_path / "scaling.json")
    )
    assert "| training step | 64 |" in text
    assert "| search iteration | 8 |" in text


@pytest.mark.slow
def test_a_million_particles(tmp_path: Path) -> None:
    sizes = ("--rows", "2000", "--stacks", "4", "--rows-beside", "500")
    said(str(FOLDER / "million.py"), "--work", str(tmp_path), *sizes, "--output", str(tmp_path / "million.json"))
    found = json.loads((tmp_path / "million.json").read_text())
    assert found["first_step, 2,000 rows"]["cpu_s"] > 0
    assert found["reading, 2,000 rows"]["plain_mb_per_s"] > 0
    assert found["write_starfile, 500 rows"]["peak_rss_mib"] > 0


@pytest.mark.slow
def test_pictures_of_simulated_stacks(tmp_path: Path) -> None:
    """Beside particles that stand for real ones, which a picture shows and no folder keeps."""
    model = FOLDER.parents[1] / "data_samples" / "1wcm_ca.pdb.gz"
    words = ("--work", str(tmp_path / "stacks"), "--options", "--box 24 --snr 0.5")
    said(str(FOLDER / "simulated_stacks.py"), str(model), *words, "-o", str(tmp_path / "alone.png"))
    real = ("--real", str(tmp_path / "stacks" / "white" / "particles.star"))
    said(str(FOLDER / "simulated_stacks.py"), str(model), *words, *real, "-o", str(tmp_path / "beside.png"))
    sizes = [(tmp_path / name).read_bytes()[16:24] for name in ("alone.png", "beside.png")]
    assert sizes[0][:4] == sizes[1][:4]
    assert int.from_bytes(sizes[1][4:]) > int.from_bytes(sizes[0][4:])


@pytest.mark.slow
def test_local_refinement(tmp_path: Path) -> None:
    text = said(str(FOLDER / "local_refinement.py"), "--work", str(tmp_path), "--boxes", "32", "--counts", "20")
    assert "| 32 | 355 |" in text
    assert "| error over sigma, median |" in text


@pytest.mark.slow
def test_launches_of_a_search(tmp_path: Path) -> None:
    model = FOLDER.parents[1] / "data_samples" / "1wcm_ca.pdb.gz"
    said("-m", "cryoeq", "simulate", str(model), "-o", str(tmp_path / "s"), "--box", "32", "-n", "40", "--snr", "0.5")
    short = (
        "multi_start.min=1", "multi_start.max=1", "initial_model.iterations=12", "consensus.shells=[5,6]",
        "consensus.max_extra_iterations=0", "half_sets.iterations=1", "local_refinement.iterations=1",
    )  # fmt: skip
    options = [word for setting in short for word in ("--set", f"search.{setting}")]
    star, found = str(tmp_path / "s" / "particles.star"), tmp_path / "found.json"
    script = ("-m", "pretended_cuda", str(FOLDER / "launches.py"), star)
    text = said(*script, "--work", str(tmp_path), "--output", str(found), *options)
    assert "40 particles" in text
    for stage in ("initial model", "consensus refinement", "half-set refinement", "reconstructing", "all"):
        assert f"| {stage} |" in text
    stages = json.loads(found.read_text())[0]
    launches = sum(figures["launches"] for figures in stages.values())
    assert launches > sum(figures["with_triton"] for figures in stages.values()) > 0.3 * launches


@pytest.mark.slow
def test_view_encoders(tmp_path: Path) -> None:
    """The tables of what is recorded."""
    table = tmp_path / "t.md"
    text = said(str(FOLDER / "views.py"), "--work", str(tmp_path), "--no-runs", "--table", str(table))
    assert "| `base` | 0 |" in text
    assert "| 128 |" in text
    assert table.read_text() in text
