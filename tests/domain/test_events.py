"""Steps whose events are left out, all or in part."""

from collections.abc import Generator

import pytest

from cryoeq.domain.events import Event, Note, Progress, result_of, without_notes
from pipeline_events import events_and_result


def steps() -> Generator[Event, None, str]:
    for number in range(2):
        yield Note(f"note {number}")
        yield Progress("stage", number, 2)
    return "done"


def test_notes_are_left_out_and_nothing_else() -> None:
    events, result = events_and_result(without_notes(steps()))
    assert events == [Progress("stage", 0, 2), Progress("stage", 1, 2)]
    assert result == result_of(steps()) == "done"


def test_what_is_thrown_reaches_the_caller() -> None:
    running = without_notes(steps())
    next(running)
    with pytest.raises(KeyboardInterrupt):
        running.throw(KeyboardInterrupt)
