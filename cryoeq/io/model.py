"""Atomic models: PDB and mmCIF, plain or gzipped, through gemmi."""

import math
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.atoms import MODEL_SUFFIXES, Atoms, is_atomic_model
from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError
from cryoeq.io.atomic import atomic_path
from cryoeq.io.compressed import read_start
from cryoeq.io.foreign import recognise
from cryoeq.io.text import name_in_utf8

# B-factor over squared grid spacing from which a Gaussian atom is sampled well (Refmac's rule, gemmi).
_LARGEST_BFACTOR = 1e4
_GRID_BLUR = 8 * math.pi**2 / 1.1
_START_BYTES = 1024
_EXPECTED = "cryoeq reads PDB and mmCIF coordinate files"
_ADVICE = "Download it again from the PDB"


@dataclass(frozen=True)
class AtomicModel:
    """The first model of a coordinate file, all its atoms as they are, in the file's frame.

    Args:
        structure: structure as parsed by gemmi.
    """

    structure: gemmi.Structure

    @property
    def positions_angstrom(self) -> Float[Tensor, "atoms 3"]:
        """Centres (x, y, z) of the atoms."""
        return torch.tensor([site.atom.pos.tolist() for site in self.structure[0].all()])

    def moved(self, rotation: Float[Tensor, "3 3"], shift_angstrom: Float[Tensor, " 3"]) -> "AtomicModel":
        """The model at r' = R r + shift; an improper matrix mirrors it."""
        structure = self.structure.clone()
        motion = gemmi.Transform(gemmi.Mat33(rotation.tolist()), gemmi.Vec3(*shift_angstrom.tolist()))
        structure[0].transform_pos_and_adp(motion)
        return AtomicModel(structure)

    def density(
        self,
        box_size_px: int,
        pixel_size_angstrom: float,
        corner_angstrom: Float[Tensor, " 3"],
        *,
        bfactor_angstrom2: float | None = None,
    ) -> Volume:
        """Electrostatic potential of the neutral atoms within a box, from gemmi's electron scattering factors.

        Atoms outside the box are left out. gemmi adds them up in real space, on a grid of 1.5 times the voxels, after
        a blur that keeps their transforms off its Nyquist frequency; the blur is taken back in Fourier space.

        Args:
            box_size_px: side of the map.
            pixel_size_angstrom: pixel size of the map.
            corner_angstrom: coordinates (x, y, z) of its first voxel in the frame of the model.
            bfactor_angstrom2: one B-factor for all atoms; None for the B-factors of the file, anisotropic ones
                included.
        """
        n, side = box_size_px, box_size_px * pixel_size_angstrom
        atoms = self._atoms_within(corner_angstrom, side, bfactor_angstrom2)
        calculator = gemmi.DensityCalculatorE()
        m = 2 * math.ceil(0.75 * n)
        calculator.grid.set_unit_cell(gemmi.UnitCell(side, side, side, 90, 90, 90))
        calculator.grid.spacegroup = gemmi.SpaceGroup("P 1")
        calculator.grid.set_size(m, m, m)
        calculator.initialize_grid()
        lowest = min((atom.b_iso for atom in atoms), default=0.0)
        calculator.blur = max(0.0, _GRID_BLUR * (side / m) ** 2 - lowest)
        for atom in atoms:
            calculator.add_atom_density_to_grid(atom)
        fine = torch.from_numpy(np.ascontiguousarray(calculator.grid.array.transpose(2, 1, 0)))
        return Volume(_cropped_and_sharpened(fine, n, calculator.blur / (4 * side**2)), pixel_size_angstrom)

    def _atoms_within(
        self, corner_angstrom: Float[Tensor, " 3"], side_angstrom: float, bfactor_angstrom2: float | None
    ) -> list[gemmi.Atom]:
        """Copies of the atoms in the box, in the frame of its first voxel."""
        near = self.moved(torch.eye(3), -corner_angstrom)
        positions = near.positions_angstrom
        is_inside = ((positions >= 0) & (positions < side_angstrom)).all(1).tolist()
        atoms = [site.atom for site, inside in zip(near.structure[0].all(), is_inside, strict=True) if inside]
        copies = [atom.clone() for atom in atoms]
        if bfactor_angstrom2 is not None:
            for atom in copies:
                atom.b_iso, atom.aniso = bfactor_angstrom2, gemmi.SMat33f(0, 0, 0, 0, 0, 0)
        return copies

    def write(self, path: Path) -> None:
        """Write mmCIF."""
        with atomic_path(path) as temporary:
            self.structure.make_mmcif_document().write_file(str(temporary))


