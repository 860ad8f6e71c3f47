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
        (["reconstruct", "x", "--pixel-size", "2"], ["reconstruct", "x", "--angpix", "2"]),
        (["x", "--debug", "--", "--a_b", "--debug"], ["--debug", "x", "--", "--a_b", "--debug"]),
    ],
)
def test_underscores_are_dashes_in_names_only(typed: list[str], understood: list[str]) -> None:
    assert normalise(typed) == understood


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["no-such-command"], "'no-such-command'"),
        (["doctor", "--no-such-option"], "No such option: --no-such-option. `cryoeq doctor --help`"),
        (["demo", "--seed", "many"], "'--seed': expected a whole number"),
        (["reconstruct", "x", "--angpix", "foo"], "'--angpix': expected a number"),
        (["reconstruct", "x", "--angpix", "-1"], "--angpix is -1.0. Expected a number greater than or equal to 0.01."),
        (["reconstruct", "x", "-j", "0"], "-j/--threads is 0. Expected"),
        (["reconstruct", "x", "--pixel-sizes", "2"], "Did you mean --angpix?"),
        (["reconstruct", "x", "--preset", "demo"], "No such option: --preset. `cryoeq reconstruct --help`"),
        (["reconstruct", "x", "y"], "unexpected extra argument"),
        (["simulate", "x", "-n", "0"], "-n/--count is 0. Expected"),
        (["simulate"], "'MODEL'"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(typed: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(typed) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cryoeq: ")
    assert words in line
    assert "Input should" not in line


@pytest.mark.parametrize("typed", [[], ["lattice"]])
def test_a_program_without_a_command_shows_its_help(typed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(typed) == 2
    assert capsys.readouterr().err.startswith("Usage: cryoeq")


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


@pytest.mark.parametrize(
    ("typed", "setting"),
    [
        (["--group", "so2"], "encoder.group=VALUE"),
        (["--heads=4"], "encoder.heads=4"),
        (["--decoder", "voxel"], "decoder.kind=VALUE"),
        (["--symmetric_loss"], "loss.symmetric=true"),
        (["-n", "3"], "training.epochs=VALUE"),
        (["--num-epochs=3"], "training.epochs=3"),
        (["-b", "3"], "training.batch_size=VALUE"),
    ],
)
def test_options_that_became_settings(typed: list[str], setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reconstruct", "a.star", *typed]) == 2
    assert f"is now a setting, for --pose-inference amortized. Use --set {setting}." in capsys.readouterr().err


def test_other_commands_keep_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "none.pdb", "-n", "3"]) == 3
    assert run(["infer", "none", "none.star", "-b", "3"]) in {2, 3}
    assert "is now a setting" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["reconstruct", "evaluate", "orientations", "screen", "simulate"])
def test_a_bad_symmetry_is_refused_before_any_file_is_read(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["none.star"] * (1 + (command == "evaluate"))
    assert run([command, *files, "--sym", "X3"]) == 2
    assert "--sym is 'X3'. Expected C1, C2," in capsys.readouterr().err


def test_a_choice_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reconstruct", "a.star", "--pose-inference", "guessed"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "'--pose-inference': 'guessed' is not one of 'search', 'hybrid', 'amortized', 'known'" in last
