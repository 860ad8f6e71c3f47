"""The benchmark of junk probabilities: areas by kind, calibration, and tables."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

KINDS = ["none"] * 60 + ["empty"] * 10 + ["edge"] * 10 + ["overlap"] * 10 + ["broken"] * 10


@pytest.fixture
def junk(monkeypatch: pytest.MonkeyPatch) -> Any:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import junk

    yield junk
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == Path(__file__).parent:
            del sys.modules[name]


def test_every_seed_has_a_stack_of_its_own(junk: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipes: list[Any] = []
    monkeypatch.setattr(junk, "prepare", lambda name, work, recipe: recipes.append(recipe) or work / name)
    assert junk.stack_of("junk30", 0, tmp_path) != junk.stack_of("junk30", 1, tmp_path)
    assert recipes[0].seed != recipes[1].seed
    assert {**vars(recipes[0]), "seed": 0} == {**vars(recipes[1]), "seed": 0}


def test_a_kind_that_is_missed_shows_in_its_own_area(junk: Any) -> None:
    probability = torch.tensor([0.0 if kind in {"none", "broken"} else 1.0 for kind in KINDS])
    found = junk.scores(probability, KINDS)
    assert found["areas"] == {"all": 0.875, "empty": 1.0, "edge": 1.0, "overlap": 1.0, "broken": 0.5}
    assert (found["good_kept"], found["junk_among_kept"]) == (1.0, round(10 / 70, 4))
    assert sum(count for count, _, _ in found["bins"]) == len(KINDS)
    assert found["bins"][0] == [70, 0.0, round(10 / 70, 4)]


def test_bins_of_all_runs_are_pooled_by_their_counts(junk: Any) -> None:
    empty = [[0, None, None]] * 7
    runs = [{"bins": [[30, 0.0, 0.0], *empty]}, {"bins": [[10, 0.01, 0.4], *empty]}, {"verdict": "found"}]
    lines = junk.calibration(runs).splitlines()
    assert "40" in lines[2]
    assert "0.100" in lines[2]  # 4 of 40
    assert lines[3].count("–") == 2


def test_a_run_without_probabilities_has_a_row(junk: Any) -> None:
    bare = {"set": "junk50", "seed": 4, "verdict": "not found", "cpu_s": 12.0}
    whole = bare | junk.scores(torch.rand(len(KINDS)), KINDS) | {"junk_share": 0.5}
    lines = junk.table([bare, whole]).splitlines()
    assert lines[2].count("–") == 10
    assert "0.400" in lines[3]
