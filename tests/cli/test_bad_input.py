"""Bad input through the command line: one clear message, the agreed exit code, and nothing half-written."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from cryoeq.cli.main import run

COUNT, BOX, ANGPIX = 24, 16, 6.0
COLUMNS = {
    "rlnImageName": "{row:06d}@particles.mrcs",
    "rlnOpticsGroup": "1",
    "rlnDefocusU": "15000.0",
    "rlnDefocusV": "14800.0",
    "rlnDefocusAngle": "30.0",
    "rlnAngleRot": "{angle}",
    "rlnAngleTilt": "{tilt}",
    "rlnAnglePsi": "{angle}",
    "rlnOriginXAngst": "0.0",
    "rlnOriginYAngst": "0.0",
    "rlnRandomSubset": "{subset}",
}
OPTICS = {
    "rlnOpticsGroup": "1",
    "rlnOpticsGroupName": "one",
    "rlnVoltage": "300.0",
    "rlnSphericalAberration": "2.7",
    "rlnAmplitudeContrast": "0.1",
    "rlnImagePixelSize": str(ANGPIX),
    "rlnImageSize": str(BOX),
    "rlnImageDimensionality": "2",
}


def block(name: str, rows: list[dict[str, str]]) -> str:
    lines = [f"data_{name}", "", "loop_", *(f"_{label} #{number}" for number, label in enumerate(rows[0], 1))]
    return "\n".join([*lines, *(" ".join(row.values()) for row in rows), "", ""])


def particle_rows() -> list[dict[str, str]]:
    values = [
        {"row": row, "angle": 37.0 * row % 360, "tilt": 53.0 * row % 180, "subset": 1 + row % 2} for row in range(1, 25)
    ]
    return [{label: text.format(**value) for label, text in COLUMNS.items()} for value in values]


def write_star(folder: Path, rows: list[dict[str, str]], optics: dict[str, str] = OPTICS) -> Path:
    path = folder / "particles.star"
    path.write_text(block("optics", [optics]) + block("particles", rows))
    return path


def write_stack(path: Path, count: int = COUNT, box: int = BOX) -> None:
    images = np.random.default_rng(0).normal(size=(count, box, box)).astype(np.float32)
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(images)
        file.set_image_stack()
        file.voxel_size = ANGPIX


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small stack that is in order, with poses."""
    write_stack(tmp_path / "particles.mrcs")
    write_star(tmp_path, particle_rows())
    return tmp_path


