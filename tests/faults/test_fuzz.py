"""A short session of the fuzzer finds nothing; and it finds what is planted."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from faults.fuzzing.judge import RIGHT

TESTS = Path(__file__).parents[1]
INPUTS = 15


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a process of its own: the fuzzer forks, which pytest's threads forbid here."""
    keep = tmp_path_factory.mktemp("kept")
    program = [sys.executable, "-m", "faults.fuzzing.planted", str(INPUTS), str(keep)]
    said = subprocess.run(program, cwd=TESTS, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    found: dict[str, Any] = json.loads(said.stdout)
    return found


def test_nothing_is_found_in_a_short_session(answers: dict[str, Any]) -> None:
    assert answers["faults"] == {}
    assert sum(answers["ends"].values()) == INPUTS
    assert set(answers["ends"]) <= set(RIGHT)
    assert len(answers["ends"]) > 1, "not all mutants come to the same end"


def test_mutants_depend_on_seed_and_number_alone(answers: dict[str, Any]) -> None:
    assert answers["again"]


@pytest.mark.parametrize(
    ("planted", "end"),
    [
        ("nothing", "same"),
        ("an unknown column", "same"),
        ("no number", "refused"),
        ("no number, read by a careless reader", "silent"),
        ("no number, and an error that names nothing", "nameless"),
        ("an unknown column, refused", "false refusal"),
        ("another layout, and a crash", "crash"),
        ("another layout, and a loop without an end", "hang"),
        ("another layout, and no memory", "memory"),
        ("another layout, and half a map", "half done"),
        ("another layout, and a dead process", "crash"),
    ],
)
def test_what_is_planted_is_found(answers: dict[str, Any], planted: str, end: str) -> None:
    assert answers["planted"][planted] == end


def test_faults_are_kept_two_of_a_kind(answers: dict[str, Any]) -> None:
    crashes = [name for name in answers["kept"] if name.startswith("crash_")]
    assert 1 <= len(crashes) <= 2
    assert all(name.endswith(".zip") for name in answers["kept"])
