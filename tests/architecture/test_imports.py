"""Who may import whom, and how fast the program starts."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "escnn", "scipy", "numpy", "matplotlib", "pandas", "pydantic", "rich", "mrcfile", "starfile", "yaml"}


def test_the_packages_obey_their_import_rules() -> None:
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


WINGS = ("cryoeq.equivariance", "cryoeq.generalization", "cryoeq.lattice", "cryoeq.models", "cryoeq.screening")


@pytest.mark.parametrize(
    ("module", "unused"),
    [
        ("cryoeq.reconstruction.ab_initio", ("cryoeq.pipelines", "cryoeq.training", "cryoeq.outputs")),
        ("cryoeq.pipelines.reconstruct.search", ("cryoeq.training",)),
        ("cryoeq.pipelines.reconstruct.reconstruct", ("cryoeq.training",)),
    ],
)
def test_a_search_imports_no_wing_and_no_network(module: str, unused: tuple[str, ...]) -> None:
    """In a fresh interpreter: what one imports at the top, directly or through others."""
    code = f"import sys, {module}\nprint(*sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = result.stdout.split()
    assert module in modules
    for package in ("escnn", *WINGS, *unused):
        found = [name for name in modules if name == package or name.startswith(f"{package}.")]
        assert not found, f"{module} imports {found}"


def test_help_is_there_before_one_notices() -> None:
    program = Path(sys.executable).with_name("cryoeq")
    seconds = []
    for _ in range(5):
        before = _cpu_seconds_of_children()
        subprocess.run([program, "--help"], capture_output=True, check=True)
        seconds.append(_cpu_seconds_of_children() - before)  # the time on the clock is also that of other programs
        if seconds[-1] < 0.3:
            break
    assert min(seconds) < 0.3


def _cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
