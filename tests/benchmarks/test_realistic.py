"""The benchmark of realistic stacks: each seed its own, junk left out, and a table that says what was found."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cryoeq.io.star import StarTable

POSES = {
    "rotation_deg": {"median": 3.0, "mean": 5.0, "share_below_30": 0.99},
    "shift_px": {"median": 0.2},
}


@pytest.fixture
def realistic(monkeypatch: pytest.MonkeyPatch) -> Any:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import realistic

    yield realistic
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == Path(__file__).parent:
            del sys.modules[name]


def record(mode: str, seed: int, *, median: float, shell: int, exit_code: int = 0) -> dict[str, object]:
    rotation = POSES["rotation_deg"] | {"median": median}
    return {
        "set": "realistic", "mode": mode, "seed": seed, "options": [], "exit_code": exit_code, "verdict": "found",
        "poses": POSES | {"rotation_deg": rotation} if mode == "search" and exit_code == 0 else None,
        "map": {"shell": shell, "resolution_angstrom": 10.0, "crossing_angstrom": 10.1} if exit_code == 0 else None,
        "wall_s": 1.0, "cpu_s": 1.0, "peak_rss_mib": 1.0,
    }  # fmt: skip


def test_every_seed_has_a_stack_of_its_own_and_they_differ_in_nothing_else(realistic: Any) -> None:
    first, second = realistic.stack_of(0), realistic.stack_of(1)
    assert first.seed != second.seed
    assert {**vars(first), "seed": 0} == {**vars(second), "seed": 0}


def test_junk_is_left_out(realistic: Any) -> None:
    columns = {"cryoeqJunkKind": np.array(["none", "edge", "none", "empty"]), "rlnImageName": np.array(list("abcd"))}
    assert realistic.without_junk(StarTable(None, columns)).particles["rlnImageName"].tolist() == ["a", "c"]


def test_a_run_is_found_by_its_poses_and_its_map(realistic: Any) -> None:
    known = [record("known", seed, median=0.0, shell=30) for seed in range(4)]
    runs = [
        record("search", 0, median=3.0, shell=29),
        record("search", 1, median=30.0, shell=29),
        record("search", 2, median=3.0, shell=20),
        record("search", 3, median=3.0, shell=29, exit_code=4),
    ]
    lines = realistic.table([*known, *runs]).splitlines()
    assert [" | ".join(line.split("|")[1:3]).strip() for line in lines if line.startswith("| ")][2:] == [
        "0  |  found", "1  |  not found", "2  |  not found", "3  |  not found", "all  |  1 of 4", "true poses  |",
    ]  # fmt: skip