def read_model(path: Path) -> AtomicModel:
    """All atoms of the first model of a PDB or mmCIF file, waters and hydrogens too: they are part of the model.

    Args:
        path: a file named .pdb, .ent, .cif or .mmcif, with or without .gz.

    Raises:
        MapFileError: no such file, or no model in it, or a number that cannot be.
    """
    structure = _first_model(path)
    while len(structure) > 1:
        del structure[-1]
    model = AtomicModel(structure)
    if not len(model.positions_angstrom) or not torch.isfinite(model.positions_angstrom).all():
        raise MapFileError(f"{path}: no atoms, or coordinates that are not numbers", _EXPECTED, _ADVICE)
    for number, site in enumerate(structure[0].all(), 1):
        atom = site.atom
        if not (math.isfinite(atom.occ) and abs(atom.b_iso) <= _LARGEST_BFACTOR):  # NaN neither
            found = f"{path}: atom {number} has an occupancy of {atom.occ:g} and a B-factor of {atom.b_iso:g}"
            expected = f"Finite occupancies and B-factors up to {_LARGEST_BFACTOR:g} Å² were expected"
            raise MapFileError(found, expected, "Repair the file")
    return model


def _cropped_and_sharpened(fine: Float[Tensor, "m m m"], n: int, exponent: float) -> Float[Tensor, "n n n"]:
    """The map on n voxels a side over the same box, its transform times exp(exponent k^2), k up to Nyquist."""
    m = len(fine)
    k = torch.fft.fftfreq(n, 1 / n).long()
    half = k[: n // 2 + 1].abs()
    spectrum = torch.fft.rfftn(fine)[k % m][:, k % m][:, :, half]
    squared = (k[:, None, None] ** 2 + k[:, None] ** 2 + half**2).clamp(max=n**2 // 4)
    return torch.fft.irfftn(spectrum * torch.exp(exponent * squared), s=(n, n, n)) * (n / m) ** 3


def read_atoms(path: Path, *, assembly: str | None = None) -> Atoms:
    """Atoms of the first model of a PDB or mmCIF file, as Gaussian scatterers in the file's frame.

    Waters, hydrogens and atoms of no occupancy or unknown element are left out; ligands and ions stay. Alternative
    conformations all count, each with its occupancy. Anisotropic displacements are taken by their isotropic B-factor,
    negative ones as 0.

    Args:
        path: a file named .pdb, .ent, .cif or .mmcif, with or without .gz.
        assembly: id of the biological assembly to build, for example "1"; None takes the atoms as deposited.
    """
    model = _first_model(path)
    if assembly is not None:
        model = _build_assembly(path, model, assembly)
    rows = [
        (*atom.pos.tolist(), atom.element.atomic_number * atom.occ, max(atom.b_iso, 0.0))
        for chain in model[0]
        for residue in chain
        if not residue.is_water()
        for atom in residue
        if not atom.is_hydrogen() and atom.element.atomic_number * atom.occ > 0
    ]
    if not rows:
        raise MapFileError(
            f"{path}: no atoms left without waters and hydrogens",
            "cryoeq needs the atoms of a molecule",
            "Check that this is a coordinate file, not a dictionary or a list of restraints",
        )
    table = torch.from_numpy(np.asarray(rows, dtype=np.float32))
    if not torch.isfinite(table).all():
        bad = int((~torch.isfinite(table)).any(1).nonzero()[0])
        raise MapFileError(
            f"{path}: atom {bad + 1} has a coordinate, occupancy or B-factor that is not a number",
            "cryoeq needs finite numbers",
            "Repair the file",
        )
    return Atoms(table[:, :3].contiguous(), table[:, 3].contiguous(), table[:, 4].contiguous())


def _first_model(path: Path) -> gemmi.Structure:
    """The parsed file, with at least one model."""
    if not path.is_file():
        raise MapFileError(f"{path}: no such file", _EXPECTED, "Check the path")
    if not is_atomic_model(path):
        raise MapFileError(
            f"{path}: not the name of an atomic model",
            f"cryoeq expects a name ending in {', '.join(MODEL_SUFFIXES)}, with or without .gz",
            "Rename the file",
        )
    try:
        kind = recognise(read_start(path, _START_BYTES, MapFileError), expects_text=True)
        if kind is not None:
            raise MapFileError(f"{path} is not an atomic model but {kind.name}", _EXPECTED, kind.advice)
        with name_in_utf8(path) as name:
            structure = gemmi.read_structure(name)
    except (RuntimeError, ValueError, OSError, EOFError) as error:
        raise MapFileError(f"{path}: gemmi cannot read it ({error})", _EXPECTED, _ADVICE) from error
    except IndexError:  # gemmi's word for a CIF file without a block
        structure = gemmi.Structure()
    if len(structure) == 0:
        raise MapFileError(f"{path}: no atoms in it", _EXPECTED, _ADVICE)
    return structure


def _build_assembly(path: Path, structure: gemmi.Structure, name: str) -> gemmi.Structure:
    """The structure with its first model replaced by the named biological assembly."""
    known = [assembly.name for assembly in structure.assemblies]
    if name not in known:
        raise MapFileError(
            f"{path}: it describes no biological assembly {name!r}",
            f"it describes {', '.join(known)}" if known else "it describes none at all",
            "Pick one of these with --assembly, or leave --assembly out",
        )
    built = gemmi.Structure()
    recipe = structure.assemblies[known.index(name)]
    built.add_model(gemmi.make_assembly(recipe, structure[0], gemmi.HowToNameCopiedChain.Dup))
    return built
