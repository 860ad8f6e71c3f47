"""Who may import whom, and how fast the program starts."""

import json
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
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
    assert not modules & (HEAVY | {"numba"})


# Torch takes most of the time of a start: it is imported once, and each program runs in a fork of that process.
FORKS = """
import json, os, sys, tempfile, traceback
import torch
for line in sys.stdin:
    with tempfile.TemporaryFile("w+") as said:
        if not (child := os.fork()):
            os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
            code = 1
            try:
                program = {}
                exec(json.loads(line), program)
                code = program.get("code", 0)
            except BaseException:
                traceback.print_exc()
            print("\\nmodules:", *sorted(sys.modules), flush=True)
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        print(json.dumps([code, said.read()]), flush=True)
"""
Run = Callable[[str], tuple[int, str, set[str]]]


@pytest.fixture(scope="module")
def after_torch() -> Iterator[Run]:
    """Runs a program in an interpreter that has imported torch: exit code, output, and the modules it then has."""
    command = [sys.executable, "-c", FORKS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(program: str) -> tuple[int, str, set[str]]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(program) + "\n")
            process.stdin.flush()
            code, said = json.loads(process.stdout.readline())
            output, _, modules = said.rpartition("\nmodules:")
            return code, output, set(modules.split())

        before = ask("")[2]
        assert "torch" in before

        def run(program: str) -> tuple[int, str, set[str]]:
            code, output, modules = ask(program)
            return code, output, modules - before

        yield run
        process.stdin.close()


def named(modules: set[str], packages: Iterable[str]) -> set[str]:
    return {module for module in modules if any(f"{module}.".startswith(f"{name}.") for name in packages)}


WINGS = {"cryoeq.equivariance", "cryoeq.generalization", "cryoeq.lattice", "cryoeq.models", "cryoeq.screening"}


@pytest.mark.parametrize(
    ("module", "unused"),
    [
        ("cryoeq.reconstruction.ab_initio", {"cryoeq.pipelines", "cryoeq.training", "cryoeq.outputs"}),
        ("cryoeq.pipelines.reconstruct.search", {"cryoeq.training"}),
        ("cryoeq.pipelines.reconstruct.reconstruct", {"cryoeq.training"}),
    ],
)
def test_a_search_imports_no_wing_and_no_network(after_torch: Run, module: str, unused: set[str]) -> None:
    """What a module imports at its top, directly or through others."""
    code, said, modules = after_torch(f"import {module}")
    assert code == 0, said
    assert module in modules
    assert named(modules, {"escnn", *WINGS, *unused}) == set()


def test_importing_rotations_does_not_start_the_compiler(after_torch: Run) -> None:
    """``torch._dynamo`` takes longer to import than the rest of torch."""
    code, said, modules = after_torch("import cryoeq.geometry.so3")
    assert code == 0, said
    assert "cryoeq.geometry.so3" in modules
    assert named(modules, {"torch._dynamo"}) == set()


# What a command may not import: the name of a package stands for all of it.
UNUSED = {
    "fsc {maps[0]} {maps[1]}": {"matplotlib", "plotly", "jinja2", "escnn", "scipy.optimize", "scipy.stats", "joblib"},
    "orientations {star}": {"matplotlib", "plotly", "jinja2", "escnn", "scipy", "joblib"},
    "evaluate {star} {star}": {"matplotlib", "plotly", "jinja2", "escnn", "scipy", "joblib"},
    "screen {star} -o {folder}/screening": {"plotly", "jinja2", "escnn", "scipy.stats", "joblib"},
    "select {star} --half 1 -o {folder}/half.star": {"matplotlib", "plotly", "jinja2", "escnn", "scipy", "joblib"},
    "reconstruct {star} --pose-inference known -o {folder}/run": {"escnn", "joblib", "scipy.optimize", "scipy.stats"},
    "simulate {maps[0]} -n 4 -o {folder}/simulated": {"matplotlib", "plotly", "jinja2", "escnn", "scipy", "joblib"},
    "lattice reduce --cell '100 60 17'": {"matplotlib", "plotly", "jinja2", "escnn", "scipy", "joblib", "gemmi"},
}


@pytest.mark.parametrize("command", UNUSED)
def test_what_a_command_does_not_use_it_does_not_import(
    after_torch: Run, command: str, tmp_path: Path, tiny_particles: Path
) -> None:
    maps = [tmp_path / "a.mrc", tmp_path / "b.mrc"]
    for number, path in enumerate(maps):
        values = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(number))
        write_map(path, Volume(values, 5.0))
    words = shlex.split(command.format(maps=maps, star=tiny_particles / "truth.star", folder=tmp_path))
    code, said, modules = after_torch(f"from cryoeq.cli.main import run\ncode = run({words!r})")
    assert code == 0, said
    assert "typer" in modules
    assert named(modules, UNUSED[command]) == set()


@pytest.mark.parametrize(("command", "expected"), [("settings", 0), ("reconstruct x.star --threads 0", 2)])
def test_what_needs_no_tensors_imports_no_torch(command: str, expected: int) -> None:
    program = (
        f"import sys\nfrom cryoeq.cli.main import run\ncode = run({command.split()!r})\n"
        "print('modules:', *sorted(sys.modules))\nsys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == expected, result.stderr
    modules = set(result.stdout.partition("modules: ")[2].split())
    assert "typer" in modules
    assert named(modules, HEAVY - {"pydantic", "yaml"}) == set()


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
