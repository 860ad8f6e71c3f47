"""``cryoeq fsc``: curves as files that RELION and EMDB read, alignment, and clear refusals."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import starfile
import torch
from torch import Tensor

from cryoeq.cli.main import run
from cryoeq.config.fsc import FscConfig
from cryoeq.domain.events import Note, Report
from cryoeq.domain.volume import Volume
from cryoeq.geometry.so3 import random_rotations
from cryoeq.io.map_frame import read_map_frame
from cryoeq.io.mrc import read_map, write_map
from cryoeq.io.text import read_json
from cryoeq.maps.alignment import mirror_map, rotate_map
from cryoeq.pipelines.resolution.fsc import fsc
from cryoeq.simulation.density import sample_atoms
from phantoms import alpha_helices

N, PIXEL = 32, 3.0
PNG = b"\x89PNG\r\n\x1a\n"


def phantom(generator: torch.Generator) -> Tensor:
    places = torch.randn(40, 3, generator=generator).clamp(-1.7, 1.7) * 4.5
    k = torch.arange(N) - N // 2
    lines = [torch.exp(-((k - places[:, axis, None]) ** 2) / (2 * 1.2**2)) for axis in range(3)]
    return torch.einsum("bx,by,bz->zyx", *lines)


@pytest.fixture
def maps(tmp_path: Path, generator: torch.Generator) -> Path:
    """A truth, its two noisy halves and a soft mask."""
    values = phantom(generator)
    for name in ("half1", "half2"):
        noise = torch.randn(values.shape, generator=generator) * 0.3
        write_map(tmp_path / f"{name}.mrc", Volume(values + noise, PIXEL))
    write_map(tmp_path / "truth.mrc", Volume(values, PIXEL))
    radii = sum(
        (axis.float() ** 2 for axis in torch.meshgrid(*[torch.arange(N) - N // 2] * 3, indexing="ij")), torch.zeros(1)
    )
    write_map(tmp_path / "mask.mrc", Volume(((15 - radii.sqrt()) / 4).clamp(0, 1), PIXEL))
    return tmp_path


def test_all_files_agree(maps: Path) -> None:
    out = maps / "out"
    config = FscConfig(
        first=maps / "half1.mrc",
        second=maps / "half2.mrc",
        mask=maps / "mask.mrc",
        postprocess=False,
        output=out,
        device="cpu",
    )
    (report,) = (event for event in fsc(config) if isinstance(event, Report))
    figures = read_json(out / "fsc.json")
    assert set(figures["resolution_angstrom"]) == {"unmasked", "masked", "corrected"}
    assert figures["resolution_angstrom"]["corrected"] < figures["resolution_angstrom_half"]["corrected"]
    resolution = figures["resolution_angstrom"]["corrected"]
    assert report.rows["FSC = 0.143 (half maps), corrected"] == f"{resolution:.2f} Å"
    star = starfile.read(out / "fsc.star", always_dict=True)
    assert float(star["general"]["rlnFinalResolution"]) == pytest.approx(resolution, abs=1e-5)
    table = star["fsc"]
    assert table["rlnSpectralIndex"].tolist() == list(range(N // 2 + 1))
    np.testing.assert_allclose(table["rlnAngstromResolution"][1:], N * PIXEL / np.arange(1, N // 2 + 1), atol=1e-5)
    for label, curve in (
        ("rlnFourierShellCorrelationUnmaskedMaps", "unmasked"),
        ("rlnFourierShellCorrelationMaskedMaps", "masked"),
        ("rlnFourierShellCorrelationCorrected", "corrected"),
        ("rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps", "randomised"),
    ):
        np.testing.assert_allclose(table[label], figures["fsc"][curve], atol=1e-6)
    root = ET.parse(out / "fsc.xml").getroot()
    assert root.attrib == {
        "title": "cryoeq masked-corrected FSC",
        "xaxis": "Resolution (A-1)",
        "yaxis": "Correlation Coefficient",
    }
    x, y = ([float(point.findtext(axis, "")) for point in root] for axis in "xy")
    np.testing.assert_allclose(x[1:], figures["frequency_per_angstrom"][1:], rtol=1e-5)
    np.testing.assert_allclose(y, figures["fsc"]["corrected"], atol=1e-5)
    assert (out / "fsc.png").read_bytes().startswith(PNG)


def test_the_xml_has_the_layout_of_emdb(maps: Path) -> None:
    config = FscConfig(first=maps / "half1.mrc", second=maps / "truth.mrc", output=maps / "out", device="cpu")
    list(fsc(config))
    lines = (maps / "out" / "fsc.xml").read_text().splitlines()
    assert lines[0] == '<fsc title="cryoeq unmasked FSC" xaxis="Resolution (A-1)" yaxis="Correlation Coefficient">'
    assert [line.split(">")[0] for line in lines[1:5]] == ["  <coordinate", "    <x", "    <y", "  </coordinate"]
    assert lines[-1] == "</fsc>"
    assert lines[2] == "    <x>0.001001</x>"
    assert len(lines) == 2 + 4 * (N // 2 + 1)


def test_without_a_mask_there_are_no_masked_figures(maps: Path) -> None:
    json_file = maps / "figures.json"
    config = FscConfig(first=maps / "half1.mrc", mask=Path("none"), json_file=json_file, device="cpu")
    list(fsc(config))
    figures = read_json(json_file)
    assert figures["resolution_angstrom"]["masked"] is None
    assert figures["resolution_angstrom"]["corrected"] is None
    assert figures["fsc"]["masked"] is None
    assert len(figures["fsc"]["unmasked"]) == N // 2 + 1


def test_maps_without_anything_in_common_have_no_resolution(maps: Path, generator: torch.Generator) -> None:
    for name in ("noise1", "noise2"):
        values = torch.randn(N, N, N, generator=generator)
        write_map(maps / f"{name}.mrc", Volume(values if name == "noise1" else values - 2 * values.mean(), PIXEL))
    first, second = read_map(maps / "noise1.mrc"), read_map(maps / "noise2.mrc")
    write_map(maps / "noise2.mrc", Volume(second.values - 0.1 * first.values, PIXEL))
    out = maps / "out"
    events = list(fsc(FscConfig(first=maps / "noise1.mrc", second=maps / "noise2.mrc", output=out, device="cpu")))
    (report,) = (event for event in events if isinstance(event, Report))
    assert report.rows["FSC = 0.5 (whole maps), unmasked"].startswith("none")
    assert read_json(out / "fsc.json")["resolution_angstrom_half"]["unmasked"] is None
    assert float(starfile.read(out / "fsc.star", always_dict=True)["general"]["rlnFinalResolution"]) > 0


def test_align_brings_a_moved_mirror_image_onto_the_truth(maps: Path, generator: torch.Generator) -> None:
    half = read_map(maps / "half1.mrc")
    rotation = random_rotations(1, generator)[0]
    moved = mirror_map(rotate_map(half.values, rotation, torch.tensor([2.0, 1.0, -2.0])))
    write_map(maps / "moved.mrc", Volume(moved, PIXEL))
    write_map(maps / "truth.mrc", read_map(maps / "truth.mrc"), origin_angstrom=(9.0, 0.0, -3.0))
    curves = {}
    for name, with_alignment in (("half1", False), ("moved", True), ("moved", False)):
        out = maps / f"{name}_{with_alignment}"
        config = FscConfig(
            first=maps / f"{name}.mrc",
            second=maps / "truth.mrc",
            with_alignment=with_alignment,
            output=out,
            device="cpu",
        )
        events = list(fsc(config))
        figures = read_json(out / "fsc.json")
        curves[name, with_alignment] = figures["fsc"]["unmasked"]
        assert (figures["alignment"] is not None) == with_alignment
        assert (out / "aligned.mrc").is_file() == with_alignment
        if with_alignment:
            assert read_map_frame(out / "aligned.mrc").corner_angstrom == (9.0, 0.0, -3.0), "it lies on the truth"
            assert figures["alignment"]["is_mirrored"]
            assert any(isinstance(event, Note) and "mirrored, rotated" in event.text for event in events)
    np.testing.assert_allclose(curves["moved", True][:12], curves["half1", False][:12], atol=0.05)
    assert max(curves["moved", False][3:12]) < 0.6


def test_half_maps_of_helices_tell_their_hand_and_nothing_is_flipped(
    tmp_path: Path, generator: torch.Generator
) -> None:
    values = sample_atoms(alpha_helices(generator), 64, 1.5).values
    noise = [0.3 * float(values.std()) * torch.randn(values.shape, generator=generator) for _ in range(2)]
    told = {}
    for name in ("right", "left"):
        for number, one in enumerate(noise, 1):
            half = values + one
            write_map(tmp_path / f"{name}_half{number}.mrc", Volume(half if name == "right" else mirror_map(half), 1.5))
        config = FscConfig(first=tmp_path / f"{name}_half1.mrc", output=tmp_path / name, device="cpu")
        (report,) = (event for event in fsc(config) if isinstance(event, Report))
        assert f"{name}-handed helices, probability" in report.rows["Hand"]
        told[name] = read_json(tmp_path / name / "fsc.json")["hand"]
        assert told[name]["found"] == name
    assert told["left"]["t"] == pytest.approx(-told["right"]["t"], rel=1e-3)  # maps are stored in single precision
    first, second = (read_map(tmp_path / name / "postprocess.mrc").values for name in ("right", "left"))
    agreement = torch.corrcoef(torch.stack([mirror_map(first).flatten(), second.flatten()]))[0, 1]
    assert float(agreement) > 0.999  # the masks' corrections draw other phases


def test_the_command_line(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half1, half2 = str(maps / "half1.mrc"), str(maps / "half2.mrc")
    assert run(["fsc", half1, half2, "--mask", str(maps / "mask.mrc"), "-o", str(maps / "out"), "--device", "cpu"]) == 0
    assert "FSC = 0.143 (half maps), corrected" in capsys.readouterr().out
    assert run(["fsc", half1, half2, "--angpix", "1.5", "--json", str(maps / "f.json"), "--device", "cpu"]) == 0
    assert read_json(maps / "f.json")["pixel_size_angstrom"] == 1.5


def test_bad_input_is_named(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = torch.rand(24, 24, 24)
    write_map(maps / "small.mrc", Volume(small, PIXEL))
    write_map(maps / "coarse.mrc", Volume(torch.rand(N, N, N), 4.0))
    holed = torch.rand(N, N, N)
    holed[1, 2, 3] = torch.nan
    write_map(maps / "empty.mrc", Volume(torch.zeros(N, N, N), PIXEL))
    write_map(maps / "holed.mrc", Volume(holed, PIXEL))
    write_map(maps / "flat.mrc", Volume(torch.full((N, N, N), 7.0), PIXEL))
    (maps / "text.mrc").write_text("no map" * 400)

    def message(*arguments: str) -> str:
        paths = [argument if argument.startswith("-") else str(maps / argument) for argument in arguments]
        assert run(["fsc", *paths, "--device=cpu"]) == 3
        return capsys.readouterr().err

    assert "boxes of 32 and 24 pixels" in message("half1.mrc", "small.mrc")
    assert "pixel sizes of 3 and 4 Å" in message("half1.mrc", "coarse.mrc")
    assert "NaN" in message("holed.mrc", "half1.mrc")
    assert "flat.mrc is constant" in message("half1.mrc", "flat.mrc")
    assert "nowhere.mrc does not exist" in message("nowhere.mrc", "half1.mrc")
    assert "text.mrc" in message("half1.mrc", "text.mrc")
    assert "small.mrc has a box of 24 pixels" in message("half1.mrc", "half2.mrc", "--mask", "small.mrc")
    assert "empty.mrc is empty" in message("half1.mrc", "half2.mrc", "--mask", "empty.mrc")
    assert "truth.mrc has values from" in message("half1.mrc", "half2.mrc", "--mask", "truth.mrc")


def test_the_half_map_that_was_found_is_not_written_over(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (maps / "half2.mrc").read_bytes()
    assert run(["fsc", str(maps / "half1.mrc"), "--json", str(maps / "half2.mrc")]) == 2
    assert "half2.mrc would be written over, which is the other half map" in capsys.readouterr().err
    assert (maps / "half2.mrc").read_bytes() == before


def test_a_map_that_is_not_a_cube_is_refused(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import mrcfile

    with mrcfile.new(maps / "slab.mrc") as file:
        file.set_data(np.zeros((N, N, N // 2), dtype=np.float32))
        file.voxel_size = PIXEL
    assert run(["fsc", str(maps / "slab.mrc"), str(maps / "half1.mrc"), "--device", "cpu"]) == 3
    assert "cubic" in capsys.readouterr().err


def warnings(config: FscConfig) -> str:
    return " ".join(event.text for event in fsc(config) if isinstance(event, Note) and event.level == "warning")


def test_maps_and_masks_in_other_frames_are_doubted(maps: Path) -> None:
    first, second = maps / "half1.mrc", maps / "half2.mrc"
    options = {"first": first, "second": second, "device": "cpu"}
    assert "differ" not in warnings(FscConfig(**options, mask=maps / "mask.mrc"))
    moved, coarse = maps / "moved.mrc", maps / "coarse.mrc"
    write_map(moved, read_map(second), origin_angstrom=(0.0, 6.0, 0.0))
    write_map(coarse, Volume(read_map(maps / "mask.mrc").values, 4.0), origin_angstrom=(-3.0, 0.0, 0.0))
    assert "half1.mrc and moved.mrc differ by 2.0 px along y" in warnings(FscConfig(**options | {"second": moved}))
    by_mask = warnings(FscConfig(**options, mask=coarse))
    assert "half1.mrc and coarse.mrc differ: 3 and 4 Å" in by_mask
    assert "half1.mrc and coarse.mrc differ by -1.0 px along x" in by_mask
    assert "3 and 4 Å" not in warnings(FscConfig(**options, mask=coarse, pixel_size_angstrom=3.0))


def test_a_tight_mask_is_doubted(maps: Path) -> None:
    hard = torch.zeros(N, N, N)
    hard[15:18, 15:18, 15:18] = 1
    write_map(maps / "hard.mrc", Volume(hard, PIXEL))
    config = FscConfig(first=maps / "half1.mrc", second=maps / "half2.mrc", mask=maps / "hard.mrc", device="cpu")
    assert "mask" in warnings(config)


@pytest.mark.gpu
def test_cpu_and_gpu_agree(maps: Path) -> None:
    figures = []
    for device in ("cpu", "cuda:0"):
        config = FscConfig(
            first=maps / "half1.mrc",
            second=maps / "truth.mrc",
            mask=maps / "mask.mrc",
            with_alignment=True,
            json_file=maps / f"{device[:3]}.json",
            device=device,
        )
        list(fsc(config))
        figures.append(read_json(maps / f"{device[:3]}.json"))
    assert figures[0]["resolution_angstrom_half"] == figures[1]["resolution_angstrom_half"]
    for curve in ("unmasked", "masked"):
        np.testing.assert_allclose(figures[0]["fsc"][curve], figures[1]["fsc"][curve], atol=2e-3)
