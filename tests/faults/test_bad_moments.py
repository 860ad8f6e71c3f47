"""Files that vanish and numbers that burst while a run is under way."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.domain.events import Progress
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json
from cryoeq.pipelines.reconstruct import amortized, reconstruct
from cryoeq.training.autoencoder import loop

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")

Damage = Callable[[Path], None]


@pytest.fixture
def command(tmp_path: Path, tiny_particles: Path, tiny_training: tuple[str, ...]) -> list[str]:
    """A training on a copy of the particles."""
    copy = shutil.copytree(tiny_particles, tmp_path / "particles")
    return ["reconstruct", str(copy / "particles.star"), "-o", str(tmp_path / "run"), *tiny_training]


def stored_step(folder: Path) -> int:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]
    assert all(bool(torch.isfinite(values).all()) for values in state["encoder"].values())
    step = state["step"]
    assert isinstance(step, int)
    return step


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1024 + 30 * 16 * 16 * 4 + 100)


@pytest.mark.parametrize(
    ("damage", "said"), [(Path.unlink, "No such file"), (cut, "the file ends before it")], ids=["vanished", "cut short"]
)
def test_a_stack_that_is_damaged_during_a_run(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    damage: Damage, said: str,
) -> None:  # fmt: skip
    build, fit = reconstruct.build_dataset, amortized.fit

    def streamed(*arguments: Any, **options: Any) -> object:
        return replace(build(*arguments, **options), cache=None)

    def damaged(*arguments: Any) -> Iterator[Progress]:
        for event in fit(*arguments):
            if event.done == 3:
                damage(tmp_path / "particles" / "particles.mrcs")
            yield event

    monkeypatch.setattr(reconstruct, "build_dataset", streamed)
    monkeypatch.setattr(amortized, "fit", damaged)
    assert run(command) == 3
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "particles.mrcs: image " in message
    assert said in message
    assert "--resume" in message
    assert 3 <= stored_step(tmp_path / "run") <= 6  # the next pass may have been read before
    assert read_json(tmp_path / "run" / "job.json")["status"] == "failed"


def test_a_loss_that_is_no_number(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learn = loop.autoencoding_loss
    batches: list[list[int]] = []

    def spoilt(state: Any, seen: Any, *arguments: Any, **options: Any) -> object:
        batches.append(seen.indices.tolist())
        outcome = learn(state, seen, *arguments, **options)
        return replace(outcome, loss=outcome.loss * torch.nan) if state.step == 4 else outcome

    monkeypatch.setattr(loop, "autoencoding_loss", spoilt)
    assert run(command) == 4
    assert "training step 4: the loss is nan" in capsys.readouterr().err
    folder = tmp_path / "run"
    assert stored_step(folder) == 4
    names = read_star(tmp_path / "particles" / "particles.star").particles["rlnImageName"]
    kept = read_star(folder / "diverged.star")
    assert kept.particles["rlnImageName"].tolist() == names[batches[-1]].tolist()
    assert kept.optics is not None
    job = read_json(folder / "job.json")
    assert job["status"] == "failed"
    assert "the loss is nan" in job["results"]["error"]
    assert any("diverged.star" in note["text"] for note in job["notes"])


def test_parameters_that_are_no_numbers_are_never_stored(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step whose loss was finite may still have spoilt them."""
    descend = loop._descend

    def spoil(state: Any, *arguments: Any) -> None:
        descend(state, *arguments)
        if state.step == 4:
            with torch.no_grad():
                next(iter(state.encoder.parameters())).fill_(torch.inf)

    monkeypatch.setattr(loop, "_descend", spoil)
    assert run(command) == 4
    assert stored_step(tmp_path / "run") == 4
