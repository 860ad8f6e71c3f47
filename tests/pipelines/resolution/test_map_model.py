"""``cryoeq fsc MAP MODEL``: one where the map is the model's, at its place in the header's frame or aligned."""

import gzip
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import pytest
import torch

from cryoeq.cli.main import run
from cryoeq.config.fsc import FscConfig
from cryoeq.domain.atoms import Atoms
from cryoeq.domain.events import Note, Report
from cryoeq.domain.volume import Volume
from cryoeq.evaluation.model_mask import soft_mask_around
from cryoeq.geometry.shells import fourier_shell_correlation
from cryoeq.geometry.so3 import random_rotations
from cryoeq.io.map_frame import read_map_corner
from cryoeq.io.model import read_atoms, read_model
from cryoeq.io.mrc import read_map, write_map
from cryoeq.io.text import read_json
from cryoeq.maps import alignment
from cryoeq.maps.alignment import mirror_map
from cryoeq.pipelines.resolution.fsc import fsc
from cryoeq.simulation.density import sample_atoms

N, PIXEL, COUNT = 36, 3.0, 300
CORNER = (10.0, -25.0, 40.0)  # of the model's frame, at the first voxel


def model_text(positions: torch.Tensor, bfactors: torch.Tensor) -> str:
    structure = gemmi.Structure()
    model, chain = gemmi.Model(1), gemmi.Chain("A")
    for number, (place, bfactor) in enumerate(zip(positions.tolist(), bfactors.tolist(), strict=True), 1):
        residue, atom = gemmi.Residue(), gemmi.Atom()
        residue.name, residue.seqid = "GLY", gemmi.SeqId(str(number))
        atom.name, atom.element, atom.occ, atom.b_iso = "CA", gemmi.Element("C"), 1.0, bfactor
        atom.pos = gemmi.Position(*place)
        residue.add_atom(atom)
        chain.add_residue(residue)
    model.add_chain(chain)
    structure.add_model(model)
    structure.setup_entities()
    return structure.make_pdb_string()


