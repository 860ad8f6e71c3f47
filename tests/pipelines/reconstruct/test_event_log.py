"""Events of a run are kept, however it ends, and signals reach the pipeline."""

from collections.abc import Generator
from pathlib import Path

import pytest

from cryoeq.domain.events import Event, Note, Progress
from cryoeq.errors import DivergedError, Terminated
from cryoeq.outputs.progress_file import read_progress
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.reconstruct.event_log import record_events

SAID = [Note("begun"), Progress("training", 1, 2, {"loss": 0.5}), Progress("writing", 1, 1), Note("odd", "warning")]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", command=["cryoeq"], settings={})


def pipeline(heard: list[str], *, fails: bool = False) -> Generator[Event, None, int]:
    try:
        yield from SAID
    except (KeyboardInterrupt, Terminated) as stop:
        heard.append(type(stop).__name__)
        raise
    if fails:
        raise DivergedError("nothing was found")
    return 42


def figures(run: RunFolder) -> list[tuple[str, dict[str, float]]]:
    return [(row.stage, dict(row.metrics)) for row in read_progress(run.path("progress.csv"))]


def test_all_is_passed_on_and_kept(run: RunFolder) -> None:
    results: list[int] = []

    def caller() -> Generator[Event, None, None]:
        results.append((yield from record_events(pipeline([]), run)))

    assert list(caller()) == SAID
    assert results == [42]
    assert figures(run) == [("training", {"loss": 0.5})]
    assert run.notes() == (SAID[0], SAID[3])


def test_a_failure_leaves_the_journal(run: RunFolder) -> None:
    with pytest.raises(DivergedError):
        list(record_events(pipeline([], fails=True), run))
    assert figures(run) == [("training", {"loss": 0.5})]
    assert run.notes() == (SAID[0], SAID[3])


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Terminated])
def test_signals_reach_the_pipeline(run: RunFolder, stop: type[BaseException]) -> None:
    heard: list[str] = []
    journal = record_events(pipeline(heard), run)
    next(journal)
    next(journal)
    with pytest.raises(stop):
        journal.throw(stop())
    assert heard == [stop.__name__]
    assert figures(run) == [("training", {"loss": 0.5})]


def test_a_resumed_run_goes_on(run: RunFolder) -> None:
    for _ in range(2):
        list(record_events(pipeline([]), run))
    assert figures(run) == [("training", {"loss": 0.5})] * 2
    seconds = [row.seconds for row in read_progress(run.path("progress.csv"))]
    assert seconds == sorted(seconds)
    assert run.notes() == (SAID[0], SAID[3])


def test_rows_count_iterations_where_there_are_any(run: RunFolder) -> None:
    def steps() -> Generator[Event, None, None]:
        yield Progress("refinement", 100, 400, {}, (2, 3))
        yield Progress("refinement", 400, 400, {"loss": 0.5}, (2, 3))

    list(record_events(steps(), run))
    (row,) = read_progress(run.path("progress.csv"))
    assert (row.done, row.total) == (2, 3)
