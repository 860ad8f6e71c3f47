"""Files of the maps of a run, of one class or of each of several, and their rows of ``run_model.star``."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.optics import CtfParameters
from cryoeq.domain.volume import Volume
from cryoeq.evaluation.completeness import fourier_completeness
from cryoeq.evaluation.resolution import FscCurves
from cryoeq.io.model_star import ClassModel
from cryoeq.io.mrc import write_map
from cryoeq.outputs.evaluation_plots import plot_fsc
from cryoeq.outputs.fsc_files import write_fsc_star, write_fsc_xml
from cryoeq.outputs.map_names import map_names
from cryoeq.outputs.reconstruction_plots import plot_map
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.reconstruct.half_map_resolution import HalfMapResolution
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.reconstruction.known_poses import ReconstructedMaps


def write_class_maps(
    run: RunFolder, number: int, n_classes: int, maps: ReconstructedMaps, resolved: HalfMapResolution | None
) -> None:
    """Write maps and pictures of a class, and the correlation of its half maps.

    Args:
        run: run folder.
        number: of the class, from 1.
        n_classes: number of classes of the run.
        maps: maps of the class.
        resolved: agreement of its half maps; None without half maps.
    """
    names = map_names(number, n_classes)
    for name, volume in named_maps(number, n_classes, maps, resolved).items():
        write_map(run.path(name), volume)
    plot_map(run.path(names.slices), run.path(names.projections), maps.all)
    if resolved is None:
        return
    write_fsc_star(run.path(f"{names.fsc}.star"), resolved.curves)
    write_fsc_xml(run.path(f"{names.fsc}.xml"), resolved.curves)
    plot_fsc(run.path(f"{names.fsc}.png"), resolved.curves, ctf_power=resolved.ctf_power, dips=resolved.dips)


def named_maps(
    number: int, n_classes: int, maps: ReconstructedMaps, resolved: HalfMapResolution | None
) -> dict[str, Volume]:
    """The maps of a class by the names of their files.

    Args:
        number: of the class, from 1.
        n_classes: number of classes of the run.
        maps: maps of the class.
        resolved: agreement of its half maps; None without half maps.
    """
    names = map_names(number, n_classes)
    named: dict[str, Volume | None] = {names.whole: maps.all}
    if maps.halves is not None:
        named |= {names.first_half: maps.halves.first, names.second_half: maps.halves.second}
    if resolved is not None:
        named |= {names.mask: resolved.mask, names.postprocessed: resolved.postprocessed}
    return {name: volume for name, volume in named.items() if volume is not None}


def class_rows(metrics: ReconstructionMetrics, config: ReconstructConfig) -> dict[str, str]:
    """Rows of the report in the terminal: files, size and resolution of each class.

    Args:
        metrics: metrics of a run of several classes.
        config: settings of the run.
    """
    classes = metrics.classes or ()
    files = {"poses and classes": "run_data.star", "model": "run_model.star", "report": "report.html"}
    rows = {label: str(config.output / name) for label, name in files.items()}
    for each in classes:
        unmasked, corrected = each.half_map_resolution_angstrom, each.corrected_resolution_angstrom
        told = "half maps agree nowhere" if unmasked is None else f"half maps agree to {unmasked:.1f} Å"
        if corrected is not None:
            told += f", {corrected:.1f} Å within the mask, corrected"
        if each.reproduced is not None:
            told += f"; {each.reproduced:.0%} of it found again by another start"
        name = config.output / map_names(each.number, len(classes)).whole
        rows[str(name)] = f"{each.particles} particles ({each.share:.0%}), {told}"
    if metrics.junk_share is not None:
        rows["junk, expected share of the particles"] = f"{metrics.junk_share:.0%}"
    if config.input.compare_to is not None:
        agreed = metrics.reference_resolution_angstrom
        rows["the best agrees with the reference to (FSC 0.5)"] = (
            "no resolution" if agreed is None else f"{agreed:.1f} Å"
        )
    return rows


def mirrored_name(name: str) -> str:
    """Name of the file of a map's mirror image."""
    return f"{name.removesuffix('.mrc')}_mirrored.mrc"


def class_model(
    run: RunFolder,
    number: int,
    n_classes: int,
    curves: FscCurves,
    *,
    share: float,
    rotations: Float[Tensor, "particles 3 3"],
    ctf: CtfParameters | None,
    symmetry: str = "C1",
    accuracies: tuple[float | None, float | None] = (None, None),
) -> ClassModel:
    """A class as ``run_model.star`` has it.

    Args:
        run: run folder, by which the map is named: relative to where the run was started, as RELION's project is.
        number: of the class, from 1.
        n_classes: number of classes of the run.
        curves: correlation of its half maps.
        share: share of the particles, 0 to 1.
        rotations: RELION's matrices A of its particles.
        ctf: their CTF; None without.
        symmetry: point group of the class.
        accuracies: expected error of a rotation in degrees and of an offset in Angstrom; None where it is not known.
    """
    reference = (run.folder / map_names(number, n_classes).whole).as_posix()
    model = ClassModel(reference, share, curves.unmasked, torch.zeros_like(curves.unmasked), *accuracies)
    completeness = fourier_completeness(
        rotations,
        ctf,
        model.ssnr,
        box_size_px=curves.box_size_px,
        pixel_size_angstrom=curves.pixel_size_angstrom,
        symmetry=symmetry,
    )
    return replace(model, completeness=completeness)
