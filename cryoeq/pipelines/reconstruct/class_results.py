"""Results of a run of several classes: maps and half maps of each, particles with their class, ``run_model.star``."""

from collections.abc import Generator
from dataclasses import dataclass, replace

import torch

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note, Progress
from cryoeq.io.cryosparc import CS_SUFFIX, write_cs
from cryoeq.io.labels import CLASS_NUMBER
from cryoeq.io.model_star import ClassModel, write_model_star
from cryoeq.io.mrc import write_map
from cryoeq.io.particles import ParticleStack, write_particle_star
from cryoeq.maps.alignment import mirror_map
from cryoeq.outputs.map_names import map_names
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.reconstruct.class_files import class_model, named_maps, write_class_maps
from cryoeq.pipelines.reconstruct.classes import FoundClasses
from cryoeq.pipelines.reconstruct.half_map_resolution import resolve_half_maps
from cryoeq.pipelines.reconstruct.half_sets import separate_copies
from cryoeq.pipelines.reconstruct.metrics import ClassMetrics, ReconstructionMetrics
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles, make_maps
from cryoeq.pipelines.reconstruct.supplied_maps import SuppliedMaps, compare_with_reference
from cryoeq.runtime.distributed import is_main_process

_STAGE = "reconstructing"


@dataclass(frozen=True)
class ClassJob:
    """What the results of a run are made from.

    Args:
        config: settings of the run.
        stack: the particles.
        dataset: the particles at the box where poses were inferred.
        stored: the particles at the box of the files.
        supplied: reference to compare with.
        run: run folder.
        device: where to compute.
    """

    config: ReconstructConfig
    stack: ParticleStack
    dataset: ParticleDataset
    stored: ParticleDataset
    supplied: SuppliedMaps
    run: RunFolder
    device: torch.device


def write_classes(job: ClassJob, found: FoundClasses) -> Generator[Event, None, ReconstructionMetrics]:
    """Make the maps of each class, write them and the particles.

    Args:
        job: settings, particles and run folder.
        found: the particles in classes.

    Returns:
        The metrics of the run, with those of each class.
    """
    stack, run, sizes = job.stack, job.run, found.sizes
    posed = yield from separate_copies(job.stored, found.posed, seed=job.config.seed, is_known=False)
    classes, models, metrics = [], [], posed.metrics
    for number, symmetry in enumerate(found.symmetries, 1):
        yield Progress(_STAGE, number - 1, len(sizes))
        rows = found.rows(number - 1)
        maps = make_maps(job.stored, posed, job.device, symmetry, rows)
        if not is_main_process():
            continue
        reproduced = None if found.agreement is None else float(found.agreement.of_class[number - 1])
        of_class = ClassMetrics(
            number, len(rows), len(rows) / len(posed.poses), symmetry=symmetry, reproduced=reproduced
        )
        ctf = None if stack.table.ctf is None else stack.table.ctf[rows]
        resolved = None
        if maps.halves is not None:
            resolved = resolve_half_maps(maps.halves, None, ctf)
            yield from resolved.notes()
            of_class = replace(
                of_class,
                half_map_resolution_angstrom=resolved.resolution_angstrom("unmasked"),
                masked_resolution_angstrom=resolved.resolution_angstrom("masked"),
                corrected_resolution_angstrom=resolved.resolution_angstrom("corrected"),
            )
            models.append(
                class_model(
                    run,
                    number,
                    len(sizes),
                    resolved.curves,
                    share=of_class.share,
                    rotations=posed.poses.rotations[rows],
                    ctf=ctf,
                    symmetry=symmetry,
                )
            )
        classes.append(of_class)
        write_class_maps(run, number, len(sizes), maps, resolved)
        if job.config.both_hands:
            for name, volume in named_maps(number, len(sizes), maps, resolved).items():
                write_map(run.path(mirrored_name(name)), replace(volume, values=mirror_map(volume.values)))
        if job.supplied.reference is not None:
            agreed = compare_with_reference(maps.all, job.supplied.reference)
            best = metrics.reference_resolution_angstrom
            if agreed is not None and (best is None or agreed < best):
                metrics = replace(metrics, reference_resolution_angstrom=agreed)
    yield Progress(_STAGE, len(sizes), len(sizes))
    yield from (Note(text, "warning") for text in job.stored.new_warnings())
    if not is_main_process():
        return ReconstructionMetrics()
    _write_particles(job, found, posed)
    _write_model(job, models, posed)
    agreement = found.agreement
    return replace(
        metrics,
        classes=tuple(classes),
        class_agreement=None if agreement is None else agreement.beyond_chance,
        class_moves=None if agreement is None else tuple(map(tuple, agreement.moves.tolist())),
    )


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
    if config.input.reference is not None:
        agreed = metrics.reference_resolution_angstrom
        rows["the best agrees with the reference to (FSC 0.5)"] = (
            "no resolution" if agreed is None else f"{agreed:.1f} Å"
        )
    return rows


def mirrored_name(name: str) -> str:
    """Name of the file of a map's mirror image."""
    return f"{name.removesuffix('.mrc')}_mirrored.mrc"


def _write_particles(job: ClassJob, found: FoundClasses, posed: PosedParticles) -> None:
    numbers = (found.class_of + 1).numpy()
    tables = {"run_data.star": posed.poses}
    if job.config.both_hands:
        tables["run_data_mirrored.star"] = posed.poses.of_other_hand()
    for name, poses in tables.items():
        write_particle_star(
            job.run.path(name),
            job.stack.star,
            poses,
            half_set=posed.half_set,
            confidence=posed.confidence,
            figure_of_merit=posed.figure_of_merit,
            extra_columns={CLASS_NUMBER: numbers.astype(str)},
        )
    if job.config.particles.suffix == CS_SUFFIX:
        write_cs(job.run.path("run_data.cs"), job.config.particles, posed.poses, half_set=posed.half_set)


def _write_model(job: ClassJob, models: list[ClassModel], posed: PosedParticles) -> None:
    if len(models) < 2 or posed.confidence is None:
        return
    write_model_star(
        job.run.path("run_model.star"),
        models,
        box_size_px=job.stored.box_size_px,
        pixel_size_angstrom=job.stored.pixel_size_angstrom,
        log_likelihood=(posed.metrics.log_evidence or 0.0) * len(posed.poses),
        mean_max_probability=float(posed.confidence.mean()),
    )
