"""The maps of all molecules of a simulation, in one box and pixel size, each in a frame of its own."""

import torch

from cryoeq.config.simulate import SimulateConfig
from cryoeq.domain.atoms import is_atomic_model
from cryoeq.domain.events import Note
from cryoeq.domain.volume import Volume
from cryoeq.io.density import read_density
from cryoeq.io.model import read_atoms
from cryoeq.pipelines.simulate.reference_map import Truth, read_truth
from cryoeq.simulation.field_of_view import DEFAULT_FILL, FieldOfView


def read_species(config: SimulateConfig, device: torch.device) -> tuple[Truth, ...]:
    """The maps to project, MODEL first.

    Box and pixel size are those asked for; as far as they are not given, they are chosen so that the largest molecule
    fits. Maps have no common grey scale: where one is among several models, each is scaled to the deviation of the
    first.

    Args:
        config: settings of the simulation.
        device: device of the computation.

    Raises:
        MapFileError: a model is missing, damaged, or neither atoms nor a map.
        ConfigError: a molecule does not fit into the box.
    """
    if not config.other_models:
        return (read_truth(config, device),)
    paths = [path for path, _ in config.models_with_shares]
    alone = [config, *(config.model_copy(update=_of_other(path)) for path in paths[1:])]
    field = _common_field(alone)
    size = {"box_size_px": field.box_size_px, "pixel_size_angstrom": field.pixel_size_angstrom}
    truths = [read_truth(one.model_copy(update=size), device) for one in alone]
    return tuple(truths) if all(map(is_atomic_model, paths)) else _on_one_scale(truths)


def _of_other(path: object) -> dict[str, object]:
    return {"model": path, "assembly": None, "symmetry": "C1"}


def _common_field(configs: list[SimulateConfig]) -> FieldOfView:
    """The box of the molecule that needs the largest one."""
    box, pixel_size = configs[0].box_size_px, configs[0].pixel_size_angstrom
    if box is not None and pixel_size is not None:
        return FieldOfView(box, pixel_size)
    return max((_field_of(config) for config in configs), key=lambda pair: pair[0])[1]


def _field_of(config: SimulateConfig) -> tuple[float, FieldOfView]:
    """The side that a molecule needs, in Angstrom, and the box that it would have alone."""
    box, pixel_size = config.box_size_px, config.pixel_size_angstrom
    if is_atomic_model(config.model):
        diameter = 2 * read_atoms(config.model, assembly=config.assembly).centred().radius_angstrom
        name = f"the molecule of {config.model.name}"
        return diameter / DEFAULT_FILL, FieldOfView.around_molecule(diameter, box, pixel_size, name=name)
    volume = read_density(config.model)
    old = FieldOfView(volume.box_size_px, volume.pixel_size_angstrom)
    return old.side_angstrom, FieldOfView.from_map(old, box, pixel_size)


def _on_one_scale(truths: list[Truth]) -> tuple[Truth, ...]:
    deviation = truths[0].volume.values.std()
    scaled = [
        Truth(
            Volume(one.volume.values * (deviation / one.volume.values.std()), one.volume.pixel_size_angstrom), one.notes
        )
        for one in truths[1:]
    ]
    note = Note("Maps have no common grey scale: the densities of all models are given the deviation of the first.")
    return (Truth(truths[0].volume, (*truths[0].notes, note)), *scaled)
