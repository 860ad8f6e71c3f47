"""What is run: scenarios of sound input, mutants of them, and the index of mutations."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Files = Mapping[str, bytes]
# harmless: the same result; broken: refused, warned of, or without effect; any: no crash, no hang, nothing half done.
May = Literal["harmless", "broken", "any"]


@dataclass(frozen=True)
class Scenario:
    """A command line with sound input.

    Args:
        name: its name.
        command: the words after ``cryoeq``; they write into the folder ``out``.
        files: content of its input files by relative path.
        targets: kind of the mutations that each file takes, by path.
        weight: how often it is drawn, beside the others.
        is_order_free: whether the order of the particles, and rounding, leave the result as it is; a search differs.
    """

    name: str
    command: tuple[str, ...]
    files: Files
    targets: Mapping[str, str]
    weight: float = 1.0
    is_order_free: bool = False


@dataclass(frozen=True)
class Change:
    """What a mutation made of a file or a command line.

    Args:
        content: the file's new content, None where it is gone; or the new words of the command.
        what: description.
        subjects: words that a message may name instead of the file.
        also: further files that change with it.
    """

    content: bytes | None
    what: str
    subjects: tuple[str, ...] = ()
    also: Files | None = None


@dataclass(frozen=True)
class Mutant:
    """A scenario with something changed.

    Args:
        scenario: name of the scenario.
        command: the words after ``cryoeq``.
        files: content of all input files by path.
        kinds: names of the mutations.
        may: which ends are right.
        what: what was changed.
        subjects: words of which a refusal or a warning must name one.
    """

    scenario: str
    command: tuple[str, ...]
    files: Files
    kinds: tuple[str, ...]
    may: May
    what: str
    subjects: tuple[str, ...]


@dataclass(frozen=True)
class Mutation:
    """One way to change a file of some kind, or a command line.

    Args:
        name: its name.
        may: which ends are right after it.
        apply: the change, None where it does not apply.
        needs_free_order: whether it is harmless only where order and rounding do not matter.
        only: commands to which it means what it may do, to others it may do anything; none for all.
    """

    name: str
    may: May
    apply: Callable[[random.Random, bytes, Scenario], Change | None]
    needs_free_order: bool = False
    only: tuple[str, ...] = ()

    def may_in(self, scenario: Scenario) -> May:
        """What it may do to the result of a scenario."""
        is_out_of_place = self.needs_free_order and not scenario.is_order_free
        means_nothing = bool(self.only) and scenario.command[0] not in self.only
        return "any" if is_out_of_place or means_nothing else self.may


MUTATIONS: dict[str, list[Mutation]] = {}


def mutation(
    kind: str, may: May, *, needs_free_order: bool = False, only: tuple[str, ...] = ()
) -> Callable[[Callable], Callable]:
    """Enter a function into the index of mutations of a kind of file."""

    def enter(function: Callable) -> Callable:
        name = f"{kind}: {function.__name__.replace('_', ' ')}"
        MUTATIONS.setdefault(kind, []).append(Mutation(name, may, function, needs_free_order, only))
        return function

    return enter


def unchanged(scenario: Scenario) -> Mutant:
    """The scenario itself, whose result is the measure."""
    return Mutant(scenario.name, scenario.command, scenario.files, (), "harmless", "nothing", ())


def with_change(mutant: Mutant, path: str, entry: Mutation, change: Change, may: May) -> Mutant:
    """A mutant with one file changed further."""
    files = dict(mutant.files) | dict(change.also or {})
    if change.content is None:
        files.pop(path, None)
    else:
        files[path] = change.content
    return replace(
        mutant,
        files=files,
        kinds=(*mutant.kinds, entry.name),
        may=worse(mutant.may, may),
        what=f"{mutant.what}; {path}: {change.what}" if mutant.kinds else f"{path}: {change.what}",
        subjects=(*mutant.subjects, path.rpartition("/")[2], *change.subjects),
    )


def worse(first: May, second: May) -> May:
    """What two changes may do together."""
    order: tuple[May, ...] = ("harmless", "broken", "any")
    return max(first, second, key=order.index)


def draw_mutant(chance: random.Random, scenarios: list[Scenario]) -> Mutant:
    """A mutant of one of the scenarios: mostly of one change, sometimes of two or three."""
    scenario = chance.choices(scenarios, [each.weight for each in scenarios])[0]
    mutant = unchanged(scenario)
    count = chance.choices((1, 2, 3), (0.85, 0.12, 0.03))[0]
    for _ in range(20):
        if len(mutant.kinds) >= count:
            break
        mutant = _changed_once(chance, mutant, scenario) or mutant
    return mutant


def _changed_once(chance: random.Random, mutant: Mutant, scenario: Scenario) -> Mutant | None:
    from faults.fuzzing.option_mutations import change_command  # not above: it imports this module

    paths = [path for path in scenario.targets if path in mutant.files]
    if not paths or chance.random() < 0.2:
        return change_command(chance, mutant)
    path = chance.choice(paths)
    kind = scenario.targets[path]
    entry = chance.choice(MUTATIONS[kind] if chance.random() < 0.85 else MUTATIONS["file"])
    try:
        with np.errstate(all="ignore"):
            change = entry.apply(chance, mutant.files[path], scenario)
    except (ValueError, IndexError, KeyError, TypeError):
        if not mutant.kinds:
            raise
        return None  # what was changed before is no longer what the mutation knows
    if change is None or (change.content == mutant.files[path] and not change.also):
        return None
    return with_change(mutant, path, entry, change, entry.may_in(scenario))
