"""The program as a whole."""

import subprocess
import sys

import pytest

import cryoeq
from cryoeq.cli.main import normalise, run


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"cryoeq {cryoeq.__version__}\n"


def test_the_program_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "cryoeq", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0] == "cryoeq"


@pytest.mark.parametrize(
    ("typed", "understood"),
    [
        (["simulate", "--shift_sigma", "5"], ["simulate", "--shift-sigma", "5"]),
        (["simulate", "--shift_sigma=5_0"], ["simulate", "--shift-sigma=5_0"]),
        (["fsc", "my_map.mrc", "-o", "a_b"], ["fsc", "my_map.mrc", "-o", "a_b"]),
        (["x", "--set", "encoder.batch_size=3"], ["x", "--set", "encoder.batch_size=3"]),
        (["x", "--debug", "--", "--a_b", "--debug"], ["--debug", "x", "--", "--a_b", "--debug"]),
    ],
)
def test_underscores_are_dashes_in_names_only(typed: list[str], understood: list[str]) -> None:
    assert normalise(typed) == understood


@pytest.mark.parametrize("typed", [["no-such-command"], ["doctor", "--no-such-option"], ["demo", "--seed", "many"]])
def test_wrong_use_has_exit_code_2(typed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(typed) == 2
    assert "Error" in capsys.readouterr().err


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in ("simulate", "reconstruct", "evaluate", "fsc", "lattice", "demo", "doctor"):
        assert f"\n  {command} " in shown


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("simulate", "reconstruct", "evaluate", "fsc", "lattice", "demo", "doctor"):
        assert run([command, "--help"]) == 0
        assert f"Usage: cryoeq {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["simulate", "reconstruct", "evaluate", "fsc"])
def test_every_command_that_computes_takes_a_device(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert "--device" in capsys.readouterr().out
