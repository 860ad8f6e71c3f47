"""``cryoeq reconstruct``: from particles to maps."""

import shlex
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note, Progress, Report
from cryoeq.errors import DivergedError
from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD
from cryoeq.evaluation.verdict import MIN_NONSPHERICAL, RunFacts, RunVerdict, judge_run
from cryoeq.io.cryosparc import CS_SUFFIX, write_cs
from cryoeq.io.labels import JUNK_PROBABILITY, MAX_PROBABILITY
from cryoeq.io.mrc import write_map
from cryoeq.io.particles import ParticleStack, write_particle_star
from cryoeq.maps.alignment import mirror_map
from cryoeq.outputs.report import write_report
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.class_choice import rows_of_one_frame
from cryoeq.pipelines.reconstruct.assessment import assess_maps, check_poses
from cryoeq.pipelines.reconstruct.build import build_dataset, build_stack, takes_poses, working_box
from cryoeq.pipelines.reconstruct.checkpoints import Checkpoints, load_training_state, require_same_settings
from cryoeq.pipelines.reconstruct.class_files import class_rows, mirrored_name, named_maps, write_class_maps
from cryoeq.pipelines.reconstruct.compiling import compile_kernels
from cryoeq.pipelines.reconstruct.ctf import with_ctf
from cryoeq.pipelines.reconstruct.event_log import record_events
from cryoeq.pipelines.reconstruct.full_box import (
    ClassRows,
    refine_classes_where_it_gains,
    refine_where_it_gains,
)
from cryoeq.pipelines.reconstruct.half_map_resolution import resolve_half_maps
from cryoeq.pipelines.reconstruct.half_sets import (
    given_half_set_notes,
    independence_notes,
    position_notes,
    separate_copies,
)
from cryoeq.pipelines.reconstruct.junk import with_junk_probability
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.pipelines.reconstruct.particle_diameter import cut_notes, diameter_notes
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles, make_maps
from cryoeq.pipelines.reconstruct.preflight import check_run
from cryoeq.pipelines.reconstruct.refine import REFERENCE_STEP, pose_from_reference
from cryoeq.pipelines.reconstruct.search import search_poses
from cryoeq.pipelines.reconstruct.supplied_maps import SuppliedMaps, compare_with_reference, read_supplied_maps
from cryoeq.pipelines.reconstruct.symmetry_check import name_symmetry, symmetry_rows
from cryoeq.pipelines.report import read_run
from cryoeq.reconstruction.known_poses import ReconstructedMaps
from cryoeq.reconstruction.state import Checkpointer
from cryoeq.runtime.device import choose_device, torch_threads
from cryoeq.runtime.distributed import is_main_process, process_group
from cryoeq.runtime.torchrun import torchrun_environment


def reconstruct(config: ReconstructConfig, *, resume: bool = False, doubts: Sequence[str] = ()) -> Iterator[Event]:
    """Reconstruct a map, with or without known poses.

    The processes that torchrun starts share the work; the main process writes.

    Writes ``run_data.star``, ``run_class001.mrc`` from all particles, unfiltered half maps, their FSC, pictures, a
    report, and the record of the run.

    Args:
        config: settings of the run.
        resume: go on from the checkpoints in the run folder, where there are any.
        doubts: warnings about the settings, for the run's record.

    Yields:
        Notes, progress, and a report.
    """
    device, started_s = choose_device(config.device), time.monotonic()
    # What is wrong with the input each process finds out by itself, before any waits for another.
    stack = build_stack(config, with_poses=takes_poses(config))
    if takes_poses(config):
        rows_of_one_frame(stack.star, config.particles, None)
    saved = Checkpoints.of_run(RunFolder(config.output), len(stack.table), device, resume=resume)
    supplied = read_supplied_maps(config, stack.table, has_started=saved.has(REFERENCE_STEP))
    notes = [*(Note(doubt, "warning") for doubt in doubts), *check_run(config, stack, device)]
    training_state = None
    if resume:
        require_same_settings(config)
        training_state = load_training_state(config, len(stack.table), device)

    def work(run: RunFolder, checkpoints: Checkpoints) -> Generator[Event, None, ReconstructionMetrics]:
        job = _Job(config, stack, supplied, run, device)
        yield from notes
        with torch_threads(config.threads):
            return (yield from job.work(checkpoints.run, training_state))

    with process_group(device):
        if not is_main_process():
            run = RunFolder(config.output)
            yield from work(run, saved)
            return
        settings = config.model_dump(mode="json")
        inputs = [config.particles, *stack.table.stack_paths[:1]]
        with RunFolder.create(
            config.output, command=sys.argv, settings=settings, inputs=inputs, device=str(device), resume=resume
        ) as run:
            run.keep_verdict(judge_run(RunFacts.unfinished(config.pose_inference)).to_json())
            try:
                metrics = yield from record_events(work(run, saved), run)
            except DivergedError as error:
                run.finish("failed", {"error": str(error)})
                _close(run)
                raise
            run.finish("done", metrics.to_json() | {"seconds": round(time.monotonic() - started_s, 2)})
            verdict = _close(run)
            saved.clear()
    if verdict.level == "not found":
        raise DivergedError(
            f"no structure was found: {verdict.doubts[0].text.removesuffix('.')}",
            f"The map, which is wrong, and the report on it are in {run.folder}",
            verdict.doubts[0].advice.removesuffix("."),
        )
    results = _rows(metrics, config) if metrics.classes is None else class_rows(metrics, config)
    rows = results | {"verdict": verdict.summary} | _next_command(verdict, metrics, run.folder)
    yield Report(f"Reconstruction in {run.folder}", rows)
    yield from _doubts(verdict)


