"""Whether a run found a structure, as far as the run itself can tell, in plain words and with its reasons."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from cryoeq.evaluation.orientations import UNEVEN_SCF
from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD
from cryoeq.maps.symmetry import MIXED_HANDS_WARNING

Level = Literal["found", "doubtful", "not found", "unfinished"]
Weight = Literal["for", "against", "remark"]

_LEAST_SHELL = 5  # below, a round blob of the right size agrees with any molecule
_LEAST_PROBABILITY = 0.5
_MOST_UNSURE = 0.5  # share of the particles


@dataclass(frozen=True)
class RunFacts:
    """What a run folder says of its run.

    Args:
        status: of ``job.json``.
        error: why it failed; None where it did not, or where that is not recorded.
        pose_inference: how poses were come by.
        starts: least number of random starts, two of which had to agree where there is more than one.
        side_angstrom: of the box.
        resolution_angstrom: to which the half maps agree; infinite where they do at no shell, None without half maps.
        shared_angstrom: up to which the half maps shared their first map; None where they shared nothing or their
            poses.
        probabilities: of the most probable pose of each particle; None where the run does not tell.
        warnings: of the run.
        scf_star: how evenly the views fill Fourier space; None without poses.
    """

    status: str
    error: str | None
    pose_inference: str
    starts: int
    side_angstrom: float
    resolution_angstrom: float | None
    shared_angstrom: float | None
    probabilities: Sequence[float] | None
    warnings: Sequence[str]
    scf_star: float | None = None


@dataclass(frozen=True)
class Reason:
    """One thing that speaks for the map, against it, or neither."""

    weight: Weight
    text: str


@dataclass(frozen=True)
class RunVerdict:
    """The answer.

    Args:
        level: found; doubtful, a map came out that the run itself casts doubt on; not found; or unfinished.
        sentence: the answer in one sentence.
        reasons: what it rests on.
    """

    level: Level
    sentence: str
    reasons: tuple[Reason, ...]


def judge_run(facts: RunFacts) -> RunVerdict:
    """The verdict on a run; any reason against it makes the map doubtful.

    Args:
        facts: what the run folder says.
    """
    if facts.status != "done":
        return _without_map(facts)
    reasons = (*_on_half_maps(facts), *_on_views(facts), *_on_poses(facts))
    doubts = [reason.text for reason in reasons if reason.weight == "against"]
    if doubts:
        number = {1: "one thing casts", 2: "two things cast"}.get(len(doubts), f"{len(doubts)} things cast")
        return RunVerdict("doubtful", f"There is a map, but {number} doubt on it.", reasons)
    agreement = f"its half maps agree to {facts.resolution_angstrom:.1f} Å."
    made = "A map was made from the poses of the star file" if _is_known(facts) else "A structure was found"
    return RunVerdict("found", f"{made}; {agreement}", reasons)


def _without_map(facts: RunFacts) -> RunVerdict:
    why = (Reason("against", facts.error),) if facts.error else ()
    match facts.status:
        case "failed":
            return RunVerdict("not found", "The run failed; there is no map to trust.", why)
        case "stopped":
            return RunVerdict("unfinished", "The run was stopped before it ended.", why)
        case _:
            return RunVerdict("unfinished", "The run has not ended, or was killed.", why)


def _is_known(facts: RunFacts) -> bool:
    return facts.pose_inference == "known"


def _on_half_maps(facts: RunFacts) -> Iterator[Reason]:
    """What the correlation of the half maps is worth."""
    resolution, shared = facts.resolution_angstrom, facts.shared_angstrom
    if resolution is None:
        yield Reason("against", "There are no half maps, so nothing says how far the map can be trusted.")
        return
    criterion = f"(FSC {HALF_MAP_THRESHOLD}, no mask)"
    if not math.isfinite(resolution) or facts.side_angstrom / resolution < _LEAST_SHELL:
        limit = "at no resolution" if math.isinf(resolution) else f"to {resolution:.0f} Å only"
        yield Reason("against", f"The half maps agree {limit} {criterion}: any blob of the right size would.")
    elif facts.pose_inference == "amortized":
        yield Reason(
            "against",
            f"The half maps agree to {resolution:.1f} Å {criterion}, but one encoder that saw all particles posed both "
            "halves: their agreement flatters and cannot confirm the map. A search can.",
        )
    elif shared is not None and resolution > 0.99 * shared:
        yield Reason(
            "against",
            f"The half maps agree to {resolution:.1f} Å {criterion}. Up to {shared:.0f} Å they shared their first map, "
            "so that this proves nothing.",
        )
    else:
        beyond = f", beyond the {shared:.0f} Å up to which they shared their first map" if shared else ""
        yield Reason("for", f"The half maps agree to {resolution:.1f} Å {criterion}{beyond}.")


def _on_views(facts: RunFacts) -> Iterator[Reason]:
    if facts.scf_star is not None and facts.scf_star < UNEVEN_SCF:
        yield Reason(
            "remark",
            f"The views are uneven: SCF* is {facts.scf_star:.2f}, where side views alone have {UNEVEN_SCF}. Detail may "
            "be missing in some directions; cryoeq fsc --directional shows them.",
        )


def _on_poses(facts: RunFacts) -> Iterator[Reason]:
    """What the run says of its poses, and what it cannot know."""
    if _is_known(facts):
        yield Reason("remark", "The poses were taken from the star file; they were not checked.")
        return
    if facts.pose_inference in {"search", "hybrid"}:
        yield _on_starts(facts.starts)
    if facts.probabilities is not None:
        yield _on_probabilities(sorted(facts.probabilities))
    if any(MIXED_HANDS_WARNING in warning for warning in facts.warnings):
        yield Reason(
            "against",
            "The map has a mirror plane or an inversion centre: it may be a mixture of the molecule and its mirror "
            "image. Run again with another seed and compare.",
        )
    yield Reason("remark", "The hand cannot be told from projections: the mirror image of the map is as likely.")


def _on_starts(starts: int) -> Reason:
    if starts > 1:
        return Reason("for", "Two random starts ended in the same map; without that the run would have stopped.")
    return Reason("against", "There was one random start only: nothing shows that another one finds the same map.")


def _on_probabilities(ordered: Sequence[float]) -> Reason:
    """Judge the probabilities of the poses, lowest first."""
    unsure = sum(value < _LEAST_PROBABILITY for value in ordered) / len(ordered)
    text = (
        f"The most probable pose has a probability of {ordered[len(ordered) // 2]:.2f} for the median particle, and "
        f"below {_LEAST_PROBABILITY:g} for {unsure:.0%} of them."
    )
    return Reason("against" if unsure > _MOST_UNSURE else "for", text)
