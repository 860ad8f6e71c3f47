"""Who may import whom, and how fast the program starts."""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "escnn", "scipy", "numpy", "matplotlib", "pandas", "pydantic", "rich", "mrcfile", "starfile", "yaml"}


def test_the_rooms_obey_their_import_rules() -> None:
    lint = [str(Path(sys.executable).with_name("lint-imports")), "--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    result = subprocess.run(lint, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " 0 broken" in result.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom cryoeq.cli.main import run\ncode = run(['--help'])\n"
        "print('modules:', *sorted(sys.modules))\nsys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage: cryoeq" in result.stdout
    modules = set(result.stdout.partition("modules: ")[2].split())
    assert "typer" in modules
    assert not modules & HEAVY


def test_help_is_there_before_one_notices() -> None:
    program = Path(sys.executable).with_name("cryoeq")
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([program, "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
        if seconds[-1] < 0.3:  # one quiet moment of a busy machine is enough
            break
    assert min(seconds) < 0.3
