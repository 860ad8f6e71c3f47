"""``cryoeq reconstruct`` without known poses: what it leaves, what it may not know, and how it stops."""

import shutil
from collections.abc import Callable, Generator
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
import yaml

import cryoeq
from cryoeq.cli.main import run
from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.events import Event, Note, Progress, Report
from cryoeq.errors import Terminated
from cryoeq.io.mrc import read_map
from cryoeq.io.star import read_star
from cryoeq.io.text import read_json
from cryoeq.pipelines.reconstruct import amortized
from cryoeq.pipelines.reconstruct import reconstruct as pipeline

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")

FILES = {
    "checkpoint.pt", "command.txt", "config.yaml", "decoder_class001.mrc", "job.json", "progress.csv",
    "projections.png", "report.html", "run.log", "run_class001.mrc", "run_data.star", "run_fsc.png",
    "run_fsc.star", "run_fsc.xml", "run_mask.mrc", "run_postprocess.mrc",
    "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc", "slices.png", "training.png",
}  # fmt: skip
MAPS = sorted(name for name in FILES if name.endswith(".mrc"))
POSES = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"]


@pytest.fixture
def small(tiny_run: Path, tmp_path: Path) -> Callable[..., ReconstructConfig]:
    """The settings of ``tiny_run`` with changes, keys dotted, and a folder of its own."""

    def change(**changes: object) -> ReconstructConfig:
        explicit = {name.replace("__", "."): value for name, value in changes.items()}
        return load_config(
            ReconstructConfig, file=tiny_run / "config.yaml", explicit={"output": tmp_path / "run"} | explicit
        )

    return change


def test_what_is_left(tiny_run: Path) -> None:
    assert {path.name for path in tiny_run.iterdir()} == FILES
    for name in MAPS:
        assert mrcfile.validate(tiny_run / name), name
        volume = read_map(tiny_run / name)
        assert (volume.box_size_px, volume.pixel_size_angstrom) == (16, 5.0)
        assert float(volume.values.std()) > 0


def test_the_star_keeps_every_column_and_row(tiny_run: Path, tiny_particles: Path) -> None:
    before, after = read_star(tiny_particles / "particles.star"), read_star(tiny_run / "run_data.star")
    assert not set(POSES) & before.particles.keys()
    for column, values in before.particles.items():
        assert after.particles[column].tolist() == values.tolist()
    assert set(POSES) <= after.particles.keys()
    confidence = after.floats("rlnMaxValueProbDistribution")
    assert ((confidence >= 0.5) & (confidence <= 1)).all()  # the better one of two hypotheses
    assert sorted(after.particles["rlnRandomSubset"].tolist()) == ["1"] * 24 + ["2"] * 24


def test_the_record(tiny_run: Path, tiny_particles: Path) -> None:
    job = read_json(tiny_run / "job.json")
    assert (job["status"], job["seed"], job["version"]) == ("done", 4, cryoeq.__version__)
    assert set(job["results"]) >= {"explained_variance", "seconds"}
    assert 0 < job["results"]["explained_variance"] < 1
    assert [Path(record["path"]).name for record in job["inputs"]] == ["particles.star", "particles.mrcs"]
    assert yaml.safe_load((tiny_run / "config.yaml").read_text()) == job["settings"]
    log = (tiny_run / "run.log").read_text()
    for said in ("48 particles of 16 px", "Contrast: protein is bright", "training 9/9: loss ", "not gold-standard"):
        assert said in log


def assert_same_maps(folder: Path, expected: Path) -> None:
    for name in MAPS:
        np.testing.assert_array_equal(mrcfile.read(folder / name), mrcfile.read(expected / name), err_msg=name)


def test_the_truth_does_not_leak(
    tmp_path: Path, tiny_run: Path, tiny_particles: Path, tiny_training: tuple[str, ...]
) -> None:
    """Poses and half sets that the star file happens to hold make no difference to inference."""
    truth = read_star(tiny_particles / "truth.star")
    assert {*POSES, "rlnRandomSubset"} <= truth.particles.keys()
    command = ["reconstruct", str(tiny_particles / "truth.star"), "-o", str(tmp_path / "run"), *tiny_training]
    assert run(command) == 0
    assert_same_maps(tmp_path / "run", tiny_run)
    ours, theirs = (read_star(folder / "run_data.star") for folder in (tmp_path / "run", tiny_run))
    for column in (*POSES, "rlnRandomSubset", "rlnMaxValueProbDistribution"):
        assert ours.particles[column].tolist() == theirs.particles[column].tolist()
    assert ours.particles["rlnAngleRot"].tolist() != truth.particles["rlnAngleRot"].tolist()


def test_the_recorded_settings_repeat_the_run(tmp_path: Path, tiny_run: Path, tiny_particles: Path) -> None:
    command = ["reconstruct", str(tiny_particles / "particles.star"), "--config", str(tiny_run / "config.yaml")]
    assert run([*command, "-o", str(tmp_path / "run")]) == 0
    assert_same_maps(tmp_path / "run", tiny_run)


def advance(events: Generator[Event, None, None], steps: int) -> list[Event]:
    past: list[Event] = []
    for event in events:
        past.append(event)
        if isinstance(event, Progress) and event.stage == "training" and event.done == steps:
            return past
    raise AssertionError("the training was shorter")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Terminated])