def _close(run: RunFolder) -> RunVerdict:
    """Judge a run that has ended: verdict in its record, and report."""
    contents = read_run(run.folder)
    run.keep_verdict(contents.verdict.to_json())
    write_report(run.path("report.html"), contents)
    return contents.verdict


def _doubts(verdict: RunVerdict) -> Iterator[Note]:
    """The doubts that a verdict casts on a map, each with what to do."""
    for doubt in verdict.doubts:
        yield Note(f"{doubt.text} {doubt.advice}".rstrip(), "warning")


def _next_command(verdict: RunVerdict, metrics: ReconstructionMetrics, folder: Path) -> dict[str, str]:
    """The command to go on with, as a row of the report."""
    if metrics.half_map_resolution_angstrom is None:
        return {}
    half = folder / "run_half1_class001_unfil.mrc"
    command = ["cryoeq", "fsc", str(half)] if verdict.level == "found" else ["cryoeq", "screen", str(folder)]
    return {"next": shlex.join(command)}


@dataclass(frozen=True)
class _Job:
    """A reconstruction between taking the run folder and closing its record.

    Args:
        config: settings of the run.
        stack: the particles.
        supplied: mask and reference.
        run: the run folder.
        device: where to compute.
    """

    config: ReconstructConfig
    stack: ParticleStack
    supplied: SuppliedMaps
    run: RunFolder
    device: torch.device

    def work(
        self, checkpoint: Checkpointer, training_state: dict[str, Any] | None
    ) -> Generator[Event, None, ReconstructionMetrics]:
        """Poses, then maps, then files.

        Args:
            checkpoint: saves finished steps of a search.
            training_state: of a training to go on from; None without.
        """
        table, processes = self.stack.table, torchrun_environment().size
        among = f", {processes} processes" if processes > 1 else ""
        yield Note(
            f"{len(table)} particles of {table.box_size_px} px, {table.pixel_size_angstrom:g} Å; {self.device}{among}."
        )
        yield from self.supplied.notes
        yield from position_notes(self.stack)
        # A search reads each image once, into Fourier space, and keeps no other copy.
        is_search = self.config.pose_inference in {"search", "hybrid", "refine"}
        dataset = build_dataset(self.config, self.stack, working_box(self.config, self.stack), reads_once=is_search)
        yield from (Note(note, "warning" if note in dataset.warnings else "info") for note in dataset.notes)
        yield from diameter_notes(self.config, dataset.box_size_px * dataset.pixel_size_angstrom)
        if is_search:
            yield from compile_kernels(self.device)
        if self.config.search.classes != 1:
            return (yield from self._work_on_classes(dataset, checkpoint))
        return (yield from self._work_on_one(dataset, checkpoint, training_state))

    def _work_on_one(
        self, dataset: ParticleDataset, checkpoint: Checkpointer, training_state: dict[str, Any] | None
    ) -> Generator[Event, None, ReconstructionMetrics]:
        """Poses and maps of one structure."""
        is_search = self.config.pose_inference in {"search", "hybrid"}
        posed = yield from self._infer_poses(dataset, checkpoint, training_state)
        inferred_at = dataset
        yield from (Note(text, "warning") for text in dataset.new_warnings())
        if dataset.box_size_px != self.stack.table.box_size_px or is_search:
            # Maps are made at the box of the files; its contrast is decided already.
            sign = dataset.preprocessing.sign
            dataset = build_dataset(self.config, self.stack, None, sign=sign, reads_once=posed.maps is not None)
        posed = yield from refine_where_it_gains(self.config, inferred_at, dataset, posed, self.device, checkpoint)
        inferred_at, dataset = (with_ctf(each, posed.ctf) for each in (inferred_at, dataset))
        yield Progress("reconstructing", 0, 1)
        maps = posed.maps or make_maps(dataset, posed, self.device, self.config.search.symmetry)
        separated = yield from separate_copies(
            dataset, posed, seed=self.config.seed, is_known=self.config.pose_inference == "known"
        )
        if separated.half_set is not posed.half_set:
            maps = make_maps(dataset, separated, self.device, self.config.search.symmetry)
        posed = separated
        yield Progress("reconstructing", 1, 1)
        if self.config.pose_inference == "amortized":
            share = yield from check_poses(self.config, inferred_at, maps.all, posed, self.device)
            posed = replace(posed, metrics=replace(posed.metrics, wrong_optimum_share=share))
        posed = yield from with_junk_probability(self.config, inferred_at, maps, posed, self.device)
        yield from (Note(text, "warning") for text in dataset.new_warnings())
        if not is_main_process():
            return ReconstructionMetrics()
        posed = replace(posed, metrics=assess_maps(inferred_at, maps, posed, self.run))
        posed = replace(posed, metrics=(yield from name_symmetry(self.config, inferred_at, maps, posed)))
        metrics = yield from self._write_results(maps, posed)
        yield from independence_notes(metrics, self.stack.table.pixel_size_angstrom)
        return (yield from self._check_symmetry(dataset, posed, maps, metrics))

    def _work_on_classes(
        self, dataset: ParticleDataset, checkpoint: Checkpointer
    ) -> Generator[Event, None, ReconstructionMetrics]:
        """Poses and maps of several classes, or of one where there is one structure only."""
        # Not above, because of scipy.optimize.
        from cryoeq.pipelines.reconstruct.class_results import ClassJob, write_classes
        from cryoeq.pipelines.reconstruct.classes import search_classes

        config, stack, device = self.config, self.stack, self.device
        found = yield from search_classes(config, dataset, device, checkpoint)
        if found is None:
            search = config.search.model_copy(update={"classes": 1})
            of_one = replace(self, config=config.model_copy(update={"search": search}))
            return (yield from of_one._work_on_one(dataset, checkpoint, None))
        yield from (Note(text, "warning") for text in dataset.new_warnings())
        stored = build_dataset(config, stack, None, sign=dataset.preprocessing.sign)
        rows = map(found.rows_in_map, range(len(found.symmetries)))
        classes = list(map(ClassRows, rows, found.symmetries, found.resolution_shells))
        posed = yield from refine_classes_where_it_gains(
            config, dataset, stored, found.posed, classes, device=device, checkpoint=checkpoint
        )
        found = replace(found, posed=posed)
        job = ClassJob(config, stack, dataset, stored, self.supplied, self.run, device)
        return (yield from write_classes(job, found))

    def _infer_poses(
        self, dataset: ParticleDataset, checkpoint: Checkpointer, training_state: dict[str, Any] | None
    ) -> Generator[Event, None, PosedParticles]:
        config, run, device = self.config, self.run, self.device
        match config.pose_inference:
            case "known":
                return (yield from _take_poses(self.stack))
            case "search":
                return (yield from search_poses(config, dataset, device, checkpoint))
            case "refine":
                start = self.supplied.start
                return (yield from pose_from_reference(config, dataset, self.stack, start, device, checkpoint))
            case "hybrid":
                from cryoeq.pipelines.reconstruct.hybrid_views import search_with_views  # not above: networks

                return (yield from search_with_views(config, dataset, run, device, checkpoint))
            case "amortized":
                from cryoeq.pipelines.reconstruct.amortized import infer_by_encoder

                return (yield from infer_by_encoder(config, dataset, self.stack.star, run, device, training_state))

    def _write_results(
        self, maps: ReconstructedMaps, posed: PosedParticles
    ) -> Generator[Event, None, ReconstructionMetrics]:
        """Maps, poses and pictures; the metrics."""
        config, run, supplied, metrics, resolved = self.config, self.run, self.supplied, posed.metrics, None
        if maps.halves is not None:
            resolved = resolve_half_maps(maps.halves, supplied.mask, self.stack.table.ctf)
            yield from resolved.notes()
            yield from cut_notes(
                config, resolved.diameter_angstrom, maps.all.box_size_px * maps.all.pixel_size_angstrom
            )
            metrics = resolved.into(metrics)
        write_class_maps(run, 1, 1, maps, resolved)
        if supplied.reference is not None:
            agreed = compare_with_reference(maps.all, supplied.reference)
            metrics = replace(metrics, reference_resolution_angstrom=agreed)
        self._write_poses("run_data", posed)
        if config.both_hands:
            for name, volume in named_maps(1, 1, maps, resolved).items():
                mirrored = replace(volume, values=mirror_map(volume.values))
                write_map(run.path(mirrored_name(name)), mirrored)
            self._write_poses("run_data_mirrored", replace(posed, poses=posed.poses.of_other_hand()))
        return metrics

    def _write_poses(self, stem: str, posed: PosedParticles) -> None:
        """As a star file, and as a table of cryoSPARC where the input is one."""
        write_particle_star(
            self.run.path(f"{stem}.star"),
            self.stack.star,
            posed.poses,
            half_set=posed.half_set,
            confidence=posed.confidence,
            figure_of_merit=posed.figure_of_merit,
            junk_probability=None if posed.junk is None else posed.junk.any_kind,
            ctf=posed.ctf,
            # What an earlier run told by its own map and poses is not true of these.
            outdated=() if self.config.pose_inference == "known" else (JUNK_PROBABILITY, MAX_PROBABILITY),
        )
        given = self.config.particles
        if given.suffix == CS_SUFFIX:
            write_cs(self.run.path(f"{stem}.cs"), given, posed.poses, half_set=posed.half_set, ctf=posed.ctf)

    def _check_symmetry(
        self, dataset: ParticleDataset, posed: PosedParticles, maps: ReconstructedMaps, metrics: ReconstructionMetrics
    ) -> Generator[Event, None, ReconstructionMetrics]:
        """The metrics with those of in-plane symmetry, where requested."""
        if not self.config.in_plane_symmetry:
            return metrics
        from cryoeq.pipelines.reconstruct.in_plane_symmetry import (
            check_in_plane_symmetry,  # not above: brings networks
        )

        seed, device = self.config.seed, self.device
        return (yield from check_in_plane_symmetry(self.run, dataset, posed, maps, metrics, seed=seed, device=device))


