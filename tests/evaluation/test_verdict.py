"""The verdict on a run: reasons that make a map doubtful, and their texts."""

import math
from dataclasses import replace

import pytest

from cryoeq.evaluation.verdict import RunFacts, judge_run
from cryoeq.maps.symmetry import MIXED_HANDS_WARNING

GOOD = RunFacts(
    status="done", error=None, pose_inference="search", starts=2, side_angstrom=200.0, resolution_angstrom=12.0,
    shared_angstrom=20.0, probabilities=[0.4, 0.9, 1.0], warnings=[],
)  # fmt: skip


def test_a_good_search_found_a_structure() -> None:
    verdict = judge_run(GOOD)
    assert (verdict.level, verdict.sentence) == ("found", "A structure was found; its half maps agree to 12.0 Å.")
    assert {reason.weight for reason in verdict.reasons} == {"for", "remark"}
    assert "0.90 for the median particle, and below 0.5 for 33% of them" in " ".join(r.text for r in verdict.reasons)
    known = judge_run(replace(GOOD, pose_inference="known", shared_angstrom=None, probabilities=None))
    assert (known.level, known.sentence[:45]) == ("found", "A map was made from the poses of the star fil")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resolution_angstrom": None}, "no half maps"),
        ({"resolution_angstrom": math.inf}, "at no resolution"),
        ({"resolution_angstrom": 41.0}, "to 41 Å only"),
        ({"resolution_angstrom": 20.0}, "only beyond 20 Å"),
        ({"starts": 1}, "one random start only"),
        ({"probabilities": [0.1, 0.2, 0.9]}, "below 0.5 for 67%"),
        ({"warnings": [f"The map has a mirror plane: {MIXED_HANDS_WARNING}."]}, "mirror image"),
        ({"pose_inference": "amortized", "shared_angstrom": None}, "over-optimistic"),
    ],
)
def test_one_doubt_makes_a_map_doubtful(change: dict[str, object], said: str) -> None:
    verdict = judge_run(replace(GOOD, **change))
    (doubt,) = [reason.text for reason in verdict.reasons if reason.weight == "against"]
    assert (verdict.level, verdict.sentence) == ("doubtful", "There is a map, but one thing casts doubt on it.")
    assert said in doubt


def test_uneven_views_are_remarked_on() -> None:
    even, uneven = (judge_run(replace(GOOD, scf_star=value)) for value in (0.95, 0.5))
    assert not any("SCF*" in reason.text for reason in even.reasons)
    assert uneven.level == "found"
    assert any(reason.weight == "remark" and "SCF* is 0.50" in reason.text for reason in uneven.reasons)


def test_doubts_are_counted() -> None:
    assert "but two things cast doubt" in judge_run(replace(GOOD, starts=1, resolution_angstrom=30.0)).sentence


@pytest.mark.parametrize(
    ("status", "level"), [("failed", "not found"), ("stopped", "unfinished"), ("running", "unfinished")]
)
def test_without_an_end_there_is_no_map(status: str, level: str) -> None:
    verdict = judge_run(replace(GOOD, status=status, error="no structure was found twice."))
    assert verdict.level == level
    assert [reason.text for reason in verdict.reasons] == ["no structure was found twice."]