def test_a_stop_between_two_steps_keeps_them(
    small: Callable[..., ReconstructConfig], tiny_run: Path, stop: type[BaseException]
) -> None:
    """A signal that arrives while the command line draws is thrown into the pipeline."""
    config = small(training__checkpoint_seconds=1000)
    events = pipeline.reconstruct(config)
    assert isinstance(events, Generator)
    advance(events, 7)
    with pytest.raises(stop):
        events.throw(stop)
    assert torch.load(config.output / "checkpoint.pt", weights_only=True)["state"]["step"] == 7
    assert read_json(config.output / "job.json")["status"] == "stopped"
    after = list(pipeline.reconstruct(config, resume=True))
    assert any(isinstance(event, Report) for event in after)
    assert Note("Resumed at step 7.") in after
    assert_same_maps(config.output, tiny_run)


def test_a_stop_before_the_first_step(small: Callable[..., ReconstructConfig], tiny_run: Path) -> None:
    config = small()
    events = pipeline.reconstruct(config)
    assert isinstance(events, Generator)
    next(events)
    with pytest.raises(Terminated):
        events.throw(Terminated())
    assert read_json(config.output / "job.json")["status"] == "stopped"
    list(pipeline.reconstruct(config, resume=True))
    assert_same_maps(config.output, tiny_run)


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, 10), (1e6, 1)])
def test_checkpoints_are_as_frequent_as_configured(
    small: Callable[..., ReconstructConfig], monkeypatch: pytest.MonkeyPatch, seconds: float, expected: int
) -> None:
    """And there is one at the end in any case."""
    saved: list[int] = []
    monkeypatch.setattr(amortized, "save_training_state", lambda _run, _config, state: saved.append(state["step"]))
    events = pipeline.reconstruct(small(training__checkpoint_seconds=seconds))
    for event in events:
        if isinstance(event, Progress) and event.stage == "encoder inference":
            break
    assert len(saved) == expected
    assert saved[-1] == 9


@pytest.mark.parametrize(
    "options",
    [
        ["--set", "decoder.kind=implicit", "--set", "decoder.width=16", "--set", "loss.symmetric=true"],
        ["--no-ctf", "--shift-sigma", "0", "--set", "loss.synthetic_weight=0"],
        ["--invert-data"],
    ],
    ids=["implicit, symmetric", "plain autoencoder", "inverted"],
)
def test_other_ways_to_reconstruct(
    tmp_path: Path, tiny_run: Path, tiny_particles: Path, tiny_training: tuple[str, ...], options: list[str]
) -> None:
    command = ["reconstruct", str(tiny_particles / "particles.star"), "-o", str(tmp_path / "run"), *tiny_training]
    assert run([*command, *options, "--set", "training.epochs=1"]) == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        name for name in FILES if not name.endswith(("png", "html"))
    }
    assert not np.array_equal(*(mrcfile.read(path / "run_class001.mrc") for path in (tmp_path / "run", tiny_run)))
    shifts = read_star(tmp_path / "run" / "run_data.star").floats("rlnOriginXAngst")
    assert ("--shift-sigma" in options) == (not shifts.any())


def test_a_bare_stack(tmp_path: Path, tiny_particles: Path, tiny_training: tuple[str, ...]) -> None:
    stack = shutil.copy(tiny_particles / "particles.mrcs", tmp_path / "bare.mrcs")
    command = ["reconstruct", str(stack), "--angpix", "2.5", "-o", str(tmp_path / "run"), *tiny_training]
    assert run([*command, "--set", "training.epochs=1"]) == 0
    assert read_map(tmp_path / "run" / "run_class001.mrc").pixel_size_angstrom == 2.5
    star = read_star(tmp_path / "run" / "run_data.star")
    assert star.particles["rlnImageName"][-1].startswith("000048@")
    assert "comes without a star file" in (tmp_path / "run" / "run.log").read_text()


def test_poses_inferred_in_a_smaller_box_serve_the_whole(
    tmp_path: Path, tiny_training: tuple[str, ...], tiny_particles: Path
) -> None:
    """Maps are made at the box of the images; shifts are in Angstrom whatever the box."""
    options = ["-n", "24", "--box", "24", "--shift-sigma", "4", "--device", "cpu"]
    assert run(["simulate", str(tiny_particles.parent / "phantom.mrc"), "-o", str(tmp_path / "s"), *options]) == 0
    command = ["reconstruct", str(tmp_path / "s" / "particles.star"), "-o", str(tmp_path / "run"), *tiny_training]
    assert run([*command, "--set", "training.epochs=1", "--box", "16"]) == 0
    assert read_map(tmp_path / "run" / "run_class001.mrc").box_size_px == 24
    decoder = read_map(tmp_path / "run" / "decoder_class001.mrc")
    assert (decoder.box_size_px, decoder.pixel_size_angstrom) == (16, pytest.approx(5.0))


@pytest.mark.gpu
def test_cpu_and_gpu_agree_at_the_start(
    small: Callable[..., ReconstructConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step: later ones drift apart by rounding, and a GPU tells figures every 16 steps alone."""
    monkeypatch.setattr("cryoeq.training.autoencoder.loop.logging_interval", lambda _: 1)
    losses = []
    for device in ("cpu", "cuda:0"):
        events = pipeline.reconstruct(small(device=device, output=tmp_path / device[:3]))
        assert isinstance(events, Generator)
        progress = advance(events, 1)[-1]
        assert isinstance(progress, Progress)
        losses.append(progress.metrics["loss"])
        events.close()
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
