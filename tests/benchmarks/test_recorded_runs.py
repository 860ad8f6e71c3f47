"""Records of benchmarks are found again, whatever the settings and stages were called when they were made."""

import sys
from pathlib import Path
from typing import Any

import pytest

from cryoeq.config.older_keys import RENAMED

FOLDER = Path(__file__).parent


@pytest.fixture
def recorded_runs(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    import recorded_runs

    yield recorded_runs
    sys.modules.pop("recorded_runs", None)


def record(*options: str, seed: int = 0) -> dict[str, Any]:
    return {"set": "easy", "mode": "amortized", "seed": seed, "options": list(options)}


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_older_key_names_the_same_run(recorded_runs: Any, old: str, new: str) -> None:
    older, other = record("--set", f"{old}=3", "--no-ctf"), record("--set", f"{old}=4", "--no-ctf")
    wanted = record("--set", f"{new}=3", "--no-ctf")
    assert recorded_runs.find_record([older, other], wanted) is older
    assert recorded_runs.find_record([other], wanted) is None
    assert recorded_runs.find_record([older], record("--set", f"{new}=3", "--no-ctf", seed=1)) is None
    assert older["options"][1] == f"{old}=3", "the record itself is not changed"


def test_the_latest_record_counts(recorded_runs: Any) -> None:
    first, second = record("loss.leak=0.1"), record("loss.wta_epsilon=0.1")
    assert recorded_runs.find_record([first, second], first) is second


def test_every_run_of_the_groups_is_found_again(recorded_runs: Any) -> None:
    """Made with version 0.1: the script asks for them under today's names."""
    import groups

    records = recorded_runs.read_records(FOLDER / "groups.json")
    made = [one for one in records if one["mode"] == "amortized"]
    assert any("loss.rendered_weight" in word for one in made for word in one["options"])
    for one in made:
        options = groups.options_of(groups.ARMS[one["arm"]], one["task"])
        assert not any(word.partition("=")[0] in RENAMED for word in options)
        key = {"set": "easy", "mode": "amortized", "seed": one["seed"], "options": options}
        found = recorded_runs.find_record(records, key)
        assert found is not None
        assert (found["arm"], found["task"], found["seed"]) == (one["arm"], one["task"], one["seed"])


def test_seconds_belong_to_the_stage_that_the_log_names(recorded_runs: Any, tmp_path: Path) -> None:
    """Also where a line says how many iterations a stage has."""
    log = tmp_path / "run.log"
    lines = [
        "00:00  300 particles of 20 px",
        "00:01  reading 300/300: 0:01 elapsed",
        "00:03  initial model 40/40: log-likelihood 16.02",
        "00:07  consensus refinement 3/9: data to 26.0 Å, log-likelihood 48.23",
        "00:12  global re-alignment: 3.4% of poses changed",
        "00:18  half-set refinement 1/2: 36% of the iteration; 5:20 left",
        "00:25  local refinement 2/2: data to 13.9 Å, halves agree to 13.9 Å",
        "00:33  final iteration 300/300: data to 13.9 Å",
    ]
    log.write_text("".join(f"2026-11-30 10:{line}\n" for line in lines))
    seconds = recorded_runs.stage_seconds(log)
    assert seconds == {
        "starts": 2.0, "joint iterations": 12.0, "second looks": 5.0, "half sets": 6.0, "local refinement": 7.0,
        "other": 1.0,
    }  # fmt: skip
