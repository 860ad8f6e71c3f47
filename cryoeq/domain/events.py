"""Events of a pipeline: notes, progress and reports, drawn by the command line and read by tests."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Note:
    """One line for the user and the log."""

    text: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True)
class Progress:
    """Progress of a stage.

    Args:
        stage: name of the stage, for example "half-set refinement".
        done: units of work finished.
        total: units of work in all.
        metrics: metrics of the stage by name, for example {"loss": 0.93}.
        iteration: number of this iteration of the stage, from 1, and count of its iterations; None for a stage without
            iterations.
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


Event = Note | Progress | Report


def result_of(steps: Generator[Event, None, Result]) -> Result:
    """Run steps to their end without showing their events; their result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result
