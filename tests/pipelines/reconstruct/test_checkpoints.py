"""Checkpoints of a search: each step is saved when it is done, restored bit by bit, refused where it does not fit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.events import Note, Progress
from cryoeq.domain.pose import PoseSet
from cryoeq.errors import CheckpointError, ConfigError
from cryoeq.io.text import write_json
from cryoeq.physics.backprojection import WienerBackprojection
from cryoeq.pipelines.reconstruct.checkpoints import Checkpoints, decide, require_same_settings
from cryoeq.reconstruction.class_refinement import ClassesState
from cryoeq.reconstruction.expectation import BestPoses
from cryoeq.reconstruction.state import (
    ConsensusMap,
    HalfSetMaps,
    ParticlePoses,
    RefinementState,
    Step,
    no_checkpoints,
)
from older_runs import with_older_keys
from pipeline_events import events_and_result

CPU, N, COUNT = torch.device("cpu"), 16, 6
OLDER_NAMES = {
    "initial_model_3": ("start_3", True), "consensus_0": ("settled_0", True), "half_sets": ("grown", False),
    "realigned": ("looked_again", False), "local": ("polished", False), "final": ("finished", True),
}  # fmt: skip


def state(generator: torch.Generator, *, with_sums: bool = False, is_consensus: bool = False) -> RefinementState:
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def random_sums() -> WienerBackprojection:
        return WienerBackprojection(N, 2, torch.nn.functional.pad(random(3, 31, 31, 16), (0, 1, 1, 1, 1, 1)))

    first, second = random(N, N, N), random(N, N, N)
    sums = (random_sums(), random_sums()) if with_sums else None
    return RefinementState(
        reference=ConsensusMap(first) if is_consensus else HalfSetMaps(first, second),
        half_set=torch.arange(COUNT) % 2 + 1,
        particles=ParticlePoses(PoseSet(random(COUNT, 3, 3), random(COUNT, 2), N), random(COUNT), random(COUNT)),
        fsc=random(N // 2 + 1),
        radius=7,
        iteration=3,
        sums=sums,
    )


def assert_same(found: RefinementState, expected: RefinementState) -> None:
    assert type(found.reference) is type(expected.reference)
    for half in (1, 2):
        assert torch.equal(found.reference.of_half(half), expected.reference.of_half(half))
    for ours, theirs in zip(found.particles.tensors(), expected.particles.tensors(), strict=True):
        assert torch.equal(ours, theirs)
    assert found.poses.box_size_px == expected.poses.box_size_px
    assert torch.equal(found.half_set, expected.half_set)
    assert torch.equal(found.fsc, expected.fsc)
    assert (found.radius, found.iteration) == (expected.radius, expected.iteration)
    assert (found.sums is None) == (expected.sums is None)
    for ours, theirs in zip(found.sums or (), expected.sums or (), strict=True):
        assert (ours.box_size_px, ours.padding) == (theirs.box_size_px, theirs.padding) == (N, 2)
        assert torch.equal(ours.sums, theirs.sums)


def step(result: RefinementState, runs: list[str]) -> Step:
    runs.append("run")
    yield Progress("half-set refinement", 1, 1)
    return result


@pytest.mark.parametrize("is_consensus", [True, False])
@pytest.mark.parametrize("with_sums", [True, False])
def test_a_step_is_run_once(tmp_path: Path, generator: torch.Generator, with_sums: bool, is_consensus: bool) -> None:
    expected, runs = state(generator, with_sums=with_sums, is_consensus=is_consensus), list[str]()
    for resume, is_run in ((False, True), (True, False), (False, True)):
        runs.clear()
        checkpoints = Checkpoints(tmp_path / "checkpoints", COUNT, CPU, resume)
        events, found = events_and_result(checkpoints.run("half_sets", step(expected, runs)))
        assert runs == ["run"] * is_run
        (event,) = events
        assert event == (
            Progress("half-set refinement", 1, 1) if is_run else Note("Resumed from checkpoint half_sets.")
        )
        assert_same(found, expected)
    Checkpoints(tmp_path / "checkpoints", COUNT, CPU, True).clear()
    assert not (tmp_path / "checkpoints").exists()


def test_a_step_of_several_classes_is_restored_bit_by_bit(tmp_path: Path, generator: torch.Generator) -> None:
    maps = (state(generator, with_sums=True), state(generator, is_consensus=True))
    best = BestPoses(*(torch.randn(COUNT, 2, *shape, generator=generator) for shape in ((3, 3), (2,), ())))
    expected = ClassesState(maps, maps[0].particles, torch.rand(COUNT, 2, generator=generator), best)
    for resume in (False, True):
        events, found = events_and_result(
            Checkpoints(tmp_path, COUNT, CPU, resume).run("classes_0", classes_step(expected))
        )
        assert events == ([Note("Resumed from checkpoint classes_0.")] if resume else [])
        for ours, theirs in zip(found.maps, expected.maps, strict=True):
            assert_same(ours, replace(theirs, particles=expected.particles) if resume else theirs)
        assert torch.equal(found.probability, expected.probability)
        for ours, theirs in zip(found.best.tensors(), expected.best.tensors(), strict=True):
            assert torch.equal(ours, theirs)


def classes_step(result: ClassesState) -> Step[ClassesState]:
    yield from ()
    return result


def test_checkpoints_that_do_not_fit(tmp_path: Path, generator: torch.Generator) -> None:
    expected, runs = state(generator), list[str]()
    events_and_result(Checkpoints(tmp_path, COUNT, CPU, False).run("half_sets", step(expected, runs)))
    with pytest.raises(CheckpointError, match=r"half_sets\.pt is of 6 particles, there are 7 now"):
        events_and_result(Checkpoints(tmp_path, 7, CPU, True).run("half_sets", step(expected, runs)))
    torch.save({"count": COUNT}, tmp_path / "half_sets.pt")
    with pytest.raises(CheckpointError, match="does not hold a step"):
        events_and_result(Checkpoints(tmp_path, COUNT, CPU, True).run("half_sets", step(expected, runs)))
    (tmp_path / "half_sets.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        events_and_result(Checkpoints(tmp_path, COUNT, CPU, True).run("half_sets", step(expected, runs)))


def test_a_step_that_is_not_saved(generator: torch.Generator) -> None:
    expected = state(generator)
    assert events_and_result(no_checkpoints("half_sets", step(expected, [])))[1] is expected


def over_all_coefficients(sums: torch.Tensor) -> torch.Tensor:
    """Sums of each Friedel pair, shared by both coefficients; the plane x = 0 holds both."""
    full = torch.nn.functional.pad(sums[:, :-1, :-1, :-1], (16, 0))
    full[..., 17:] /= 2
    full[:, 1:, 1:, 1:16] = full[:, 1:, 1:, 17:].flip((1, 2, 3)) * torch.tensor([1, -1, 1])[:, None, None, None]
    return full


def in_layout_of_version_0_1(found: RefinementState) -> dict[str, Any]:
    """A pair of maps, the same twice where the half sets shared one; nothing says which. Sums of all coefficients."""
    sums = found.sums and tuple(
        (part.box_size_px, part.padding, over_all_coefficients(part.sums)) for part in found.sums
    )
    return {
        "count": len(found.half_set),
        "maps": (found.reference.of_half(1), found.reference.of_half(2)),
        "half_set": found.half_set,
        "rotations": found.poses.rotations,
        "shifts_px": found.poses.shifts_px,
        "confidence": found.particles.confidence,
        "log_evidence": found.particles.log_evidence,
        "fsc": found.fsc,
        "radius": found.radius,
        "iteration": found.iteration,
        "sums": sums,
    }


@pytest.mark.parametrize(("name", "older", "is_consensus"), [(name, *older) for name, older in OLDER_NAMES.items()])
def test_checkpoints_of_version_0_1_are_read(
    tmp_path: Path, generator: torch.Generator, name: str, older: str, is_consensus: bool
) -> None:
    expected, runs = state(generator, with_sums=True, is_consensus=is_consensus), list[str]()
    torch.save(in_layout_of_version_0_1(expected), tmp_path / f"{older}.pt")
    events, found = events_and_result(Checkpoints(tmp_path, COUNT, CPU, True).run(name, step(expected, runs)))
    assert (events, runs) == ([Note(f"Resumed from checkpoint {name}.")], [])
    assert_same(found, expected)
    _, anew = events_and_result(
        Checkpoints(tmp_path, COUNT, CPU, False).run(name, step(replace(expected, iteration=4), runs))
    )
    assert (runs, anew.iteration) == (["run"], 4), "a new run reads no checkpoint"
    assert events_and_result(Checkpoints(tmp_path, COUNT, CPU, True).run(name, step(expected, runs)))[1].iteration == 4
    assert {path.stem for path in tmp_path.iterdir()} == {name, older}, "today's name is preferred"


def test_each_step_has_one_older_name(tmp_path: Path, generator: torch.Generator) -> None:
    """No step takes the checkpoint of another."""
    expected = state(generator)
    for older, is_consensus in OLDER_NAMES.values():
        found = state(generator, is_consensus=is_consensus)
        torch.save(in_layout_of_version_0_1(found), tmp_path / f"{older}.pt")
    for name in ("initial_model_1", "initial_model_33", "consensus_1", "half_sets_0", "finals"):
        runs: list[str] = []
        events_and_result(Checkpoints(tmp_path, COUNT, CPU, True).run(name, step(expected, runs)))
        assert runs == ["run"], name


@pytest.mark.parametrize("is_older", [False, True])
def test_a_run_is_resumed_with_its_own_settings(tmp_path: Path, is_older: bool) -> None:
    """Whatever the version that recorded them; where and how often things are done may change."""

    def config(**changes: Any) -> ReconstructConfig:
        return ReconstructConfig.model_validate({"particles": "a.star", "output": tmp_path} | changes)

    require_same_settings(config())  # no record yet
    recorded = config(search={"consensus": {"shells": [5, 6]}}).model_dump(mode="json")
    write_json(tmp_path / "job.json", {"settings": with_older_keys(recorded) if is_older else recorded})
    same = {"consensus": {"shells": (5, 6)}}
    require_same_settings(config(search=same))
    newer = json.loads(json.dumps(recorded))
    del newer["search"]["classes"]  # a setting that the version of the record did not have
    (tmp_path / "older").mkdir()
    write_json(tmp_path / "older" / "job.json", {"settings": newer})
    require_same_settings(config(search=same, output=tmp_path / "older"))
    with pytest.raises(ConfigError, match=r"search\.classes was 1, and is now 2"):
        require_same_settings(config(search=same | {"classes": 2}, output=tmp_path / "older"))
    require_same_settings(
        config(search=same, device="cuda:0", threads=3, particles="b.star", training={"checkpoint_seconds": 9})
    )
    with pytest.raises(ConfigError, match=r"job\.json: search\.consensus\.shells was \[5, 6\], and is now \[5\]"):
        require_same_settings(config(search={"consensus": {"shells": (5,)}}))
    with pytest.raises(ConfigError, match=r"job\.json: seed was 0, and is now 1"):
        require_same_settings(config(search=same, seed=1))


def test_a_decision_holds_for_the_resumed_run_and_no_longer(tmp_path: Path) -> None:
    numbers = iter(range(10))

    def settled(*, resume: bool) -> tuple[list[object], float]:
        checkpoints = Checkpoints(tmp_path / "steps", COUNT, CPU, resume)
        assert checkpoints.has("shell") is (resume and (tmp_path / "steps" / "shell.pt").is_file())
        return events_and_result(decide(checkpoints.run, "shell", lambda: float(next(numbers))))

    assert settled(resume=True) == ([], 0.0)
    assert settled(resume=True) == ([], 0.0)
    assert settled(resume=False) == ([], 1.0)
    assert settled(resume=True) == ([], 1.0)
    assert events_and_result(decide(no_checkpoints, "shell", lambda: 7.0))[1] == 7.0
