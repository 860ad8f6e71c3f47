"""Verdict on a run: whether it found a structure, as far as the run itself can show, with the reasons."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cryoeq.evaluation.hand import Hand, hand_remarks
from cryoeq.evaluation.orientations import UNEVEN_SCF
from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD
from cryoeq.evaluation.unexplained import JUNK_CUT
from cryoeq.maps.symmetry import MIXED_HANDS_WARNING

Level = Literal["found", "doubtful", "not found", "unfinished"]
Weight = Literal["for", "against", "remark"]

_MIN_SHELL = 5  # below, a round blob of the right size agrees with any molecule
_MIN_PROBABILITY, _UNDETERMINED = 0.5, 0.1  # one of two poses, and one of more than a symmetry such as D4 makes equal
_MAX_UNSURE = 0.5  # fraction of the particles
_MAX_UNEXPLAINED, _WORTH_SAYING = 0.2, 0.05  # share of the particles
_AS_FAR = 1.5  # times the resolution of the half maps: without their spherical averages they agree as far
_CLASSIFY = "run cryoeq reconstruct with --classes 2, or auto."
_MIN_EXPLAINED_SIGNAL = 0.85  # of stacks as they come 0.86 and more, of blends that no other test sees 0.83
_LITTLE_SIGNAL, _SOME_UNEXPLAINED = 0.9, 0.1  # below and above, a mixture that either alone would not show
_MANY_BROKEN, _MOSTLY_BROKEN = 0.1, 0.6  # of the particles, and of the junk
# Likewise of a sphere whose poses were searched: wrong maps of apoferritin 1.15 to 1.31, right ones up to 1.06.
_AS_FAR_SEARCHED = 1.1
MIN_NONSPHERICAL = 0.2
"""Share of a map that is not spherical, below which its spherical average decides the agreement of its halves."""
MAX_WRONG_OPTIMUM = 0.25
"""Share of the particles in a wrong optimum beyond which there is no structure."""


@dataclass(frozen=True)
class RunFacts:
    """Facts on a run, from its folder.

    Args:
        status: status in ``job.json``.
        error: reason of a failure; None without a failure, or where it is not recorded.
        pose_inference: source of the poses: search, hybrid, amortized, known or refine.
        starts: minimal number of random starts; where there is more than one, two had to agree. 0 where they do not
            count here, as of a class of several.
        side_angstrom: side of the box.
        resolution_angstrom: resolution of the half maps; infinite where they agree at no shell, None without half maps.
        shared_angstrom: resolution up to which both half sets shared a reference, or the poses that they began with;
            None where they shared none, or shared all their poses.
        probabilities: probability of the most probable pose of each particle; None where it is not recorded.
        warnings: warnings of the run.
        scf_star: sampling compensation factor SCF* of the views; None without poses.
        dependent_halves: reason why the half maps are not independent, a clause; None where they are.
        nonspherical_share: share of the map that is not spherical; None where it was not measured.
        nonspherical_angstrom: resolution of the half maps without their spherical averages; None where these agree at
            no shell, or were not measured.
        unexplained_share: share of the particles, but for noise, ice and overlapping ones, that the map does not
            explain; None where noise hides it.
        explained_signal: share of the images' signal, but for junk, that the map explains, where the half maps agree
            almost fully; None where it cannot be told.
        junk_share: expected share of the particles that are junk; None where it cannot be told.
        broken_share: expected share of those that are broken, which particles of another structure look like.
        wrong_optimum_share: share of the particles with a better pose elsewhere; None where it was not measured.
        symmetry: point group that was imposed on the map.
        apparent_symmetry: point group that a map made without symmetry has; None where none was found.
        hand: of the map; None where it was not measured.
        has_given_poses: whether it is poses that they shared, those of the particle file.
        emptied: how many classes were asked for and how many are left, a sentence; None where all are.
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
    dependent_halves: str | None = None
    nonspherical_share: float | None = None
    nonspherical_angstrom: float | None = None
    unexplained_share: float | None = None
    explained_signal: float | None = None
    junk_share: float | None = None
    broken_share: float = 0.0
    wrong_optimum_share: float | None = None
    symmetry: str = "C1"
    apparent_symmetry: str | None = None
    emptied: str | None = None
    hand: Hand | None = None
    has_given_poses: bool = False

    @classmethod
    def unfinished(cls, pose_inference: str) -> "RunFacts":
        """Facts on a run that has just begun."""
        return cls("running", None, pose_inference, 0, 0.0, None, None, None, ())


