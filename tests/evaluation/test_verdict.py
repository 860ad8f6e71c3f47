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
        ({"probabilities": [0.05, 0.09, 0.9]}, "below 0.5 for 67%"),
        ({"warnings": [f"The map has a mirror plane: {MIXED_HANDS_WARNING}."]}, "mirror image"),
        ({"pose_inference": "amortized", "shared_angstrom": None}, "over-optimistic"),
        ({"dependent_halves": "the half sets shared 9 images"}, "not independent: the half sets shared 9 images"),
        ({"explained_signal": 0.82}, "explains 82% of the signal"),
        ({"unexplained_share": 0.28}, "does not explain 28% of the particles"),
    ],
)
def test_one_doubt_makes_a_map_doubtful(change: dict[str, object], said: str) -> None:
    verdict = judge_run(replace(GOOD, **change))
    (doubt,) = [reason.text for reason in verdict.reasons if reason.weight == "against"]
    assert (verdict.level, verdict.sentence) == ("doubtful", "There is a map, but one thing casts doubt on it.")
    assert said in doubt


def test_poses_of_a_symmetric_particle_share_their_probability() -> None:
    verdict = judge_run(replace(GOOD, probabilities=[0.24, 0.25, 0.49]))
    assert verdict.level == "found"
    assert any(reason.weight == "remark" and "--sym" in reason.text for reason in verdict.reasons)


@pytest.mark.parametrize("source", ["search", "known"])
def test_a_symmetry_that_shows_is_no_doubt(source: str) -> None:
    verdict = judge_run(replace(GOOD, pose_inference=source, shared_angstrom=None, apparent_symmetry="C4"))
    assert verdict.level == "found"
    (named,) = [reason for reason in verdict.reasons if "looks like C4" in reason.text]
    assert (named.weight, "--sym C4" in named.advice) == ("remark", True)


def test_a_share_of_junk_is_remarked_on() -> None:
    few, some = (judge_run(replace(GOOD, unexplained_share=share)) for share in (0.02, 0.12))
    assert (few.level, some.level) == ("found", "found")
    assert any(reason.weight == "for" and "explains 98%" in reason.text for reason in few.reasons)
    assert any(reason.weight == "remark" and "12% it does not" in reason.text for reason in some.reasons)


@pytest.mark.parametrize(
    ("share", "signal", "level"),
    [
        (0.05, 0.87, "found"),
        (0.15, 0.87, "doubtful"),
        (None, 0.87, "doubtful"),
        (0.15, 0.92, "found"),
        (0.05, 0.83, "doubtful"),
    ],
)
def test_signal_and_particles_that_are_not_explained_count_together(
    share: float | None, signal: float, level: str
) -> None:
    assert judge_run(replace(GOOD, unexplained_share=share, explained_signal=signal)).level == level


def test_junk_that_was_told_is_no_doubt() -> None:
    few, much = (judge_run(replace(GOOD, unexplained_share=0.0, junk_share=share)) for share in (0.01, 0.4))
    assert (few.level, much.level) == ("found", "found")
    assert not any("junk" in reason.text for reason in few.reasons)
    (remark,) = [reason for reason in much.reasons if "40% of the particles are junk" in reason.text]
    assert (remark.weight, "cryoeq select --junk-below" in remark.advice) == ("remark", True)
    assert any("100% of the particles that are neither noise" in reason.text for reason in much.reasons)


def test_what_is_neither_explained_nor_junk_is_another_structure() -> None:
    (doubt,) = judge_run(replace(GOOD, unexplained_share=0.3, junk_share=0.2)).doubts
    assert "does not explain 30% of the particles that are neither noise" in doubt.text
    assert "several structures, or of broken particles" in doubt.text


@pytest.mark.parametrize(("broken", "is_said"), [(0.05, False), (0.18, True)])
def test_junk_that_is_mostly_broken_may_be_another_structure(broken: float, is_said: bool) -> None:
    verdict = judge_run(replace(GOOD, junk_share=0.2, broken_share=broken))
    assert verdict.level == "found"
    assert any("another structure" in reason.text for reason in verdict.reasons) == is_said


