"""Events of a pipeline: notes, plan, progress, reports. The command line draws them, tests read them."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Note:
    """One line for the user and the log."""

    text: str
    level: Literal["info", "warning"] = "info"


class Remark(str):
    """A sentence on the input that is no reason to worry, among others that are."""


@dataclass(frozen=True)
class Plan:
    """The stages of a run, in the order in which they are expected; some may be repeated, or skipped.

    Args:
        stages: their names, as ``Progress`` has them; a name may occur more than once.
    """

    stages: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """Progress of a stage.

    Args:
        stage: its name, for example "training".
        done: units finished, of this iteration where there are iterations.
        total: units in all, of this iteration where there are iterations.
        metrics: numbers of interest, for example {"loss": 0.93}; infinite or NaN where there is no value.
        iteration: number of this iteration of the stage, from 1, and their count; None without iterations.
    """

    stage: str
    done: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    iteration: tuple[int, int] | None = None


@dataclass(frozen=True)
class Report:
    """A table of results for the user.

    Args:
        title: subject of the table.
        rows: values by label, in the order of the table.
    """

    title: str
    rows: Mapping[str, str]


Event = Note | Plan | Progress | Report


def without_notes(steps: Generator[Event, None, Result]) -> Generator[Event, None, Result]:
    """Steps without their notes, which were told before."""
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result
        if not isinstance(event, Note):
            yield event


def result_of(steps: Generator[Event, None, Result]) -> Result:
    """Run steps to their end without showing their events; their result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result