@dataclass(frozen=True)
class Reason:
    """One reason for the map, against it, or neither.

    Args:
        weight: for the map, against it, or a remark.
        text: the reason, one or two sentences.
        advice: what to do about it, one sentence; empty where there is nothing.
    """

    weight: Weight
    text: str
    advice: str = ""


@dataclass(frozen=True)
class RunVerdict:
    """Verdict with its reasons.

    Args:
        level: found; doubtful, where the run itself casts doubt on its map; not found; or unfinished.
        sentence: the verdict in one sentence.
        reasons: reasons for and against, and remarks.
    """

    level: Level
    sentence: str
    reasons: tuple[Reason, ...]

    @property
    def summary(self) -> str:
        """Answer and sentence in one line."""
        return f"{self.level}: {self.sentence}"

    @property
    def doubts(self) -> tuple[Reason, ...]:
        """The reasons against the map."""
        return tuple(reason for reason in self.reasons if reason.weight == "against")

    def to_json(self) -> dict[str, Any]:
        """The verdict as ``job.json`` records it: answer, sentence, and reasons."""
        return {"answer": self.level, "sentence": self.sentence, "reasons": [asdict(each) for each in self.reasons]}


def judge_run(facts: RunFacts) -> RunVerdict:
    """Verdict on a run; any reason against the map makes it doubtful."""
    if facts.status != "done":
        return _without_map(facts)
    is_given = facts.pose_inference in {"known", "refine"}
    reasons = (
        *_on_emptied(facts), *_on_optima(facts), *_on_half_maps(facts), *_on_particles(facts), *_on_junk(facts),
        *_on_symmetry(facts), *_on_views(facts), *_on_poses(facts),
        *(Reason("remark", *said) for said in hand_remarks(facts.hand, is_given=is_given)),
    )  # fmt: skip
    doubts = [reason.text for reason in reasons if reason.weight == "against"]
    if facts.wrong_optimum_share is not None and facts.wrong_optimum_share > MAX_WRONG_OPTIMUM:
        return RunVerdict("not found", "There is a map, but its particles are not where it shows them.", reasons)
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
    """Weight of the half maps' agreement."""
    resolution, shared = facts.resolution_angstrom, facts.shared_angstrom
    if resolution is None:
        yield Reason(
            "against",
            "There are no half maps, so the resolution of the map is unknown.",
            "Give particles of two half sets (rlnRandomSubset), or leave out --pose-inference known.",
        )
        return
    criterion = f"(FSC {HALF_MAP_THRESHOLD}, unmasked)"
    if facts.dependent_halves:
        yield Reason(
            "against",
            f"The half maps are not independent: {facts.dependent_halves}. Their FSC says nothing on the resolution.",
            "Remove the repeated images, or split the particles anew, and run again.",
        )
        return
    if not math.isfinite(resolution) or facts.side_angstrom / resolution < _MIN_SHELL:
        blob = f"to {resolution:.0f} Å only {criterion}, as any blob of the right size would"
        limit = f"at no resolution {criterion}, like noise" if math.isinf(resolution) else blob
        check = "poses, CTF, contrast, pixel size" if _is_known(facts) else "CTF, contrast, pixel size, --shift-sigma"
        yield Reason("against", f"The half maps agree {limit}.", f"Use more or cleaner particles, and check {check}.")
    elif facts.pose_inference == "amortized":
        yield Reason(
            "against",
            f"The half maps agree to {resolution:.1f} Å {criterion}, but one encoder, trained on all particles, posed "
            "both half sets: the FSC is over-optimistic, not gold-standard.",
            "Run again with --pose-inference search, whose half sets are independent.",
        )
    elif shared is not None and resolution > 0.99 * shared:
        yield Reason(
            "against",
            f"The half maps agree to {resolution:.1f} Å {criterion}, but are independent (gold-standard) only beyond "
            f"{shared:.0f} Å, up to which {_what_they_shared(facts)}.",
            "Use more particles, or particles of more contrast.",
        )
    else:
        beyond = f", beyond the {shared:.0f} Å up to which {_what_they_shared(facts)}" if shared else ""
        yield Reason("for", f"The half maps agree to {resolution:.1f} Å {criterion}{beyond}.")