@pytest.fixture
def fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Reconstruct, see it fail with this code, give the message."""

    def reconstruct(code: int, *options: str) -> str:
        output = ["-o", str(folder / "out")] if "-o" not in options else []
        arguments = [
            "reconstruct",
            str(folder / "particles.star"),
            *output,
            "--pose-inference",
            "known",
            "--device",
            "cpu",
        ]
        assert run([*arguments, *options]) == code
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("cryoeq: ")
        assert not (folder / "out" / "run_class001.mrc").exists()
        return message

    return reconstruct


def test_what_is_in_order_works(folder: Path) -> None:
    assert (
        run(["reconstruct", str(folder / "particles.star"), "-o", str(folder / "out"), "--pose-inference", "known"])
        == 0
    )
    assert (folder / "out" / "run_class001.mrc").is_file()


def test_a_missing_column(folder: Path, fails: Callable[..., str]) -> None:
    rows = [{label: text for label, text in row.items() if label != "rlnDefocusU"} for row in particle_rows()]
    write_star(folder, rows)
    message = fails(3)
    assert "rlnDefocusU" in message
    assert "particles.star" in message
    assert "--no-ctf" in message


def test_a_value_that_is_no_number(folder: Path, fails: Callable[..., str]) -> None:
    rows = particle_rows()
    rows[11]["rlnDefocusV"] = "deep"
    write_star(folder, rows)
    message = fails(3)
    assert "rlnDefocusV" in message
    assert "row 12" in message
    assert "deep" in message


def test_a_truncated_stack(folder: Path, fails: Callable[..., str]) -> None:
    stack = folder / "particles.mrcs"
    stack.write_bytes(stack.read_bytes()[:-5000])
    assert "particles.mrcs" in fails(3)


def test_a_stack_that_is_no_mrc_file(folder: Path, fails: Callable[..., str]) -> None:
    (folder / "particles.mrcs").write_bytes(b"GIF89a" + bytes(4000))
    assert "particles.mrcs" in fails(3)


def test_a_missing_stack(folder: Path, fails: Callable[..., str]) -> None:
    (folder / "particles.mrcs").unlink()
    message = fails(3)
    assert "particles.mrcs" in message
    assert "--datadir" in message


def test_an_image_index_beyond_the_stack(folder: Path, fails: Callable[..., str]) -> None:
    write_stack(folder / "particles.mrcs", COUNT - 1)
    message = fails(3)
    assert "24" in message
    assert "23" in message


def test_image_sizes_that_differ(folder: Path, fails: Callable[..., str]) -> None:
    write_stack(folder / "others.mrcs", box=2 * BOX)
    rows = particle_rows()
    rows[3]["rlnImageName"] = "000001@others.mrcs"
    write_star(folder, rows)
    message = fails(3)
    assert "16" in message
    assert "32" in message


@pytest.mark.parametrize("box", [17, 4])
def test_a_box_that_is_odd_or_tiny(folder: Path, fails: Callable[..., str], box: int) -> None:
    write_stack(folder / "particles.mrcs", box=box)
    write_star(folder, particle_rows(), OPTICS | {"rlnImageSize": str(box)})
    assert f"{box} px" in fails(3)


def test_a_header_without_its_stamp_is_read_with_one_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack = folder / "particles.mrcs"
    content = bytearray(stack.read_bytes())
    content[208:212] = bytes(4)
    stack.write_bytes(content)
    test_what_is_in_order_works(folder)
    shown = capsys.readouterr().err
    assert len([line for line in shown.splitlines() if line.startswith("Warning") and "MAP" in line]) == 1


def test_nan_pixels(folder: Path, fails: Callable[..., str]) -> None:
    with mrcfile.open(folder / "particles.mrcs", mode="r+") as file:
        file.data[6, 3, 3:5] = np.nan
    message = fails(3)
    assert "2 " in message
    assert "image 7" in message or "000007@" in message


@pytest.mark.parametrize("pixel_size", [None, "0.0"])
def test_a_pixel_size_that_is_missing_or_zero(folder: Path, fails: Callable[..., str], pixel_size: str | None) -> None:
    optics = {label: text for label, text in OPTICS.items() if label != "rlnImagePixelSize"}
    write_star(folder, particle_rows(), optics if pixel_size is None else OPTICS | {"rlnImagePixelSize": pixel_size})
    with mrcfile.open(folder / "particles.mrcs", mode="r+") as file:
        file.voxel_size = 0.0
    message = fails(3)
    assert "pixel size" in message.lower()
    assert "--angpix" in message


def test_an_unknown_setting(fails: Callable[..., str]) -> None:
    message = fails(2, "--set", "encoder.gruop=so2")
    assert "encoder.gruop" in message
    assert "encoder.group" in message


def test_a_folder_that_holds_another_run(folder: Path, fails: Callable[..., str]) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "job.json").write_text("{}")
    message = fails(2)
    assert "holds another run" in message
    assert [path.name for path in (folder / "out").iterdir()] == ["job.json"]


def test_a_folder_that_cannot_be_made(folder: Path, fails: Callable[..., str]) -> None:
    assert "particles.star" in fails(2, "-o", str(folder / "particles.star" / "out"))


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = fails(2, "--device", "cuda")
    assert "--device cuda" in message
    assert "cryoeq doctor" in message


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    mount = shutil.which("mount")
    place = tmp_path / "disk"
    place.mkdir()
    command = [str(mount), "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up(tiny_disk: Path, fails: Callable[..., str]) -> None:
    message = fails(2, "-o", str(tiny_disk / "out"))
    assert "disk is full" in message
    assert "-o" in message
    assert not [path for path in (tiny_disk / "out").iterdir() if "tmp" in path.name]


def test_a_model_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.pdb").write_text("nothing of the kind\n")
    assert run(["simulate", str(tmp_path / "model.pdb"), "-o", str(tmp_path / "out")]) == 3
    assert "model.pdb" in capsys.readouterr().err


def test_maps_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, box in (("a.mrc", 16), ("b.mrc", 18)):
        with mrcfile.new(tmp_path / name) as file:
            file.set_data(np.random.default_rng(0).normal(size=(box, box, box)).astype(np.float32))
            file.voxel_size = ANGPIX
    assert run(["fsc", str(tmp_path / "a.mrc"), str(tmp_path / "b.mrc")]) == 3
    message = capsys.readouterr().err
    assert "a.mrc" in message or "16" in message


def test_poses_of_other_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = folder / "other"
    other.mkdir()
    rows = particle_rows()
    rows[4]["rlnImageName"] = "000099@elsewhere.mrcs"
    write_star(other, rows)
    assert run(["evaluate", str(other / "particles.star"), str(folder / "particles.star")]) == 3
    assert "000099@elsewhere.mrcs" in capsys.readouterr().err
