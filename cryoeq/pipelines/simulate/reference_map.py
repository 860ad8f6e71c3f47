"""The map that a simulation projects: made from atoms, or read, resampled and symmetrised."""

from dataclasses import dataclass

import torch

from cryoeq.config.simulate import SimulateConfig
from cryoeq.domain.atoms import is_atomic_model
from cryoeq.domain.events import Note
from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.io.compressed import without_compression_suffix
from cryoeq.io.density import read_density
from cryoeq.io.model import read_atoms
from cryoeq.io.mrc import header_notes, read_map_pixel_size
from cryoeq.simulation.density import replicate_atoms, resample_map, sample_atoms, symmetrise_map
from cryoeq.simulation.field_of_view import FieldOfView

_MAP_SUFFIXES = (".mrc", ".map", ".ccp4", ".rec")
_TIGHT_FILL = 0.9
_MIN_SYMMETRY = 0.9  # correlation of rotated copies: 0.98 and more where there is symmetry, 0.5 on 1WCM with C4


@dataclass(frozen=True)
class Truth:
    """The map to project, and notes on it for the user.

    Args:
        volume: the map.
        notes: where it comes from, and doubts about it, one sentence each.
    """

    volume: Volume
    notes: tuple[Note, ...]


def read_truth(config: SimulateConfig, device: torch.device) -> Truth:
    """The map to project, from atoms or from a map.

    Args:
        config: settings of the simulation: model, box, pixel size and symmetry.
        device: device of the computation.

    Raises:
        MapFileError: the model is missing, damaged, or neither atoms nor a map.
        ConfigError: it does not fit into the box.
    """
    operators = symmetry_rotations(config.symmetry).float().to(device)
    if is_atomic_model(config.model):
        return _truth_from_atoms(config, operators, device)
    if without_compression_suffix(config.model.name).lower().endswith(_MAP_SUFFIXES):
        return _truth_from_map(config, operators, device)
    raise MapFileError(
        f"{config.model}: neither an atomic model nor a map by its name",
        f"cryoeq reads PDB (.pdb, .ent), mmCIF (.cif, .mmcif) and maps ({', '.join(_MAP_SUFFIXES)}), each also as .gz",
        "Check MODEL",
    )


def _truth_from_atoms(config: SimulateConfig, operators: torch.Tensor, device: torch.device) -> Truth:
    atoms = read_atoms(config.model, assembly=config.assembly).centred().to(device)
    diameter = 2 * atoms.radius_angstrom
    field = FieldOfView.around_molecule(
        diameter, config.box_size_px, config.pixel_size_angstrom, name=f"the molecule of {config.model.name}"
    )
    fill = diameter / field.side_angstrom
    notes = [
        f"{config.model.name}: {len(atoms)} atoms, {diameter:.0f} Å across, centred on their centre of mass; "
        f"{field.box_size_px} px of {field.pixel_size_angstrom:g} Å, filled to {fill:.2f}."
    ]
    if fill > _TIGHT_FILL:
        notes.append(f"The molecule nearly fills the box ({fill:.2f} of its side): shifted particles may wrap around.")
    if len(operators) > 1:
        notes.append(
            f"The density is the mean over the {len(operators)} rotations of {config.symmetry} about the centre."
        )
    volume = sample_atoms(atoms, field.box_size_px, field.pixel_size_angstrom)
    if len(operators) == 1:
        return Truth(volume, tuple(map(Note, notes)))
    averaged = sample_atoms(replicate_atoms(atoms, operators), field.box_size_px, field.pixel_size_angstrom)
    doubts = _doubts_on_symmetry(volume, averaged, len(operators), config.symmetry)
    return Truth(averaged, (*map(Note, notes), *doubts))


def _truth_from_map(config: SimulateConfig, operators: torch.Tensor, device: torch.device) -> Truth:
    if config.assembly is not None:
        raise MapFileError(f"{config.model}: a map has no biological assemblies", "", "Leave --assembly out")
    has_pixel_size = read_map_pixel_size(config.model) is not None
    read = read_density(config.model, angpix=None if has_pixel_size else config.pixel_size_angstrom)
    volume = Volume(read.values.to(device), read.pixel_size_angstrom)
    old = FieldOfView(volume.box_size_px, volume.pixel_size_angstrom)
    field = FieldOfView.from_map(old, config.box_size_px, config.pixel_size_angstrom)
    doubts = [*header_notes(config.model)]
    if not has_pixel_size:
        doubts.append(f"{config.model.name}: its header has no pixel size of use; that of --angpix is taken.")
    notes = [f"{config.model.name}: {old.box_size_px} px of {old.pixel_size_angstrom:g} Å, not recentred."]
    if field.side_angstrom < 0.99 * old.side_angstrom:
        doubts.append(
            f"{config.model.name}: its box of {old.side_angstrom:.0f} Å is cut to {field.side_angstrom:.0f} Å."
        )
    if field != old:
        notes.append(f"Resampled to {field.box_size_px} px of {field.pixel_size_angstrom:g} Å.")
        volume = resample_map(volume, field.box_size_px, field.pixel_size_angstrom)
    if len(operators) > 1:
        notes.append(f"The map is averaged over the {len(operators)} rotations of {config.symmetry} about its centre.")
        averaged = symmetrise_map(volume, operators)
        notes_on_symmetry = _doubts_on_symmetry(volume, averaged, len(operators), config.symmetry)
        volume = averaged
    else:
        notes_on_symmetry = ()
    return Truth(volume, (*(Note(doubt, "warning") for doubt in doubts), *map(Note, notes), *notes_on_symmetry))


def _doubts_on_symmetry(volume: Volume, averaged: Volume, order: int, symmetry: str) -> tuple[Note, ...]:
    """A warning where a map does not have the symmetry that it was averaged over.

    The mean of G copies with a mean correlation of c between any two correlates with each by sqrt((1 + (G - 1) c) / G).
    """
    first, second = (values.values - values.values.mean() for values in (volume, averaged))
    with_mean = float((first * second).sum() / (first.norm() * second.norm()))
    copies = (order * with_mean**2 - 1) / (order - 1)
    if copies >= _MIN_SYMMETRY:
        return ()
    return (
        Note(
            f"The model has no {symmetry} symmetry about z through its centre: its rotated copies correlate by "
            f"{copies:.2f}. What is simulated is their mean, another molecule; leave --sym out for the model itself.",
            "warning",
        ),
    )
