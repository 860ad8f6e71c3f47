"""What importing escnn must not do."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import joblib
import pytest

from cryoeq import equivariance


def test_escnn_keeps_its_cache_outside_its_package() -> None:
    """A container runs as a user who may not write to the installed packages."""
    package = Path(str(sys.modules["escnn"].__file__)).parent
    for module in ("escnn.group.irrep", "escnn.group._clebsh_gordan", "escnn.group.groups.octa"):
        location = importlib.import_module(module).cache.location
        assert location is None or package not in Path(location).parents
    assert joblib.Memory.__name__ == "Memory", "joblib is left as it was"


def test_the_cache_lies_where_the_user_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert equivariance._user_cache() == str(tmp_path / "cryoeq" / "escnn")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert equivariance._user_cache() is None


def test_escnn_solves_beside_scikit_learn(tmp_path: Path) -> None:
    """For a dihedral group that is in no cache; scikit-learn itself can still be imported."""
    code = (
        "from cryoeq.equivariance import escnn\n"
        "import sklearn.utils.extmath\n"
        "group = escnn.group.dihedral_group(3)\n"
        "print(group._clebsh_gordan_coeff((1, 1), (1, 1), (0, 0)).shape)\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "(2, 2, 1, 1)" in done.stdout