def _take_poses(stack: ParticleStack) -> Generator[Event, None, PosedParticles]:
    """The poses and half sets of the star file."""
    table = stack.table
    if table.poses is None:
        raise ValueError("the poses were asked for before")
    yield from given_half_set_notes(table.half_set)
    return PosedParticles(table.poses, table.half_set)


def _rows(metrics: ReconstructionMetrics, config: ReconstructConfig) -> dict[str, str]:
    files = {"map": "run_class001.mrc", "poses": "run_data.star", "report": "report.html"}
    rows = {label: str(config.output / name) for label, name in files.items()}
    if metrics.explained_variance is not None:
        rows["variance explained by the model"] = f"{metrics.explained_variance:.1%}"
    if metrics.held_out_median_deg is not None:
        rows["encoder, held-out particles (median)"] = f"{metrics.held_out_median_deg:.1f}°"
    rows |= _resolution_rows(metrics)
    if metrics.bfactor_angstrom2:
        rows["B-factor of run_postprocess.mrc"] = f"{metrics.bfactor_angstrom2:.0f} Å²"
    if metrics.map_diameter_angstrom is not None:
        rows["diameter of the map"] = f"{metrics.map_diameter_angstrom:.0f} Å"
    if metrics.hand is not None:
        rows["hand"] = metrics.hand.text
    share, rest = metrics.nonspherical_share, metrics.nonspherical_resolution_angstrom
    if share is not None and share < MIN_NONSPHERICAL:
        rows["without their spherical averages to"] = "no resolution" if rest is None else f"{rest:.1f} Å"
    rows |= _particle_rows(metrics)
    if config.input.compare_to is not None:
        agreed = metrics.reference_resolution_angstrom
        rows["agrees with the reference to (FSC 0.5)"] = "no resolution" if agreed is None else f"{agreed:.1f} Å"
    return rows | symmetry_rows(metrics)


def _particle_rows(metrics: ReconstructionMetrics) -> dict[str, str]:
    shares = {
        "junk, expected share of the particles": metrics.junk_share,
        "particles that the map does not explain": metrics.unexplained_share,
    }
    return {label: f"{share:.0%}" for label, share in shares.items() if share is not None}


def _resolution_rows(metrics: ReconstructionMetrics) -> dict[str, str]:
    """Resolution of the half maps: unmasked, masked, corrected for the mask, beyond zeros of the CTF."""
    named = {
        "unmasked": metrics.half_map_resolution_angstrom,
        "unmasked, beyond a zero of the CTF": metrics.resolution_beyond_ctf_zeros_angstrom,
        "masked": metrics.masked_resolution_angstrom,
        "corrected for the mask": metrics.corrected_resolution_angstrom,
    }
    doubt = ", but are not independent" if metrics.dependent_halves else ""
    return {
        f"half maps agree to (FSC {HALF_MAP_THRESHOLD:g}, {name})": f"{resolution:.1f} Å{doubt}"
        for name, resolution in named.items()
        if resolution is not None
    }
