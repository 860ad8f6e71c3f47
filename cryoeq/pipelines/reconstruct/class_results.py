"""Results of a run of several classes: maps and half maps of each, particles with their class, ``run_model.star``."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note, Progress
from cryoeq.domain.pose import PoseSet
from cryoeq.evaluation.junk_comparison import PosedRows
from cryoeq.io.cryosparc import CS_SUFFIX, write_cs
from cryoeq.io.labels import CLASS_NUMBER, JUNK_PROBABILITY
from cryoeq.io.model_star import ClassModel, write_model_star
from cryoeq.io.mrc import write_map
from cryoeq.io.particles import ParticleStack, write_particle_star
from cryoeq.maps.alignment import mirror_map
from cryoeq.outputs.junk_plot import plot_junk
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.reconstruct.assessment import assess_class
from cryoeq.pipelines.reconstruct.class_files import class_model, mirrored_name, named_maps, write_class_maps
from cryoeq.pipelines.reconstruct.classes import FoundClasses
from cryoeq.pipelines.reconstruct.half_map_resolution import HalfMapResolution, resolve_half_maps
from cryoeq.pipelines.reconstruct.half_sets import separate_copies
from cryoeq.pipelines.reconstruct.junk import with_junk_of_classes
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
    count = len(found.symmetries)
    # Of the images of the search all were read.
    posed = yield from separate_copies(job.dataset, found.posed, seed=job.config.seed, is_known=False)
    maps = []
    for number, symmetry in enumerate(found.symmetries):
        yield Progress(_STAGE, number, count)
        maps.append(make_maps(job.stored, posed, job.device, symmetry, found.rows_in_map(number)))
    yield Progress(_STAGE, count, count)
    posed = yield from _with_junk(job, found, maps, posed)
    yield from (Note(text, "warning") for text in job.stored.new_warnings())
    if not is_main_process():
        return ReconstructionMetrics()
    classes = []
    for number, of_class in enumerate(maps, 1):
        classes.append((yield from _write_class(job, found, posed, number, of_class)))
    _write_particles(job, found, posed)
    models = [model for _, model in classes if model is not None]
    if len(models) == count:
        _write_model(job, models, posed)
    agreement, best = found.agreement, _best_agreement(job, maps)
    return replace(
        posed.metrics,
        reference_resolution_angstrom=best,
        classes=tuple(metrics for metrics, _ in classes),
        class_agreement=None if agreement is None else agreement.beyond_chance,
        class_moves=None if agreement is None else tuple(map(tuple, agreement.moves.tolist())),
    )


def _with_junk(
    job: ClassJob, found: FoundClasses, maps: Sequence[ReconstructedMaps], posed: PosedParticles
) -> Generator[Event, None, PosedParticles]:
    """The particles with their probability of being junk, where it can be told."""
    halves = [of_class.halves for of_class in maps if of_class.halves is not None]
    if posed.half_poses is None or posed.half_set is None or len(halves) < len(maps):
        return posed
    poses = PoseSet.from_angstrom(posed.half_poses, job.dataset.pixel_size_angstrom, job.dataset.box_size_px)
    rows = PosedRows(poses, posed.half_set, found.class_of)
    posed = yield from with_junk_of_classes(job.config, job.dataset, halves, rows, posed, job.device)
    if posed.junk is not None and is_main_process():
        plot_junk(job.run.path("junk.png"), posed.junk.any_kind)
    return posed


def _write_class(
    job: ClassJob, found: FoundClasses, posed: PosedParticles, number: int, maps: ReconstructedMaps
) -> Generator[Event, None, tuple[ClassMetrics, ClassModel | None]]:
    """Write the maps of a class; its metrics, and its part of ``run_model.star`` where it has half maps."""
    count, rows, resolved, model = len(found.symmetries), found.rows(number - 1), None, None
    in_map = found.rows_in_map(number - 1)
    if maps.halves is not None:
        ctf = job.stack.table.ctf
        resolved = resolve_half_maps(maps.halves, None, None if ctf is None else ctf[in_map])
        yield from resolved.notes()
        model = _model(job, number, found, posed, resolved)
    picture = job.run.path(f"residuals_class{number:03d}.png")
    metrics = assess_class(job.dataset, maps, posed, picture, rows)
    write_class_maps(job.run, number, count, maps, resolved)
    if job.config.both_hands:
        for name, volume in named_maps(number, count, maps, resolved).items():
            write_map(job.run.path(mirrored_name(name)), replace(volume, values=mirror_map(volume.values)))
    return _metrics(number, found, metrics if resolved is None else resolved.into(metrics)), model


def _best_agreement(job: ClassJob, maps: Sequence[ReconstructedMaps]) -> float | None:
    """Resolution to which the best of the maps agrees with a reference that was given; None without."""
    if job.supplied.reference is None:
        return None
    agreed = [compare_with_reference(of_class.all, job.supplied.reference) for of_class in maps]
    return min((each for each in agreed if each is not None), default=None)


def _model(
    job: ClassJob, number: int, found: FoundClasses, posed: PosedParticles, resolved: HalfMapResolution
) -> ClassModel:
    rows, in_map, ctf = found.rows(number - 1), found.rows_in_map(number - 1), job.stack.table.ctf
    sigma = posed.rotation_sigma_rad
    return class_model(
        job.run,
        number,
        len(found.symmetries),
        resolved.curves,
        share=len(rows) / len(found.class_of),
        rotations=posed.poses.rotations[in_map],
        ctf=None if ctf is None else ctf[in_map],
        symmetry=found.symmetries[number - 1],
        accuracies=(None if sigma is None else float(sigma[in_map].median().rad2deg()), None),
    )


def _metrics(number: int, found: FoundClasses, metrics: ReconstructionMetrics) -> ClassMetrics:
    """Metrics of a class, among those of its map as of a run of it alone."""
    size, agreement = found.sizes[number - 1], found.agreement
    return ClassMetrics(
        number=number,
        particles=size,
        share=size / len(found.class_of),
        half_map_resolution_angstrom=metrics.half_map_resolution_angstrom,
        masked_resolution_angstrom=metrics.masked_resolution_angstrom,
        corrected_resolution_angstrom=metrics.corrected_resolution_angstrom,
        symmetry=found.symmetries[number - 1],
        reproduced=None if agreement is None else float(agreement.of_class[number - 1]),
        nonspherical_share=metrics.nonspherical_share,
        nonspherical_resolution_angstrom=metrics.nonspherical_resolution_angstrom,
        unexplained_share=metrics.unexplained_share,
        explained_signal_share=metrics.explained_signal_share,
        hand_t=metrics.hand_t,
        hand_probability=metrics.hand_probability,
    )


def _write_particles(job: ClassJob, found: FoundClasses, posed: PosedParticles) -> None:
    numbers = (found.class_of + 1).numpy()
    tables = {"run_data": posed.poses}
    if job.config.both_hands:
        tables["run_data_mirrored"] = posed.poses.of_other_hand()
    for stem, poses in tables.items():
        write_particle_star(
            job.run.path(f"{stem}.star"),
            job.stack.star,
            poses,
            half_set=posed.half_set,
            confidence=posed.confidence,
            figure_of_merit=posed.figure_of_merit,
            junk_probability=None if posed.junk is None else posed.junk.any_kind,
            extra_columns={CLASS_NUMBER: numbers.astype(str)},
            outdated=(JUNK_PROBABILITY,),
        )
        if job.config.particles.suffix == CS_SUFFIX:
            write_cs(
                job.run.path(f"{stem}.cs"),
                job.config.particles,
                poses,
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
