"""Results of a run of several classes: maps and half maps of each, particles with their class, ``run_model.star``."""

import math
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
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.reconstruct.class_files import class_model, mirrored_name, named_maps, write_class_maps
from cryoeq.pipelines.reconstruct.classes import FoundClasses
from cryoeq.pipelines.reconstruct.half_map_resolution import HalfMapResolution, resolve_half_maps
from cryoeq.pipelines.reconstruct.half_sets import separate_copies
from cryoeq.pipelines.reconstruct.metrics import ClassMetrics, ReconstructionMetrics
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles, make_maps
from cryoeq.pipelines.reconstruct.supplied_maps import SuppliedMaps, compare_with_reference
from cryoeq.reconstruction.known_poses import ReconstructedMaps
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
    sizes, classes, models, references = found.sizes, list[ClassMetrics](), list[ClassModel](), list[float]()
    posed = yield from separate_copies(job.stored, found.posed, seed=job.config.seed, is_known=False)
    for number, symmetry in enumerate(found.symmetries, 1):
        yield Progress(_STAGE, number - 1, len(sizes))
        rows = found.rows(number - 1)
        maps = make_maps(job.stored, posed, job.device, symmetry, rows)
        if not is_main_process():
            continue
        resolved = None
        if maps.halves is not None:
            ctf = job.stack.table.ctf
            resolved = resolve_half_maps(maps.halves, None, None if ctf is None else ctf[rows])
            yield from resolved.notes()
            models.append(_model(job, number, found, posed, resolved))
        classes.append(_metrics(number, found, resolved))
        _write_maps(job, number, len(sizes), maps, resolved)
        if job.supplied.reference is not None:
            references.append(compare_with_reference(maps.all, job.supplied.reference) or math.inf)
    yield Progress(_STAGE, len(sizes), len(sizes))
    yield from (Note(text, "warning") for text in job.stored.new_warnings())
    if not is_main_process():
        return ReconstructionMetrics()
    _write_particles(job, found, posed)
    if len(models) == len(sizes):
        _write_model(job, models, posed)
    agreement, best = found.agreement, min(references, default=math.inf)
    return replace(
        posed.metrics,
        reference_resolution_angstrom=best if math.isfinite(best) else None,
        classes=tuple(classes),
        class_agreement=None if agreement is None else agreement.beyond_chance,
        class_moves=None if agreement is None else tuple(map(tuple, agreement.moves.tolist())),
    )


def _model(
    job: ClassJob, number: int, found: FoundClasses, posed: PosedParticles, resolved: HalfMapResolution
) -> ClassModel:
    rows, ctf = found.rows(number - 1), job.stack.table.ctf
    return class_model(
        job.run,
        number,
        len(found.symmetries),
        resolved.curves,
        share=len(rows) / len(found.class_of),
        rotations=posed.poses.rotations[rows],
        ctf=None if ctf is None else ctf[rows],
        symmetry=found.symmetries[number - 1],
    )


def _metrics(number: int, found: FoundClasses, resolved: HalfMapResolution | None) -> ClassMetrics:
    size, agreement = found.sizes[number - 1], found.agreement
    reproduced = None if agreement is None else float(agreement.of_class[number - 1])
    metrics = ClassMetrics(
        number, size, size / len(found.class_of), symmetry=found.symmetries[number - 1], reproduced=reproduced
    )
    if resolved is None:
        return metrics
    return replace(
        metrics,
        half_map_resolution_angstrom=resolved.resolution_angstrom("unmasked"),
        masked_resolution_angstrom=resolved.resolution_angstrom("masked"),
        corrected_resolution_angstrom=resolved.resolution_angstrom("corrected"),
    )


def _write_maps(
    job: ClassJob, number: int, n_classes: int, maps: ReconstructedMaps, resolved: HalfMapResolution | None
) -> None:
    write_class_maps(job.run, number, n_classes, maps, resolved)
    if job.config.both_hands:
        for name, volume in named_maps(number, n_classes, maps, resolved).items():
            write_map(job.run.path(mirrored_name(name)), replace(volume, values=mirror_map(volume.values)))


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
        write_cs(
            job.run.path("run_data.cs"),
            job.config.particles,
            posed.poses,
            half_set=posed.half_set,
            class_number=found.class_of + 1,
        )


def _write_model(job: ClassJob, models: list[ClassModel], posed: PosedParticles) -> None:
    confidence = posed.confidence
    write_model_star(
        job.run.path("run_model.star"),
        models,
        box_size_px=job.stored.box_size_px,
        pixel_size_angstrom=job.stored.pixel_size_angstrom,
        log_likelihood=(posed.metrics.log_evidence or 0.0) * len(posed.poses),
        mean_max_probability=0.0 if confidence is None else float(confidence.mean()),
    )
