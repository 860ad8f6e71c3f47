"""What a pipeline says while it works; the command line draws it, tests read it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Note:
    """One line for the user and the log."""

    text: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True)
class Progress:
    """How far a stage has come.

    Args:
        stage: its name, for example "training".
        done: units finished.
        total: units in all.
        figures: numbers of interest, for example {"loss": 0.93}.
    """

    stage: str
    done: int
    total: int
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """A table of results, for a reader.

    Args:
        title: what the numbers are of.
        rows: label and value, in the order to show.
    """

    title: str
    rows: Mapping[str, str]


Event = Note | Progress | Report