def _what_they_shared(facts: RunFacts) -> str:
    if facts.has_given_poses:
        return "both half sets began with the poses of the particle file, which may have been refined together"
    return "both half sets shared a reference"


def _on_particles(facts: RunFacts) -> Iterator[Reason]:
    """Whether the map explains the particles, and is more than a sphere."""
    share, junk = facts.unexplained_share, facts.junk_share
    is_junky = junk is not None and junk - facts.broken_share > _WORTH_SAYING
    among = "of the particles that are neither noise, ice nor two in one" if is_junky else "of the particles"
    if share is not None and share > _MAX_UNEXPLAINED:
        text = (
            f"The map does not explain {share:.0%} {among}: what is left of them when its projections are subtracted "
            "is more than noise."
        )
        classify = f"find several structures: {_CLASSIFY}"
        if _is_known(facts):
            text = f"{text} Their poses in the star file are wrong, or they are junk, or of another structure."
            advice = f"Infer the poses (leave out --pose-inference known), or {classify}"
        else:
            much_junk = ", or of much junk" if junk is None else ", or of broken particles"
            text = f"{text} One map was made of a mixture: of several structures{much_junk}."
            advice = f"Find them with cryoeq screen, or {classify}"
        if facts.symmetry != "C1":
            text = f"{text} Or they do not have the symmetry {facts.symmetry}, which was imposed."
            advice = f"{advice} Run without --sym {facts.symmetry} and compare."
        yield Reason("against", text, advice)
    elif share is not None:
        weight: Weight = "for" if share <= _WORTH_SAYING else "remark"
        reason = "junk or another structure" if junk is None else "broken or of another structure"
        others = "" if share <= _WORTH_SAYING else f"; {share:.0%} it does not, as {reason}"
        yield Reason(weight, f"The map explains {1 - share:.0%} {among} to within their noise{others}.")
    signal = facts.explained_signal
    is_some_unexplained = share is None or share > _SOME_UNEXPLAINED
    if signal is not None and signal < (_LITTLE_SIGNAL if is_some_unexplained else _MIN_EXPLAINED_SIGNAL):
        yield Reason(
            "against",
            f"The map explains {signal:.0%} of the signal in the images at low resolution, where its halves agree "
            "almost fully. The rest is another structure, or of particles with wrong poses: one map blends several.",
            f"Find several structures: {_CLASSIFY} Or compare with another --seed.",
        )
    if facts.nonspherical_share is not None and facts.nonspherical_share < MIN_NONSPHERICAL:
        yield _on_sphere(facts, facts.nonspherical_share)


def _on_junk(facts: RunFacts) -> Iterator[Reason]:
    junk, broken = facts.junk_share, facts.broken_share
    if junk is None or junk <= _WORTH_SAYING:
        return
    yield Reason(
        "remark",
        f"About {junk:.0%} of the particles are junk; cryoeqJunkProbability in run_data.star tells which.",
        f"Leave them out with cryoeq select --junk-below {JUNK_CUT:g}, and run again.",
    )
    if broken > max(_MANY_BROKEN, _MOSTLY_BROKEN * junk):
        yield Reason(
            "remark",
            f"Most of it, {broken:.0%} of the particles, shows a part of the map and nothing else: broken particles, "
            "or whole ones of another structure.",
            f"Find several structures: {_CLASSIFY}",
        )


def _on_sphere(facts: RunFacts, share: float) -> Reason:
    """Weight of a map that is almost a sphere: poses that are not determined make a sphere of anything."""
    agreed = facts.nonspherical_angstrom
    rest = "at no resolution" if agreed is None else f"to {agreed:.1f} Å"
    text = (
        f"The map is a sphere but for {share:.0%} of its power. The half maps agree by their spherical averages, which "
        f"need no poses; without them they agree {rest}."
    )
    if _is_known(facts):
        if agreed is not None and agreed <= _AS_FAR * (facts.resolution_angstrom or 0.0):
            return Reason("remark", text)
        return Reason("against", text, "Check the poses, or infer them (leave out --pose-inference known).")
    if facts.probabilities is None or _are_undetermined(facts.probabilities):
        return Reason("against", text, _more_particles(facts))
    if agreed is None or agreed > _AS_FAR_SEARCHED * (facts.resolution_angstrom or 0.0):
        return Reason("against", text, "Run again with another --seed and compare.")
    return Reason("remark", text)


