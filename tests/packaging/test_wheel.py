"""An installed wheel finds its cluster scripts, its sample data and its weights, from any folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ASK = """
import json
import cryoeq
from cryoeq.config.loading import packaged_file
from cryoeq.domain.atoms import is_atomic_model
from cryoeq.evaluation.hand import load_learnt
from cryoeq.io.model import read_atoms
from cryoeq.lattice.neural_reducer import load_reducer
from cryoeq.pipelines.demo import MODEL
model = packaged_file(MODEL)
print(json.dumps({
    "package": cryoeq.__file__,
    "script": str(packaged_file("configs/cluster/single_node.sbatch")),
    "weights": load_reducer(3).network is not None and len(load_learnt().weights) > 0,
    "model": str(model),
    "atoms": len(read_atoms(model)) if is_atomic_model(model) else -1,
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an installation that knows nothing of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("cryoeq-*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*install, str(folder / "site"), str(wheel)], cwd=folder, check=True, capture_output=True)
    return folder / "site"


def run(installed: Path, cwd: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True, text=True).stdout


def test_packed_files_are_found(installed: Path, tmp_path: Path) -> None:
    found = json.loads(run(installed, tmp_path, "-c", ASK))
    for key in ("package", "script", "model"):
        assert Path(found[key]).is_relative_to(installed)
    assert found["weights"]
    assert found["atoms"] > 1000


def test_every_file_of_the_checkout_is_packed(installed: Path) -> None:
    for folder in ("configs", "data_samples"):
        packed = {
            path.relative_to(installed / "cryoeq" / folder) for path in (installed / "cryoeq" / folder).rglob("*")
        }
        present = {
            path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*") if "__pycache__" not in str(path)
        }
        assert packed == present - {Path("build_hook.py")}  # which makes the wheel
    assert not (installed / "configs").exists()
    assert not (installed / "data_samples").exists()


def test_the_program_starts(installed: Path, tmp_path: Path) -> None:
    assert run(installed, tmp_path, "-m", "cryoeq", "--version").startswith("cryoeq ")
