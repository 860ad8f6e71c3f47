"""What ``cryoeq reconstruct`` reaches on experimental particles stays reached: one run of each set, one thread.

Bounds stand a little below the records (``tests/benchmarks/real_particles.json``). A run takes minutes:
``CRYOEQ_REFERENCE_DATA=DIR pytest -m "slow and realdata" tests/realdata``. Who asks for ``realdata`` by name and has no
data is told so by a failure.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "real_particles.py"
CRYOEQ = Path(sys.executable).with_name("cryoeq")
SEED = "100"
pytestmark = [pytest.mark.slow, pytest.mark.realdata, pytest.mark.timeout(3600)]


@pytest.fixture(scope="session")
def experimental(request: pytest.FixtureRequest) -> Path:
    """The folder of the sets."""
    data = os.environ.get("CRYOEQ_REFERENCE_DATA", "")
    folder = Path(data) / "real_spa"
    if data and folder.is_dir():
        return folder
    missing = f"no experimental particles at {folder}; set CRYOEQ_REFERENCE_DATA"
    if "realdata" in request.config.option.markexpr:
        pytest.fail(missing)
    pytest.skip(missing)


def scores_of_a_run(experimental: Path, name: str, folder: str, output: Path, *options: str) -> dict[str, Any]:
    """Reconstruct, then the figures of ``real_particles.py``."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    reconstruct = [str(CRYOEQ), "reconstruct", str(experimental / folder / "particles.star"), "-o", str(output)]
    subprocess.run([*reconstruct, "--seed", SEED, "-j", "1", *options], env=environment, check=True)
    score = [sys.executable, str(SCRIPT), "--score-only", str(output), "--set", name, "--data", str(experimental)]
    ended = subprocess.run(score, env=environment, check=True, capture_output=True, text=True)
    return json.loads(ended.stdout)  # type: ignore[no-any-return]


def test_the_ribosome(experimental: Path, tmp_path: Path) -> None:
    scores = scores_of_a_run(experimental, "ribosome", "ribosome80s_10028", tmp_path / "run")
    assert scores["answer"] == "found"
    assert scores["half_maps"]["unmasked"] < 22.0
    assert scores["half_maps"]["corrected"] < 15.5


def test_beta_galactosidase(experimental: Path, tmp_path: Path) -> None:
    scores = scores_of_a_run(experimental, "betagal", "betagal_10204", tmp_path / "run", "--sym", "D2")
    assert scores["against_reference"]["fsc_at_14.5"] > 0.8
    assert scores["against_reference"]["lowest_fsc_to_12.3"] > 0.7


def test_apoferritin(experimental: Path, tmp_path: Path) -> None:
    """About half of the starts end in a wrong map, whose half maps agree to 11 Å."""
    scores = scores_of_a_run(experimental, "apoferritin", "apoferritin_10146", tmp_path / "run", "--sym", "O")
    assert scores["answer"] == "found"
    assert scores["against_reference"]["corrected"]["shell_angstrom"] <= 10.0