def test_a_sphere_is_doubted_where_poses_are_not_determined() -> None:
    sphere = replace(GOOD, nonspherical_share=0.09, nonspherical_angstrom=24.0)
    unsure = judge_run(replace(sphere, probabilities=[0.01, 0.02, 0.9]))
    assert unsure.level == "doubtful"
    said = " ".join(reason.text for reason in unsure.doubts)
    assert "a sphere but for 9% of its power" in said
    assert "without them they agree to 24.0 Å" in said
    nowhere = judge_run(replace(sphere, probabilities=[0.01], nonspherical_angstrom=None))
    assert "agree at no resolution" in " ".join(reason.text for reason in nowhere.doubts)


def test_a_sphere_is_doubted_where_only_its_spherical_average_is_reproduced() -> None:
    """Poses that are wrong but sure reproduce that, and little more."""
    resolution = GOOD.resolution_angstrom
    assert resolution is not None
    sphere = replace(GOOD, nonspherical_share=0.09, nonspherical_angstrom=1.05 * resolution)
    assert judge_run(sphere).level == "found"  # a solved apoferritin
    for agreed in (1.15 * resolution, None):
        (doubt,) = judge_run(replace(sphere, nonspherical_angstrom=agreed)).doubts
        assert "another --seed" in doubt.advice
    assert judge_run(replace(GOOD, nonspherical_share=0.5, nonspherical_angstrom=None)).level == "found"


def test_doubts_on_given_poses_speak_of_these_poses() -> None:
    known = replace(GOOD, pose_inference="known", probabilities=None, shared_angstrom=None)
    resolution = known.resolution_angstrom
    assert resolution is not None
    sphere = replace(known, nonspherical_share=0.09, nonspherical_angstrom=resolution)
    assert judge_run(sphere).level == "found"  # apoferritin with the poses of a refinement
    for nowhere in (None, 3 * resolution):
        (doubt,) = judge_run(replace(sphere, nonspherical_angstrom=nowhere)).doubts
        assert "Check the poses" in doubt.advice
    (doubt,) = judge_run(replace(known, resolution_angstrom=math.inf)).doubts
    assert "agree at no resolution (FSC 0.143, unmasked), like noise" in doubt.text
    assert "check poses" in doubt.advice
    assert "--shift-sigma" not in doubt.advice
    (doubt,) = judge_run(replace(known, unexplained_share=0.4)).doubts
    assert "poses in the star file are wrong" in doubt.text
    assert doubt.advice.startswith("Infer the poses")


def test_a_refinement_says_that_its_start_and_its_hand_were_given() -> None:
    refined = judge_run(replace(GOOD, pose_inference="refine"))
    assert refined.level == "found"
    (start,) = [reason for reason in refined.reasons if "that were given" in reason.text]
    assert start.weight == "remark"
    assert "Its hand is that of what was given" in start.text
    for verdict, is_said in ((refined, False), (judge_run(GOOD), True)):
        assert any("mirror image of the map is as likely" in reason.text for reason in verdict.reasons) is is_said


def test_particles_in_another_optimum_mean_that_nothing_was_found() -> None:
    amortized = replace(GOOD, pose_inference="amortized", shared_angstrom=None)
    assert judge_run(replace(amortized, wrong_optimum_share=0.5)).level == "not found"
    assert judge_run(replace(amortized, wrong_optimum_share=0.1)).level == "doubtful"


def test_each_doubt_says_what_to_do() -> None:
    doubtful = judge_run(
        replace(
            GOOD,
            starts=1,
            unexplained_share=0.5,
            nonspherical_share=0.1,
            probabilities=[0.01],
            dependent_halves="copies",
            warnings=[MIXED_HANDS_WARNING],
        )
    )
    assert len(doubtful.doubts) == 6
    assert all(doubt.advice for doubt in doubtful.doubts)
    record = doubtful.to_json()
    assert record["answer"] == "doubtful"
    assert len(record["reasons"]) == len(doubtful.reasons)


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


def test_a_map_that_explains_few_particles_may_have_been_given_a_symmetry_that_they_lack() -> None:
    for symmetry, is_named in (("C1", False), ("I2", True)):
        verdict = judge_run(replace(GOOD, unexplained_share=0.36, symmetry=symmetry))
        (reason,) = (reason for reason in verdict.reasons if "does not explain" in reason.text)
        assert ("symmetry I2, which was imposed" in reason.text) == is_named
        assert ("--sym I2" in reason.advice) == is_named