def _on_symmetry(facts: RunFacts) -> Iterator[Reason]:
    if facts.apparent_symmetry is not None:
        name = facts.apparent_symmetry
        yield Reason("remark", f"The map looks like {name}, and so do its particles.", f"Run again with --sym {name}.")


def _on_views(facts: RunFacts) -> Iterator[Reason]:
    if facts.scf_star is not None and facts.scf_star < UNEVEN_SCF:
        yield Reason(
            "remark",
            f"The views are uneven: SCF* is {facts.scf_star:.2f}, below the {UNEVEN_SCF} of side views alone. Detail "
            "may be missing in some directions; see cryoeq screen and cryoeq fsc --directional.",
        )


def _on_poses(facts: RunFacts) -> Iterator[Reason]:
    """Certainty of the poses, and what no run can know."""
    if _is_known(facts):
        yield Reason("remark", "The poses were taken from the star file; they were not checked.")
        return
    if facts.starts and facts.pose_inference in {"search", "hybrid"}:
        yield _on_starts(facts.starts)
    if facts.probabilities is not None:
        yield _on_probabilities(facts, sorted(facts.probabilities))
    if any(MIXED_HANDS_WARNING in warning for warning in facts.warnings):
        yield Reason(
            "against",
            "The map has a mirror plane or an inversion centre: it may be a mixture of the molecule and its mirror "
            "image.",
            "Run again with another --seed and compare.",
        )
    if facts.pose_inference == "refine":
        yield Reason(
            "remark",
            "The refinement began from a map, or from poses, that were given: nothing here shows that the particles "
            "alone lead to the same map. Its hand is that of what was given; projections cannot determine it.",
            "Compare with a map from cryoeq reconstruct.",
        )


def _on_starts(starts: int) -> Reason:
    if starts > 1:
        return Reason(
            "for", "Reproduced: two random starts converged to the same map; otherwise the run would have stopped."
        )
    return Reason(
        "against",
        "There was one random start only: no random restart shows that the map is reproducible.",
        "Run again without --set search.multi_start.min=1.",
    )


def _on_emptied(facts: RunFacts) -> Iterator[Reason]:
    if facts.emptied is not None:
        yield Reason("remark", facts.emptied)


def _on_optima(facts: RunFacts) -> Iterator[Reason]:
    """Whether a search over all poses agrees with an encoder."""
    share = facts.wrong_optimum_share
    if share is None:
        return
    text = f"A search over all poses finds a better one, more than 20° away, for {share:.0%} of a sample of particles."
    if share > MAX_WRONG_OPTIMUM:
        yield Reason("against", text, "Run again with --pose-inference search.")
    else:
        yield Reason("remark", text)


def _are_undetermined(probabilities: Sequence[float]) -> bool:
    """Whether most poses are so improbable that no symmetry of the particle can be the reason."""
    return _below(probabilities, _UNDETERMINED) > _MAX_UNSURE


def _below(probabilities: Sequence[float], limit: float) -> float:
    """Fraction of the particles whose most probable pose is less probable than a limit."""
    return sum(value < limit for value in probabilities) / len(probabilities)


def _more_particles(facts: RunFacts) -> str:
    """Advice where poses are not determined."""
    symmetry = " Give the symmetry with --sym where there is one." if facts.symmetry == "C1" else ""
    return f"Use more particles, particles of more contrast, or a larger working box.{symmetry}"


def _on_probabilities(facts: RunFacts, ordered: Sequence[float]) -> Reason:
    """Weight of the poses' probabilities, lowest first."""
    unsure = _below(ordered, _MIN_PROBABILITY)
    text = (
        f"The most probable pose has a probability of {ordered[len(ordered) // 2]:.2f} for the median particle, and "
        f"below {_MIN_PROBABILITY:g} for {unsure:.0%} of them."
    )
    if _are_undetermined(ordered):
        return Reason("against", f"{text} The poses are not determined.", _more_particles(facts))
    if unsure > _MAX_UNSURE:
        return Reason("remark", f"{text} A symmetric particle has as many equal poses: give its symmetry with --sym.")
    return Reason("for", text)
