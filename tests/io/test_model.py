"""Atomic models: what counts as an atom, in either format, and what is said of bad files."""

import gzip
import math
from pathlib import Path

import gemmi
import pytest
import torch

from cryoeq.domain.atoms import is_atomic_model
from cryoeq.errors import MapFileError
from cryoeq.io.model import read_atoms, read_model

# A glycine with a hydrogen and two places for its oxygen, a zinc ion, a water, an empty place and a second model.
PDB = """\
REMARK 350 BIOMOLECULE: 1
REMARK 350 APPLY THE FOLLOWING TO CHAINS: A
REMARK 350   BIOMT1   1  1.000000  0.000000  0.000000        0.00000
REMARK 350   BIOMT2   1  0.000000  1.000000  0.000000        0.00000
REMARK 350   BIOMT3   1  0.000000  0.000000  1.000000        0.00000
REMARK 350   BIOMT1   2 -1.000000  0.000000  0.000000        0.00000
REMARK 350   BIOMT2   2  0.000000 -1.000000  0.000000        0.00000
REMARK 350   BIOMT3   2  0.000000  0.000000  1.000000        7.50000
MODEL        1
ATOM      1  N   GLY A   1       1.000   2.000   3.000  1.00 10.00           N
ATOM      2  CA  GLY A   1       2.400   2.100   3.200  1.00 20.00           C
ATOM      3  C   GLY A   1       3.100   0.800   3.500  1.00 30.00           C
ATOM      4  O  AGLY A   1       2.600  -0.300   3.300  0.75 40.00           O
ATOM      5  O  BGLY A   1       2.700  -0.400   3.900  0.25 -5.00           O
ATOM      6  HA2 GLY A   1       2.800   2.800   4.000  1.00 20.00           H
ATOM      7  OXT GLY A   1       9.000   9.000   9.000  0.00 20.00           O
TER       8      GLY A   1
HETATM    9 ZN    ZN A 101       5.000   5.000   5.000  1.00 15.00          ZN
HETATM   10  O   HOH A 201       6.000   6.000   6.000  1.00 15.00           O
ENDMDL
MODEL        2
ATOM      1  N   GLY A   1      91.000  92.000  93.000  1.00 10.00           N
ENDMDL
END
"""
WEIGHTS = [7.0, 6.0, 6.0, 6.0, 2.0, 30.0]


@pytest.fixture
def pdb(tmp_path: Path) -> Path:
    path = tmp_path / "glycine.pdb"
    path.write_text(PDB)
    return path


def test_waters_hydrogens_and_empty_places_are_left_out_and_the_rest_is_weighted(pdb: Path) -> None:
    atoms = read_atoms(pdb)
    assert atoms.weights.tolist() == WEIGHTS
    assert atoms.bfactors_angstrom2.tolist() == [10.0, 20.0, 30.0, 40.0, 0.0, 15.0]
    torch.testing.assert_close(atoms.positions_angstrom[1], torch.tensor([2.4, 2.1, 3.2]))


def test_gzipped_pdb_and_mmcif_give_the_same_atoms(pdb: Path, tmp_path: Path) -> None:
    zipped, cif = tmp_path / "glycine.PDB.gz", tmp_path / "glycine.cif"
    zipped.write_bytes(gzip.compress(PDB.encode()))
    structure = gemmi.read_structure(str(pdb))
    structure.setup_entities()
    cif.write_text(structure.make_mmcif_document().as_string())
    expected = read_atoms(pdb)
    for path in (zipped, cif):
        atoms = read_atoms(path)
        torch.testing.assert_close(atoms.positions_angstrom, expected.positions_angstrom)
        torch.testing.assert_close(atoms.weights, expected.weights)
        torch.testing.assert_close(atoms.bfactors_angstrom2, expected.bfactors_angstrom2)


def test_assembly_is_built_on_request(pdb: Path) -> None:
    one, two = read_atoms(pdb), read_atoms(pdb, assembly="1")
    assert len(two) == 2 * len(one)
    turned = one.positions_angstrom * torch.tensor([-1.0, -1.0, 1.0]) + torch.tensor([0.0, 0.0, 7.5])
    distances = torch.cdist(torch.cat([one.positions_angstrom, turned]), two.positions_angstrom)
    assert distances.amin(1).max() < 1e-4
    assert two.weights.sum() == 2 * one.weights.sum()


def test_unknown_assembly_names_those_there_are(pdb: Path) -> None:
    with pytest.raises(MapFileError, match=r"no biological assembly '4'.*It describes 1.*--assembly"):
        read_atoms(pdb, assembly="4")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.pdb", None, "no such file"),
        ("model.txt", PDB, "not the name of an atomic model"),
        ("garbage.cif", "this is not a CIF file", "gemmi cannot read it"),
        ("garbage.pdb.gz", "this is not gzipped", "cannot read it|no atoms"),
        ("empty.pdb", "REMARK nothing\nEND\n", "no atoms"),
        ("empty.cif", "", "no atoms"),
        ("page.pdb", "<!DOCTYPE html>\n<html>", "not an atomic model but an HTML page"),
        ("pointer.cif", "version https://git-lfs.github.com/spec/v1\n", "not an atomic model but a Git LFS pointer"),
        ("water.pdb", "\n".join(line for line in PDB.splitlines() if "HOH" in line) + "\n", "without waters"),
        ("nan.pdb", PDB.replace("   2.400   2.100", "     nan   2.100"), "cannot read it|not a number"),
    ],
)
def test_bad_files_are_explained(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(MapFileError, match=message) as caught:
        read_atoms(path)
    assert name in str(caught.value)


@pytest.mark.parametrize(("there", "damaged"), [("1.00 20.00", "1.00  -inf"), ("1.00 20.00", "1.00 -9e+9")])
def test_numbers_of_atoms_that_cannot_be_are_named(tmp_path: Path, there: str, damaged: str) -> None:
    (tmp_path / "model.pdb").write_text(PDB.replace(there, damaged, 1))
    with pytest.raises(MapFileError, match="atom 2 has an occupancy of 1 and a B-factor of -"):
        read_model(tmp_path / "model.pdb")


def test_names_of_models_are_recognised() -> None:
    assert all(is_atomic_model(Path(name)) for name in ("a.pdb", "b.ENT", "c.cif.gz", "d.mmcif"))
    assert not any(is_atomic_model(Path(name)) for name in ("a.mrc", "pdb", "b.map.gz", "c.star"))


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "count", "radius"), [("1wcm.pdb", 30945, 100.40), ("7l2i.cif", 17432, 71.52)])
def test_entries_of_the_pdb(reference_data: Path, name: str, count: int, radius: float) -> None:
    atoms = read_atoms(reference_data / "models" / name).centred()
    assert len(atoms) == count
    assert math.isclose(atoms.radius_angstrom, radius, abs_tol=0.01)


def test_a_packed_model_that_ends_early_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pdb.gz"
    path.write_bytes(gzip.compress(PDB.encode())[:-20])
    with pytest.raises(MapFileError, match="cannot be unpacked by gzip"):
        read_atoms(path)
