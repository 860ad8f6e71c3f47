"""Pipelines run to their end, with what they said on the way."""

from collections.abc import Generator
from typing import TypeVar

from cryoeq.domain.events import Event

Result = TypeVar("Result")


def events_and_result(steps: Generator[Event, None, Result]) -> tuple[list[Event], Result]:
    """All events, in order, and what the steps return."""
    events: list[Event] = []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as end:
            return events, end.value
