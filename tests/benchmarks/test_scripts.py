"""The scripts for GPUs and for many processes run small where there is neither."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def said(*words: str) -> str:
    command = [sys.executable, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
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
def test_weak_scaling(tmp_path: Path) -> None:
    text = said(
        str(FOLDER / "scaling.py"), "--repeats", "1", "--scale", "0.05", "--output", str(tmp_path / "scaling.json")
    )
    assert "| training step | 64 |" in text
    assert "| search iteration | 8 |" in text