@pytest.fixture
def files(tmp_path: Path, generator: torch.Generator) -> Path:
    """Carbon atoms of different B-factors, and their map, which the model's frame places off its origin."""
    inner = torch.randn(COUNT, 3, generator=generator) * torch.tensor([9.0, 12.0, 15.0])
    bfactors = 30 + 60 * torch.rand(COUNT, generator=generator)
    positions = inner + torch.tensor(CORNER) + N // 2 * PIXEL
    (tmp_path / "model.pdb").write_text(model_text(positions, bfactors))
    with gzip.open(tmp_path / "other.pdb.gz", "wt") as file:
        file.write(model_text(positions.mean(0) + (positions - positions.mean(0)).roll(1, 1) * 0.8, bfactors))
    atoms = read_atoms(tmp_path / "model.pdb")  # as the file rounds them
    centred = Atoms(atoms.positions_angstrom - torch.tensor(CORNER) - N // 2 * PIXEL, *_rest(atoms))
    write_map(tmp_path / "map.mrc", sample_atoms(centred, N, PIXEL), origin_angstrom=CORNER)
    return tmp_path


def _rest(atoms: Atoms) -> tuple[torch.Tensor, torch.Tensor]:
    return atoms.weights, atoms.bfactors_angstrom2


def compare(folder: Path, **options: object) -> tuple[dict[str, list[float]], list[Note]]:
    """The curves and what was said."""
    asked = {"first": folder / "map.mrc", "second": folder / "model.pdb", "device": "cpu"}
    config = FscConfig(**(asked | {"json_file": folder / "fsc.json"} | options))
    notes = [event for event in fsc(config) if isinstance(event, Note)]
    return read_json(folder / "fsc.json")["fsc"], notes


def test_the_map_of_a_model_agrees_with_it(files: Path) -> None:
    """Exactly: all atoms being of one element, the two kinds of scattering factors differ by a factor per shell."""
    curves, notes = compare(files)
    assert min(curves["unmasked"][1:-1]) > 0.999  # the map ends at Nyquist's sphere, within the last shell
    assert min(curves["masked"][1:-2]) > 0.99
    assert [note for note in notes if note.level == "warning"] == []


def test_bfactors_count_and_can_be_overridden(files: Path) -> None:
    assert compare(files, model_bfactor_angstrom2=0.0)[0]["unmasked"][-2] < 0.995
    model, corner = read_model(files / "model.pdb"), torch.tensor(CORNER)
    equal, other = (model.density(N, PIXEL, corner, bfactor_angstrom2=bfactor).values for bfactor in (40.0, 120.0))
    assert float(fourier_shell_correlation(equal, other)[1:-1].min()) > 0.9995


@pytest.mark.parametrize("field", ["nstart", "permuted"])
def test_the_frame_of_the_header_counts(files: Path, field: str) -> None:
    """NXSTART where ORIGIN is zero; axes in another order."""
    corner_px = [16, -19, 2]
    model = read_model(files / "model.pdb").moved(torch.eye(3), torch.tensor(corner_px) * PIXEL - torch.tensor(CORNER))
    (files / "moved.pdb").write_text(model.structure.make_pdb_string())
    with mrcfile.open(files / "map.mrc", "r+") as file:
        file.header.origin = (0, 0, 0)
        starts = corner_px
        if field == "permuted":
            file.set_data(np.ascontiguousarray(file.data.transpose(1, 2, 0)))  # sections y, rows x, columns z
            file.voxel_size = PIXEL
            file.header.mapc, file.header.mapr, file.header.maps = 3, 1, 2
            starts = [corner_px[2], corner_px[0], corner_px[1]]
        file.header.nxstart, file.header.nystart, file.header.nzstart = starts
    assert read_map_corner(files / "map.mrc", PIXEL).tolist() == [place * PIXEL for place in corner_px]
    assert min(compare(files, second=files / "moved.pdb")[0]["unmasked"][1:-1]) > 0.99


def test_a_mask_off_the_map_and_two_origins_are_doubted(files: Path) -> None:
    write_map(files / "mask.mrc", Volume(torch.ones(N, N, N), PIXEL))
    with mrcfile.open(files / "map.mrc", "r+") as file:
        file.header.nxstart = 1
    said = " ".join(note.text for note in compare(files, mask=files / "mask.mrc")[1] if note.level == "warning")
    assert "origins of map.mrc and mask.mrc differ by -3.3 px along x" in said
    assert "ORIGIN places its first voxel at (10, -25, 40) Å, NXSTART at (3, 0, 0) Å" in said


@pytest.fixture
def coarse_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """576 rotations to begin with instead of 4,608, and fewer peaks, which a molecule of so few shells can do with."""
    monkeypatch.setattr(alignment, "_SEARCH_ORDER", 1)
    monkeypatch.setattr(alignment, "_PEAKS", 2)


@pytest.mark.usefixtures("coarse_search")
def test_alignment_finds_a_model_that_lies_elsewhere(files: Path, generator: torch.Generator) -> None:
    turn = random_rotations(1, generator)[0]
    moved = read_model(files / "model.pdb").moved(turn, torch.tensor([500.0, 20.0, -80.0]))
    (files / "elsewhere.pdb").write_text(moved.structure.make_pdb_string())
    output = files / "out"
    curves, notes = compare(files, second=files / "elsewhere.pdb", with_alignment=True, output=output)
    assert min(curves["unmasked"][1:10]) > 0.99
    assert any(note.text.startswith("Aligned: the model was rotated by") for note in notes)
    found, true = (read_model(path).positions_angstrom for path in (output / "aligned_model.cif", files / "model.pdb"))
    assert float((found - true).norm(dim=1).mean()) < 0.3
    assert sorted(path.name for path in output.iterdir()) == [
        "aligned_model.cif", "fsc.json", "fsc.png", "fsc.star", "fsc.xml", "model.mrc", "model_mask.mrc"
    ]  # fmt: skip
    for name in ("model.mrc", "model_mask.mrc"):
        assert read_map_corner(output / name, PIXEL).tolist() == pytest.approx(list(CORNER))
    density, mask = (read_map(output / name).values for name in ("model.mrc", "model_mask.mrc"))
    assert float(density[mask == 0].abs().max()) < 0.02 * float(density.max())


@pytest.mark.usefixtures("coarse_search")
def test_a_map_of_the_other_hand_is_said_to_be_one(files: Path) -> None:
    write_map(files / "mirrored.mrc", Volume(mirror_map(read_map(files / "map.mrc").values), PIXEL))
    curves, notes = compare(files, first=files / "mirrored.mrc", with_alignment=True, output=files / "out")
    assert any("the other hand" in note.text and note.level == "warning" for note in notes)
    assert min(curves["unmasked"][1:10]) > 0.99
    assert not (files / "out" / "aligned_model.cif").exists()


def test_a_wrong_model_does_not_agree(files: Path) -> None:
    curves, _ = compare(files, second=files / "other.pdb.gz")
    assert max(curves["unmasked"][6:]) < 0.5


def test_a_model_at_another_place_is_refused_or_doubted(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shifted = read_model(files / "model.pdb")
    for name, shift in (("far.pdb", 900.0), ("beside.pdb", 25.0)):
        moved = shifted.moved(torch.eye(3), torch.tensor([shift, 0.0, 0.0]))
        (files / name).write_text(moved.structure.make_pdb_string())
    assert run(["fsc", str(files / "map.mrc"), str(files / "far.pdb"), "--device", "cpu"]) == 3
    message = capsys.readouterr().err
    assert "100% of the atoms lie outside" in message
    assert "Pass --align" in message
    _, notes = compare(files, second=files / "beside.pdb")
    assert any("do not overlap" in note.text and "try --align" in note.text for note in notes)


def test_the_command_reports_both_resolutions(files: Path) -> None:
    config = FscConfig(first=files / "map.mrc", second=files / "model.pdb", device="cpu")
    (report,) = [event for event in fsc(config) if isinstance(event, Report)]
    assert report.rows["FSC = 0.5 (map and model), unmasked"].endswith(" Å")
    assert report.rows["FSC = 0.5 (map and model), within a soft mask around the model"].endswith(" Å")
    assert report.rows["Atoms, B-factors"] == f"{COUNT}, those of the file"


def test_the_mask_falls_softly() -> None:
    """1 up to the radius, 0 beyond the edge, half in between; atoms outside the box make none."""
    places = torch.tensor([[8.2, 16.0, 20.0], [60.0, 0.0, 0.0]])
    mask = soft_mask_around(places, 32, radius_px=3.0, edge_px=6.0)
    k = torch.arange(32)
    distance = ((k[:, None, None] - 20) ** 2 + (k[:, None] - 16) ** 2 + (k - 8) ** 2).sqrt()
    assert bool((mask[distance <= 3] == 1).all())
    assert bool((mask[distance >= 9] == 0).all())
    assert float(mask[20, 16, 14]) == pytest.approx(0.5)
    assert float(soft_mask_around(places[1:], 32, radius_px=3.0, edge_px=6.0).max()) == 0
