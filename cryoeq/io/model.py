"""Atomic models: PDB and mmCIF, plain or gzipped, through gemmi."""

from pathlib import Path

import gemmi
import numpy as np
import torch

from cryoeq.domain.atoms import Atoms
from cryoeq.errors import MapFileError

_SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
_EXPECTED = "cryoeq reads PDB and mmCIF coordinate files"
_ADVICE = "Download it again from the PDB"


def is_atomic_model(path: Path) -> bool:
    """Whether the name is that of a PDB or mmCIF file, plain or gzipped."""
    return path.name.lower().removesuffix(".gz").endswith(_SUFFIXES)


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
            f"cryoeq expects a name ending in {', '.join(_SUFFIXES)}, with or without .gz",
            "Rename the file",
        )
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, OSError, EOFError) as error:
        raise MapFileError(f"{path}: gemmi cannot read it ({error})", _EXPECTED, _ADVICE) from error
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
