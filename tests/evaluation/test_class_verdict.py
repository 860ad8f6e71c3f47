"""The verdict on several classes: no better than that on any of them, and what all share is said once."""

from dataclasses import replace

import pytest

from cryoeq.evaluation.class_verdict import ClassFacts, emptied_classes, judge_class, judge_classes
from cryoeq.evaluation.verdict import RunFacts, RunVerdict, judge_run

GOOD = RunFacts(
    status="done", error=None, pose_inference="search", starts=0, side_angstrom=200.0, resolution_angstrom=12.0,
    shared_angstrom=20.0, probabilities=[0.4, 0.9, 1.0], warnings=[],
)  # fmt: skip


def judge(*facts: ClassFacts) -> RunVerdict:
    return judge_classes(facts, [judge_class(each) for each in facts])


def a_class(number: int, reproduced: float | None = 0.9, share: float = 0.5, **change: object) -> ClassFacts:
    return ClassFacts(number, replace(GOOD, **change), reproduced, share)


def test_all_found_is_found() -> None:
    verdict = judge(a_class(1), a_class(2, resolution_angstrom=14.0), a_class(3))
    assert verdict.level == "found"
    assert verdict.sentence == "3 structures were found; their half maps agree to 12.0, 14.0 and 12.0 Å."
    assert not verdict.doubts


@pytest.mark.parametrize(("asked", "left", "said"), [(2, 1, "one structure is left"), (4, 2, "2 structures are left")])
def test_classes_that_emptied_are_told_once_and_cast_no_doubt(asked: int, left: int, said: str) -> None:
    text = emptied_classes(asked, left)
    assert text == f"{asked} classes were asked for; {asked - left} emptied: {said}."
    verdict = judge(*(a_class(number, emptied=text) for number in range(1, left + 1)))
    assert verdict.level == "found"
    assert sum(text in reason.text for reason in verdict.reasons) == 1


@pytest.mark.parametrize("reproduced", [0.0, 0.3, 0.49, None])
def test_a_class_that_no_start_found_again_is_doubtful(reproduced: float | None) -> None:
    verdict = judge(a_class(1), a_class(2, reproduced))
    assert (verdict.level, "doubt is cast on class 2" in verdict.sentence) == ("doubtful", True)
    assert all(reason.text.startswith("Class 2: ") for reason in verdict.doubts)


def test_what_holds_for_all_is_said_once_and_of_no_class() -> None:
    verdict = judge(a_class(1, resolution_angstrom=None), a_class(2, resolution_angstrom=None))
    (doubt,) = verdict.doubts
    assert doubt.text.startswith("There are no half maps")
    assert "on all of them" in verdict.sentence


def test_reasons_of_each_class_are_kept() -> None:
    facts = [a_class(1), a_class(2, scf_star=0.5, share=0.02)]
    texts = [reason.text for reason in judge(*facts).reasons]
    for each in facts:
        for reason in judge_class(each).reasons:
            assert sum(text in {reason.text, f"Class {each.number}: {reason.text}"} for text in texts) == 1
    assert "Class 2: It has 2.0% of the particles only." in texts


@pytest.mark.parametrize("status", ["failed", "stopped", "running"])
def test_a_run_without_an_end_has_no_classes(status: str) -> None:
    facts = replace(GOOD, status=status, error="why")
    assert judge(*(ClassFacts(number, facts, None, 0.5) for number in (1, 2))) == judge_run(facts)


def test_poses_that_were_given_need_no_other_start() -> None:
    known = a_class(1, None, pose_inference="known", shared_angstrom=None, probabilities=None)
    assert judge_class(known) == judge_run(known.run)
