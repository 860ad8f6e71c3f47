"""``cryoeq evaluate``: star files in any order, figures, picture, and clear refusals."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.config.evaluate import EvaluateConfig
from cryoeq.domain.events import Note, Report
from cryoeq.domain.pose import Poses
from cryoeq.geometry.so3 import random_rotations, rotation_from_vector
from cryoeq.io.particles import write_particle_star
from cryoeq.io.star import StarTable, read_star
from cryoeq.io.text import read_json
from cryoeq.pipelines.evaluate import evaluate

N = 200
PNG = b"\x89PNG\r\n\x1a\n"


def write_star(path: Path, poses: Poses, names: list[str] | None, angpix: float = 2.0) -> Path:
    optics = {"rlnOpticsGroup": np.array(["1"]), "rlnImagePixelSize": np.array([f"{angpix}"])}
    columns = {"rlnDefocusU": np.full(len(poses), "15000.0")}
    if names is not None:
        columns["rlnImageName"] = np.array(names)
    write_particle_star(path, StarTable(optics, columns), poses)
    return path


@pytest.fixture
def names() -> list[str]:
    return [f"{row + 1:06d}@particles.mrcs" for row in range(N)]


@pytest.fixture
def truth() -> Poses:
    generator = torch.Generator().manual_seed(1)
    return Poses(random_rotations(N, generator), torch.randn(N, 2, generator=generator) * 4)


@pytest.fixture
def predicted(truth: Poses) -> Poses:
    """Errors of 4 degrees per axis and 1 Angstrom, the other hand, another frame; the last 20 wrong."""
    generator = torch.Generator().manual_seed(2)
    noise = rotation_from_vector(torch.randn(N, 3, generator=generator) * math.radians(4))
    rotations = noise @ truth.rotations @ random_rotations(1, generator)[0].T
    shifts = truth.shifts_angstrom + (rotations @ torch.tensor([9.0, -5.0, 7.0]))[:, :2]
    rotations[-20:] = random_rotations(20, generator)
    hand = torch.tensor([1.0, 1.0, -1.0])
    return Poses(rotations * hand[:, None] * hand, shifts + torch.randn(N, 2, generator=generator))


def test_rows_are_matched_by_image_name(tmp_path: Path, predicted: Poses, truth: Poses, names: list[str]) -> None:
    """Zeros before the number and ``./`` mean nothing."""
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    renamed = [f"{row + 1}@./particles.mrcs" if row % 2 else names[row] for row in order.tolist()]
    ours = write_star(tmp_path / "pred.star", predicted[order], renamed)
    theirs = write_star(tmp_path / "truth.star", truth, names)
    out, extra = tmp_path / "new" / "folder", tmp_path / "figures.json"
    config = EvaluateConfig(predicted=ours, truth=theirs, output=out, json_file=extra, device="cpu")
    events = list(evaluate(config))
    (report,) = (event for event in events if isinstance(event, Report))
    assert "other one" in report.rows["Hand"]
    assert "< 30°" in report.rows["Rotation"]
    assert not [event for event in events if isinstance(event, Note) and event.level == "warning"]
    figures = read_json(out / "pose_errors.json")
    assert figures == read_json(extra)
    assert figures["hand"] == "mirrored"
    assert figures["images"] == N
    assert figures["rotation_deg"]["median"] == pytest.approx(6.8, abs=0.8)
    assert figures["rotation_deg"]["share_below_30"] == pytest.approx(0.9, abs=0.01)
    assert figures["shift_px"]["median"] == pytest.approx(figures["shift_angstrom"]["median"] / 2)
    assert figures["shift_angstrom"]["median"] == pytest.approx(1.25, abs=0.3)
    assert (out / "pose_errors.png").read_bytes().startswith(PNG)


def test_without_names_rows_are_matched_by_position(tmp_path: Path, truth: Poses) -> None:
    ours, theirs = (write_star(tmp_path / f"{name}.star", truth, None) for name in ("pred", "truth"))
    json_file = tmp_path / "figures.json"
    list(evaluate(EvaluateConfig(predicted=ours, truth=theirs, json_file=json_file, device="cpu")))
    assert read_json(json_file)["rotation_deg"]["percentile_90"] < 0.01


def test_images_without_a_prediction_are_counted(
    tmp_path: Path, predicted: Poses, truth: Poses, names: list[str]
) -> None:
    ours = write_star(tmp_path / "pred.star", predicted[:150], names[:150])
    theirs = write_star(tmp_path / "truth.star", truth, names)
    events = list(evaluate(EvaluateConfig(predicted=ours, truth=theirs, device="cpu")))
    assert any(isinstance(event, Note) and "50 of 200 images" in event.text for event in events)


def with_classes(path: Path, classes: torch.Tensor, *, is_simulated: bool) -> None:
    star = read_star(path)
    columns = {"rlnClassNumber": classes.numpy().astype(np.str_)}
    if is_simulated:
        columns["cryoeqJunkKind"] = np.where(classes.numpy() == 0, "empty", "none")
    write_particle_star(path, star, None, extra_columns=columns)


def notes_and_figures(config: EvaluateConfig) -> tuple[str, dict[str, Any]]:
    assert config.json_file is not None
    events = list(evaluate(config))
    return " ".join(event.text for event in events if isinstance(event, Note)), read_json(config.json_file)


def test_junk_is_not_scored(tmp_path: Path, predicted: Poses, truth: Poses, names: list[str]) -> None:
    """The last 20 poses are wrong; as junk they do not count, in whatever order the rows are."""
    order = torch.randperm(N, generator=torch.Generator().manual_seed(4))
    ours = write_star(tmp_path / "pred.star", predicted[order], [names[row] for row in order.tolist()])
    theirs = write_star(tmp_path / "truth.star", truth, names)
    with_classes(theirs, (torch.arange(N) < N - 20).long(), is_simulated=True)
    config = EvaluateConfig(predicted=ours, truth=theirs, json_file=tmp_path / "figures.json", device="cpu")
    said, figures = notes_and_figures(config)
    assert f"20 of {N} images are no particles" in said
    assert figures["images"] == N - 20
    assert figures["rotation_deg"]["share_below_30"] == 1.0


def test_each_molecule_has_its_frame_and_the_one_in_the_map_is_scored(
    tmp_path: Path, predicted: Poses, truth: Poses, names: list[str]
) -> None:
    """The first half is of another molecule, whose poses the map cannot have."""
    rotations = predicted.rotations.clone()
    rotations[: N // 2] = random_rotations(N // 2, torch.Generator().manual_seed(6))
    ours = write_star(tmp_path / "pred.star", Poses(rotations, predicted.shifts_angstrom), names)
    theirs = write_star(tmp_path / "truth.star", truth, names)
    config = EvaluateConfig(predicted=ours, truth=theirs, json_file=tmp_path / "figures.json", device="cpu")
    classes = (torch.arange(N) >= N // 2).long() + 1
    with_classes(theirs, classes, is_simulated=True)
    said, figures = notes_and_figures(config)
    assert "The map shows class 2" in said
    assert figures["images"] == N // 2
    assert figures["rotation_deg"]["median"] < 10
    with_classes(theirs, classes, is_simulated=False)  # of a 2D classification, say, which means nothing here
    star = read_star(theirs)
    bare = {name: values for name, values in star.particles.items() if name != "cryoeqJunkKind"}
    write_particle_star(theirs, StarTable(star.optics, bare), None)
    assert notes_and_figures(config)[1]["images"] == N


def test_random_poses_raise_a_doubt(tmp_path: Path, truth: Poses, names: list[str]) -> None:
    random = Poses(random_rotations(N, torch.Generator().manual_seed(8)), truth.shifts_angstrom)
    ours = write_star(tmp_path / "pred.star", random, names)
    theirs = write_star(tmp_path / "truth.star", truth, names)
    events = list(evaluate(EvaluateConfig(predicted=ours, truth=theirs, device="cpu")))
    assert any(isinstance(event, Note) and event.level == "warning" and "wrong" in event.text for event in events)


def test_the_command_line(
    tmp_path: Path, predicted: Poses, truth: Poses, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ours = write_star(tmp_path / "pred.star", predicted, names)
    theirs = write_star(tmp_path / "truth.star", truth, names)
    plot = tmp_path / "errors.png"
    assert run(["evaluate", str(ours), str(theirs), "--plot", str(plot), "--device", "cpu", "--sym", "c1"]) == 0
    assert plot.is_file()
    assert "median" in capsys.readouterr().out
    assert run(["evaluate"]) == 2
    assert "nothing to compare. PRED.star and TRUTH.star are compared" in capsys.readouterr().err
    assert run(["evaluate", str(ours)]) == 2
    assert f"{ours} alone" in capsys.readouterr().err
    assert run(["evaluate", str(ours), str(theirs), "--sym", "Q7", "--device", "cpu"]) == 2
    assert "--sym is 'Q7'" in capsys.readouterr().err


def test_bad_input_is_named(
    tmp_path: Path, predicted: Poses, truth: Poses, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = write_star(tmp_path / "truth.star", truth, names)

    def message(star: Path) -> str:
        assert run(["evaluate", str(star), str(theirs), "--device", "cpu"]) == 3
        return capsys.readouterr().err

    strange = write_star(tmp_path / "strange.star", predicted, [*names[:-1], "000001@others.mrcs"])
    assert "row 200: image 000001@others.mrcs is not in" in message(strange)
    twice = write_star(tmp_path / "twice.star", predicted, [*names[:-1], names[0]])
    assert "row 1: image 000001@particles.mrcs appears twice" in message(twice)
    unnamed = write_star(tmp_path / "unnamed.star", predicted[:-5], None)
    assert "has 195 rows" in message(unnamed)
    assert "does not exist" in message(tmp_path / "nowhere.star")


@pytest.mark.gpu
def test_cpu_and_gpu_agree(tmp_path: Path, predicted: Poses, truth: Poses, names: list[str]) -> None:
    ours = write_star(tmp_path / "pred.star", predicted, names)
    theirs = write_star(tmp_path / "truth.star", truth, names)
    figures = []
    for device in ("cpu", "cuda:0"):
        json_file = tmp_path / f"{device[:3]}.json"
        list(evaluate(EvaluateConfig(predicted=ours, truth=theirs, json_file=json_file, device=device)))
        figures.append(read_json(json_file))
    assert figures[0]["hand"] == figures[1]["hand"]
    for kind in ("rotation_deg", "view_direction_deg", "in_plane_deg", "shift_px"):
        assert figures[0][kind] == pytest.approx(figures[1][kind], abs=1e-3)


@pytest.mark.parametrize(("angpix", "is_doubted"), [(2.005, False), (2.1, True)])
def test_pixel_sizes_that_differ_are_doubted(
    tmp_path: Path, truth: Poses, names: list[str], angpix: float, is_doubted: bool
) -> None:
    paths = write_star(tmp_path / "p.star", truth, names, angpix), write_star(tmp_path / "t.star", truth, names)
    config = EvaluateConfig(predicted=paths[0], truth=paths[1], device="cpu")
    said = [event.text for event in evaluate(config) if isinstance(event, Note) and event.level == "warning"]
    assert any("differ: 2.1 and 2 Å" in text for text in said) == is_doubted
