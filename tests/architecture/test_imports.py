"""Who may import whom, and how fast the program starts."""

import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cryoeq.domain.volume import Volume
from cryoeq.io.mrc import write_map

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


PROGRAM = """
import sys
from cryoeq.cli.main import run
code = run({words!r})
print("modules:", *sorted(sys.modules))
sys.exit(code)
"""
# What a command may not import: the name of a package stands for all of it.
UNUSED = {
    "fsc {maps[0]} {maps[1]}": {"matplotlib", "plotly", "jinja2", "escnn", "scipy.optimize", "scipy.stats", "joblib"},
    "orientations {star}": {"matplotlib", "plotly", "jinja2", "escnn", "scipy", "joblib"},
    "evaluate {star} {star}": {"matplotlib", "plotly", "jinja2", "escnn", "scipy", "joblib"},
    "screen {star} -o {folder}/screening": {"plotly", "jinja2", "escnn", "scipy.stats", "joblib"},
    "reconstruct {star} --pose-inference known -o {folder}/run": {"escnn", "joblib", "scipy.optimize", "scipy.stats"},
    "simulate {maps[0]} -n 4 -o {folder}/simulated": {"matplotlib", "plotly", "jinja2", "escnn", "scipy", "joblib"},
    "lattice reduce --cell '100 60 17'": {"matplotlib", "plotly", "jinja2", "escnn", "scipy", "joblib", "gemmi"},
    "settings": HEAVY - {"pydantic", "yaml"},
    "reconstruct {star} --threads 0": HEAVY - {"pydantic", "yaml"},
}


@pytest.mark.parametrize("command", UNUSED)
def test_what_a_command_does_not_use_it_does_not_import(command: str, tmp_path: Path, tiny_particles: Path) -> None:
    maps = [tmp_path / "a.mrc", tmp_path / "b.mrc"]
    for number, path in enumerate(maps):
        values = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(number))
        write_map(path, Volume(values, 5.0))
    words = shlex.split(command.format(maps=maps, star=tiny_particles / "truth.star", folder=tmp_path))
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(words=words)], capture_output=True, text=True, check=False
    )
    assert result.returncode == (2 if "--threads" in words else 0), result.stderr
    modules = set(result.stdout.partition("modules: ")[2].split())
    assert "typer" in modules
    assert {
        module for module in modules if any(f"{module}.".startswith(f"{name}.") for name in UNUSED[command])
    } == set()


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
