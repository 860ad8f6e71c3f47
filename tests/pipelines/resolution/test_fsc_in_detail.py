"""``cryoeq fsc --directional --local-resolution``: files, figures, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.domain.volume import Volume
from cryoeq.io.map_frame import read_map_frame
from cryoeq.io.mrc import read_map, write_map
from cryoeq.io.text import read_json

N, PIXEL, CORNER = 36, 4.0, (8.0, 0.0, -4.0)
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def halves(tmp_path: Path, generator: torch.Generator) -> list[str]:
    """Two noisy maps of a blurred random structure that lacks a cone along z, and a mask."""
    k = torch.fft.fftfreq(N, 1 / N)
    radii = (k[:, None, None] ** 2 + k[:, None] ** 2 + k[: N // 2 + 1] ** 2).sqrt()
    reached = (k[:, None, None].abs() <= 0.34 * radii).float() * torch.exp(-((radii / 12) ** 2))
    signal = torch.fft.irfftn(torch.fft.rfftn(torch.randn(N, N, N, generator=generator)) * reached, s=(N, N, N))
    names = [str(tmp_path / f"half{half}.mrc") for half in (1, 2)]
    for name in names:
        half = Volume(signal + 0.1 * torch.randn(N, N, N, generator=generator), PIXEL)
        write_map(Path(name), half, origin_angstrom=CORNER)
    z = torch.arange(N) - N // 2
    ball = ((14 - (z[:, None, None] ** 2 + z[:, None] ** 2 + z**2).sqrt()) / 4).clamp(0, 1)
    write_map(tmp_path / "mask.mrc", Volume(ball, PIXEL))
    return names


def test_all_files_are_written(halves: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--directional", "--local-resolution", "--device", "cpu", "-o", str(out)]
    assert run(["fsc", *halves, "--mask", str(tmp_path / "mask.mrc"), *options]) == 0
    said = capsys.readouterr()
    assert "cFAR" in said.out
    assert "Local resolution inside the mask" in said.out
    assert "below 0.5: the resolution is anisotropic" in said.err
    figures = read_json(out / "fsc.json")
    assert figures["directional"]["is_anisotropic"]
    assert figures["directional"]["worst_axis"][2] > 0.9
    assert (
        figures["directional"]["resolution_angstrom"]["best"] < figures["directional"]["resolution_angstrom"]["worst"]
    )
    assert len(figures["directional"]["fsc"]["mean"]) == N // 2 + 1
    local, filtered, conical = (
        read_map(out / f"{name}.mrc") for name in ("local_resolution", "local_filtered", "3dfsc")
    )
    for volume in (local, filtered, conical):
        assert (volume.box_size_px, volume.pixel_size_angstrom) == (N, pytest.approx(PIXEL))
    for name in ("local_resolution", "local_filtered"):
        assert read_map_frame(out / f"{name}.mrc").corner_angstrom == CORNER
    mask = read_map(tmp_path / "mask.mrc").values > 0.5
    median = figures["local_resolution"]["resolution_angstrom"]["0.5"]
    assert float(np.median(local.values[mask])) == pytest.approx(median, abs=0.2)
    assert float(conical.values[N // 2, N // 2, N // 2 + 6]) > float(conical.values[N // 2 + 8, N // 2, N // 2]) + 0.2
    assert bool(((local.values == 0) == (filtered.values == 0)).all())
    for name in ("directional_fsc", "directional_resolution", "local_resolution"):
        assert (out / f"{name}.png").read_bytes().startswith(PNG)


def test_directions_need_no_folder(halves: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["fsc", *halves, "--mask", "none", "--directional", "--device", "cpu", "--json", str(tmp_path / "f.json")])
        == 0
    )
    assert "Noise lowers cFAR too" in capsys.readouterr().err
    assert read_json(tmp_path / "f.json")["directional"]["cfar"] < 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.json", "half1.mrc", "half2.mrc", "mask.mrc"]


def test_local_resolution_needs_a_folder_and_room(
    halves: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fsc", *halves, "--local-resolution", "--device", "cpu"]) == 2
    assert "--local-resolution without a folder" in capsys.readouterr().err
    options = ["--local-resolution", "--angpix", "0.5", "--device", "cpu", "-o", str(tmp_path / "out")]
    assert run(["fsc", *halves, *options]) == 3
    assert "a side of 18 Å" in capsys.readouterr().err
