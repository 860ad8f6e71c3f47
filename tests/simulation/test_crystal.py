"""Simulated 2D crystals: their lattice in the image and in its transform, and the files of the command."""

import json
import math
from pathlib import Path

import mrcfile
import pytest
import starfile
import torch

from cryoeq.cli.main import run
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import Volume
from cryoeq.io.mrc import write_map
from cryoeq.lattice.unit_cell import basis_of_cell, cell_of_basis
from cryoeq.simulation.crystal import Crystal, crystal_image
from cryoeq.simulation.particles import NoiseFreeStack

SIDE = 256


def test_the_image_repeats_along_the_lattice(phantom_map: Volume, generator: torch.Generator) -> None:
    """Cell vectors of whole pixels: an image shifted by one is the same image."""
    crystal = Crystal(torch.tensor([[200.0, -40.0], [0.0, 160.0]], dtype=torch.float64), 0.0)
    image = crystal_image(phantom_map, crystal, SIDE, generator)
    for dx, dy in ((40, 0), (-8, 32)):
        shifted = image.roll((-dy, -dx), (0, 1))[50:200, 50:200]
        assert float((shifted - image[50:200, 50:200]).norm() / image[50:200, 50:200].norm()) < 1e-4
    assert float((image.roll(17, 1) - image).norm() / image.norm()) > 0.3


def test_one_cell_is_the_projection_of_the_molecule(phantom_map: Volume, generator: torch.Generator) -> None:
    """Cells as large as the image: each molecule appears as ``NoiseFreeStack`` projects it."""
    crystal = Crystal(basis_of_cell((5e3, 5e3, math.pi / 2)), 0.7, 0.5, 0.3)
    image = crystal_image(phantom_map, crystal, 2000, generator)
    positions = crystal.positions_px(2000, 5.0, 16, torch.Generator().manual_seed(3))
    position = positions[positions.norm(dim=1).argmin()]
    o = position - position.round()
    poses = Poses(crystal.rotation[None], -5.0 * o[None].float())
    expected = next(iter(NoiseFreeStack.from_map(phantom_map, poses, None).batches()))[0]
    x, y = (position.round().long() + 1000 - 16).tolist()
    torch.testing.assert_close(image[y : y + 32, x : x + 32], expected, rtol=1e-4, atol=1e-4 * float(expected.max()))


def test_a_tilt_shortens_across_its_axis() -> None:
    basis = basis_of_cell((100.0, 80.0, math.pi / 2))
    lengths, _ = cell_of_basis(Crystal(basis, 0.0, math.radians(60), 0.0).projected_basis_angstrom)
    assert lengths.tolist() == pytest.approx([100.0, 40.0], rel=1e-5)


def test_disorder_is_the_standard_deviation_of_the_positions(generator: torch.Generator) -> None:
    basis = basis_of_cell((100.0, 80.0, 1.8))
    positions = [
        Crystal(basis, 0.0, disorder_angstrom=sigma).positions_px(2000, 2.0, 0, torch.Generator().manual_seed(1))
        for sigma in (0.0, 6.0)
    ]
    assert float((positions[1] - positions[0]).std()) == pytest.approx(3.0, rel=0.05)
    assert float(positions[0].abs().max()) <= 1000


def test_the_command_writes_micrographs_and_their_truth(
    phantom_map: Volume, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_map(tmp_path / "phantom.mrc", phantom_map)
    options = "--crystal 200 150 100 --tilt 30 --tilt-axis 90 --disorder 2 --micrograph 256 -n 2 --snr 0.1".split()  # noqa: SIM905
    out = tmp_path / "out"
    assert run(["simulate", str(tmp_path / "phantom.mrc"), *options, "-o", str(out), "--device", "cpu"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "command.txt", "config.yaml", "job.json", "micrograph_001.mrc", "micrograph_002.mrc", "micrographs.star",
        "truth.json",
    ]  # fmt: skip
    truth = json.loads((out / "truth.json").read_text())
    tables = starfile.read(out / "micrographs.star")
    assert list(tables["micrographs"]["rlnMicrographName"]) == [one["name"] for one in truth["micrographs"]]
    capsys.readouterr()
    for one in truth["micrographs"]:
        assert mrcfile.validate(out / one["name"]), capsys.readouterr().out
        with mrcfile.open(out / one["name"]) as mrc:
            assert mrc.data.shape in {(256, 256), (1, 256, 256)}
            assert float(mrc.voxel_size.x) == 5.0
            assert float(mrc.data.var()) == pytest.approx(1.1, rel=0.05)
        area = abs(torch.linalg.det(torch.tensor(one["basis_angstrom"])))
        assert float(area) == pytest.approx(
            200 * 150 * math.sin(math.radians(100)) * math.cos(math.radians(30)), rel=1e-4
        )


def test_an_impossible_crystal_is_refused(
    phantom_map: Volume, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_map(tmp_path / "phantom.mrc", phantom_map)
    command = ["simulate", str(tmp_path / "phantom.mrc"), "-o", str(tmp_path / "out"), "--crystal", "200", "150", "180"]
    assert run(command) == 2
    assert "flat or impossible" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
