"""The study of groups: images turned about the right pixel without changing their noise, and runs that resume."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cryoeq.equivariance.actions import transform_images
from cryoeq.geometry.fourier import HalfPlane

FOLDER = Path(__file__).parent
N = 32


@pytest.fixture
def view_scene(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    import view_scene

    yield view_scene
    sys.modules.pop("view_scene", None)


@pytest.fixture
def blobs() -> Tensor:
    """Two smooth blobs off the centre, far from the edge."""
    axis = torch.arange(N) - N // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    first, second = ((x - 4) ** 2 / 10 + (y - 1) ** 2 / 6, (x + 3) ** 2 / 6 + (y - 4) ** 2 / 8)
    return (-first).exp() + 0.5 * (-second).exp()


def element(angle_rad: float, *, mirrored: bool) -> Tensor:
    cos, sin = math.cos(angle_rad), math.sin(angle_rad)
    turn = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    return turn @ torch.diag(torch.tensor([-1.0 if mirrored else 1.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("mirrored", [False, True], ids=["", "mirrored"])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270, 360, -90])
def test_quarter_turns_move_pixels(
    view_scene: Any, degrees: int, mirrored: bool, generator: torch.Generator
) -> None:  # fmt: skip
    images = torch.randn(3, N, N, generator=generator)
    found = view_scene.turned(images, torch.full((3,), math.radians(degrees)), torch.full((3,), mirrored))
    expected = transform_images(images, element(math.radians(degrees), mirrored=mirrored).round())
    torch.testing.assert_close(found[:, 1:, 1:], expected[:, 1:, 1:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("mirrored", [False, True], ids=["", "mirrored"])
@pytest.mark.parametrize("degrees", [1, 30, 44, 46, 100, 200, 301])
def test_other_angles_are_the_rotation_about_the_same_pixel(
    view_scene: Any, blobs: Tensor, degrees: int, mirrored: bool
) -> None:
    found = view_scene.turned(blobs[None], torch.tensor([math.radians(degrees)]), torch.tensor([mirrored]))
    expected = transform_images(blobs[None], element(math.radians(degrees), mirrored=mirrored))
    assert float((found - expected).abs().max()) < 0.02  # bicubic interpolation is off by as much
    wrong = view_scene.turned(blobs[None], torch.tensor([math.radians(degrees + 3)]), torch.tensor([mirrored]))
    assert float((wrong - expected).abs().max()) > 0.03


def test_turning_back_gives_the_image_and_noise_stays_white(view_scene: Any, generator: torch.Generator) -> None:
    plane = HalfPlane.up_to(N, N / 2 - 1)
    white = plane.images(plane.transform(torch.randn(400, N, N, generator=generator)))
    noise = white * view_scene.soft_circle(N)
    angle, plain = 6 * torch.rand(400, generator=generator), torch.zeros(400).bool()
    there = view_scene.turned(noise, angle, plain)
    back = view_scene.turned(there, -angle, plain)
    core = there[:, 9:24, 9:24]
    assert float((core.var() / noise[:, 9:24, 9:24].var() - 1).abs()) < 0.02
    before = noise[:, 9:24, 9:24]
    drift = (core[:, :, 1:] * core[:, :, :-1]).mean() - (before[:, :, 1:] * before[:, :, :-1]).mean()
    assert float((drift / core.var()).abs()) < 0.02
    assert float((back - noise)[:, 9:24, 9:24].std() / core.std()) < 0.1


@pytest.mark.slow
def test_runs_resume_and_others_take_the_time_of_d4(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    import equivariance as study
    from recorded_runs import read_records

    monkeypatch.setattr(study, "STEPS", 40)
    names, path = ("c1", "d4", "c1 in d4's time", "d4 in 8 bits"), tmp_path / "records.json"
    with pytest.raises(ValueError, match="timed by c1 and d4, which are not recorded"):
        study.run_seed("1wcm-32", names[2:], [1000], 100, path)
    study.run_seed("1wcm-32", names, [1000], 100, path)
    records = read_records(path)
    assert [record["mode"] for record in records] == ["likelihood", *names]
    plain, of_d4, timed, integers = records[1:]
    assert timed["steps"] == max(20, round(40 * of_d4["cpu_s"] / plain["cpu_s"]))
    assert records[0]["scores"]["recall_8"] > 0.99
    assert integers["scores"]["recall_8"] == pytest.approx(of_d4["scores"]["recall_8"], abs=0.03)
    study.run_seed("1wcm-32", names, [1000], 100, path)
    assert read_records(path) == records
    text = study.table(read_records(path), ("1wcm-32",), names)
    assert "| 1wcm-32 | c1 in d4's time | 1,000 | " in text
    study.draw_figure(tmp_path / "figure.png", records, "1wcm-32")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
