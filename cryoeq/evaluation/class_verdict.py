"""Verdict on a run of several classes: that of each map, and whether another random start found the class again."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from cryoeq.evaluation.verdict import Level, Reason, RunFacts, RunVerdict, judge_run

_REPRODUCED, _NOT_REPRODUCED = 0.8, 0.5  # share of a class that is together in one class of another start
_WORTH_HAVING = 0.05  # share of the particles


def emptied_classes(asked: int, left: int) -> str:
    """That classes were left without particles, a sentence.

    Args:
        asked: number of classes that were asked for.
        left: number of those that are left.
    """
    structures = "one structure is" if left == 1 else f"{left} structures are"
    return f"{asked} classes were asked for; {asked - left} emptied: {structures} left."


@dataclass(frozen=True)
class ClassFacts:
    """Facts on one class.

    Args:
        number: of the class, from 1.
        run: facts on its map and particles, as of a run of them alone.
        reproduced: share of its particles that are in the matched class of another random start; None where there was
            none.
        share: share of all particles, 0 to 1.
    """

    number: int
    run: RunFacts
    reproduced: float | None
    share: float


def judge_class(facts: ClassFacts) -> RunVerdict:
    """Verdict on one class: that on its map, and doubtful where no other random start found it."""
    verdict = judge_run(facts.run)
    if facts.run.status != "done" or facts.run.pose_inference == "known":
        return verdict
    more = tuple(_on_class(facts))
    doubts = len(verdict.doubts) + sum(reason.weight == "against" for reason in more)
    level: Level = "doubtful" if doubts and verdict.level == "found" else verdict.level
    return replace(verdict, level=level, reasons=(*more, *verdict.reasons))


def judge_classes(facts: Sequence[ClassFacts], verdicts: Sequence[RunVerdict]) -> RunVerdict:
    """Verdict on all classes, with the reasons of each; what holds for all is said once.

    Args:
        facts: of each class, at least one.
        verdicts: on each, by ``judge_class``.
    """
    first = verdicts[0]
    if facts[0].run.status != "done":
        return first
    common = [reason for reason in first.reasons if all(reason in verdict.reasons for verdict in verdicts[1:])]
    reasons = [
        replace(reason, text=f"Class {each.number}: {reason.text}")
        for each, verdict in zip(facts, verdicts, strict=True)
        for reason in verdict.reasons
        if reason not in common
    ]
    every = (*reasons, *common)
    doubted = [each.number for each, verdict in zip(facts, verdicts, strict=True) if verdict.level != "found"]
    if not doubted:
        agreed = _listed(f"{each.run.resolution_angstrom:.1f}" for each in facts)
        return RunVerdict("found", f"{len(facts)} structures were found; their half maps agree to {agreed} Å.", every)
    which = "all of them" if len(doubted) == len(facts) else f"class {_listed(map(str, doubted))}"
    level: Level = "not found" if all(verdict.level == "not found" for verdict in verdicts) else "doubtful"
    return RunVerdict(level, f"There are maps of {len(facts)} classes, but doubt is cast on {which}.", every)


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _on_class(facts: ClassFacts) -> Iterator[Reason]:
    """Whether another start found the class, and whether it has particles."""
    share = facts.reproduced
    if share is None:
        yield Reason(
            "against",
            "No other random start was made: nothing shows that the class is more than chance.",
            "Run again with at least two starts (search.multi_start.min).",
        )
    elif share < _NOT_REPRODUCED:
        text = f"Not reproduced: {share:.0%} of its particles are in the matching class of another random start."
        yield Reason("against", text, "Run again with fewer classes, or with another --seed and compare.")
    else:
        text = f"{share:.0%} of its particles are in the matching class of another random start."
        yield Reason("for" if share >= _REPRODUCED else "remark", text)
    if facts.share < _WORTH_HAVING:
        yield Reason("remark", f"It has {facts.share:.1%} of the particles only.")
