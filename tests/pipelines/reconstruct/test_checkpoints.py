"""Steps of a search: each is kept when it is done, comes back bit by bit, and is refused where it does not fit."""

from collections.abc import Generator
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from cryoeq.domain.events import Event, Note, Progress
from cryoeq.errors import CheckpointError
from cryoeq.physics.backprojection import WienerBackprojection
from cryoeq.pipelines.reconstruct.checkpoints import Checkpoints, Step, no_checkpoints
from cryoeq.reconstruction.state import RefinementState

CPU = torch.device("cpu")


def state(generator: torch.Generator, with_sums: bool) -> RefinementState:
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    volume = random(16, 16, 16)
    sums = tuple(WienerBackprojection(16, 2, random(3, 32, 32, 32)) for _ in range(2)) if with_sums else None
    return RefinementState(
        (volume, volume), torch.arange(6) % 2 + 1, random(6, 3, 3), random(6, 2), random(6), random(6), random(9), 7, 3,
        sums,  # type: ignore[arg-type]
    )  # fmt: skip


def step(result: RefinementState, runs: list[str]) -> Step:
    runs.append("run")
    yield Progress("searching", 1, 1)
    return result


def finish(steps: Generator[Event, None, RefinementState]) -> tuple[list[Event], RefinementState]:
    events: list[Event] = []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as end:
            return events, end.value


@pytest.mark.parametrize("with_sums", [True, False])
def test_a_step_is_run_once(tmp_path: Path, generator: torch.Generator, with_sums: bool) -> None:
    found, runs = state(generator, with_sums), list[str]()
    for resume, is_run in ((False, True), (True, False), (False, True)):
        runs.clear()
        events, back = finish(Checkpoints(tmp_path / "kept", 6, CPU, resume).keep("grown", step(found, runs)))
        assert runs == ["run"] * is_run
        assert isinstance(events[0], Progress if is_run else Note)
        for field in fields(RefinementState):
            if field.name != "sums":
                torch.testing.assert_close(getattr(back, field.name), getattr(found, field.name), rtol=0, atol=0)
        assert (back.sums is None) == (not with_sums)
        for ours, theirs in zip(back.sums or (), found.sums or (), strict=True):
            assert (ours.box_size_px, ours.padding) == (16, 2)
            assert torch.equal(ours.sums, theirs.sums)
    Checkpoints(tmp_path / "kept", 6, CPU, True).clear()
    assert not (tmp_path / "kept").exists()


def test_steps_that_do_not_fit(tmp_path: Path, generator: torch.Generator) -> None:
    found, runs = state(generator, False), list[str]()
    finish(Checkpoints(tmp_path, 6, CPU, False).keep("grown", step(found, runs)))
    with pytest.raises(CheckpointError, match=r"grown\.pt is of 6 particles, there are 7 now"):
        finish(Checkpoints(tmp_path, 7, CPU, True).keep("grown", step(found, runs)))
    torch.save({"count": 6}, tmp_path / "grown.pt")
    with pytest.raises(CheckpointError, match="does not hold a step"):
        finish(Checkpoints(tmp_path, 6, CPU, True).keep("grown", step(found, runs)))
    (tmp_path / "grown.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        finish(Checkpoints(tmp_path, 6, CPU, True).keep("grown", step(found, runs)))


def test_a_step_that_is_not_kept(generator: torch.Generator) -> None:
    found = state(generator, False)
    assert finish(no_checkpoints("grown", step(found, [])))[1] is found
