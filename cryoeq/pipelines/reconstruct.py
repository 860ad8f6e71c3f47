"""``cryoeq reconstruct``: from particles to maps."""

import math
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import torch

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note, Progress, Report
from cryoeq.domain.launched import launched
from cryoeq.domain.processes import is_first, joined
from cryoeq.domain.volume import Volume
from cryoeq.errors import DivergedError, ParticleFileError
from cryoeq.evaluation.alignment import mirror_map
from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD, compare_maps
from cryoeq.io.cryosparc import CS_SUFFIX, write_cs
from cryoeq.io.mrc import write_map
from cryoeq.io.particles import ParticleStack, write_particle_star
from cryoeq.io.star import decimals
from cryoeq.outputs.evaluation_plots import plot_fsc
from cryoeq.outputs.fsc_files import write_fsc_star, write_fsc_xml
from cryoeq.outputs.reconstruction_plots import plot_map
from cryoeq.outputs.report import write_report
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.build import build_dataset, build_stack, working_box
from cryoeq.pipelines.device import choose_device, threads
from cryoeq.pipelines.given_maps import GivenMaps, compare_with_reference, read_given_maps
from cryoeq.pipelines.journal import keep_journal
from cryoeq.pipelines.kept_steps import Keep, KeptSteps
from cryoeq.pipelines.known import KnownReconstruction, filter_by_halves, reconstruct_known
from cryoeq.pipelines.posed import PosedParticles
from cryoeq.pipelines.report import read_run
from cryoeq.pipelines.search import search_poses


def reconstruct(config: ReconstructConfig, *, resume: bool = False) -> Iterator[Event]:
    """Reconstruct a map, with or without known poses.

    The processes that torchrun starts share the work out; the first of them writes.

    Writes ``run_data.star``, ``run_class001.mrc`` from all particles, unfiltered half maps, their FSC, pictures, a
    report, and the record of the run.

    Args:
        config: what to do.
        resume: go on from the checkpoint in the run folder, where there is one; a search, from its last finished step.

    Yields:
        Notes, progress, and a report.
    """
    device, started_s = choose_device(config.device), time.monotonic()
    # What is wrong with the input each process finds out by itself, before any waits for another.
    stack = build_stack(config, with_poses=config.pose_inference == "known")
    given = read_given_maps(config, stack.table)
    checkpoint = _find_checkpoint(config, len(stack.table), device) if resume else None

    def work(run: RunFolder, kept: KeptSteps) -> Generator[Event, None, dict[str, float]]:
        with threads(config.threads):
            return (yield from _reconstruct(config, stack, given, run, device, checkpoint, keep=kept.keep))

    with joined(device):
        if not is_first():
            run = RunFolder(config.output)
            yield from work(run, KeptSteps.of_run(run, len(stack.table), device, resume=resume))
            return
        settings = config.model_dump(mode="json")
        inputs = [config.particles, *stack.table.stack_paths[:1]]
        with RunFolder.create(
            config.output, command=sys.argv, settings=settings, inputs=inputs, device=str(device), resume=resume
        ) as run:
            kept = KeptSteps.of_run(run, len(stack.table), device, resume=resume)
            try:
                results = yield from keep_journal(work(run, kept), run)
            except DivergedError as error:
                run.finish("failed", {"error": str(error)})
                write_report(run.path("report.html"), read_run(run.folder))
                raise
            run.finish("done", results | {"seconds": round(time.monotonic() - started_s, 2)})
            kept.clear()
            write_report(run.path("report.html"), read_run(run.folder))
    yield Report(f"Reconstruction in {run.folder}", _rows(results, config))


def _reconstruct(
    config: ReconstructConfig,
    stack: ParticleStack,
    given: GivenMaps,
    run: RunFolder,
    device: torch.device,
    checkpoint: dict[str, Any] | None,
    *,
    keep: Keep,
) -> Generator[Event, None, dict[str, float]]:
    """Everything between taking the folder and closing its record; the results."""
    among = f", {launched().size} processes" if launched().size > 1 else ""
    yield Note(
        f"{len(stack.table)} particles of {stack.table.box_size_px} px, "
        f"{stack.table.pixel_size_angstrom:g} Angstrom; {device}{among}."
    )
    yield from given.notes
    dataset = build_dataset(config, stack, None)
    yield from (Note(note, "warning" if note in stack.notes else "info") for note in dataset.notes)
    match config.pose_inference:
        case "known":
            posed = yield from _take_poses(stack)
        case "amortized":
            from cryoeq.pipelines.amortized import infer_by_encoder

            posed = yield from infer_by_encoder(config, stack, run, device, checkpoint)
        case "search" | "hybrid":
            posed = yield from _search(config, stack, run, device, keep)
    yield Progress("reconstructing", 0, 1)
    maps = posed.maps or _make_maps(dataset, posed, device, config.search.symmetry)
    yield Progress("reconstructing", 1, 1)
    if not is_first():
        return {}
    results = _write_results(config, stack, given, run, maps, posed)
    return results | (yield from _check_symmetry(config, run, dataset, posed, maps, results))


def _write_results(
    config: ReconstructConfig, stack: ParticleStack, given: GivenMaps, run: RunFolder, maps: KnownReconstruction,
    posed: PosedParticles,
) -> dict[str, float]:  # fmt: skip
    """Maps, poses and pictures; the results."""
    results = posed.results | _write_maps(run, maps, given.mask)
    if given.reference is not None and (agreed := compare_with_reference(maps.all, given.reference)) is not None:
        results |= {"reference_resolution_angstrom": agreed}
    _write_poses(run, "run_data.star", stack, posed)
    if config.particles.suffix == CS_SUFFIX:
        write_cs(run.path("run_data.cs"), config.particles, posed.poses, half_set=posed.half_set)
    if config.both_hands:
        for name, volume in _named_maps(maps).items():
            write_map(run.path(f"{name}_mirrored.mrc"), replace(volume, values=mirror_map(volume.values)))
        _write_poses(run, "run_data_mirrored.star", stack, replace(posed, poses=posed.poses.of_other_hand()))
    return results


def _check_symmetry(
    config: ReconstructConfig,
    run: RunFolder,
    dataset: ParticleDataset,
    posed: PosedParticles,
    maps: KnownReconstruction,
    results: dict[str, float],
) -> Generator[Event, None, dict[str, float]]:
    """Figures on in-plane symmetry, where they were asked for."""
    if not config.in_plane_symmetry:
        return {}
    from cryoeq.pipelines.in_plane_symmetry import check_in_plane_symmetry  # not above, because of escnn

    resolution = results.get("half_map_resolution_angstrom")
    return (
        yield from check_in_plane_symmetry(
            run,
            dataset,
            posed,
            maps,
            resolution_angstrom=resolution,
            seed=config.seed,
            device=choose_device(config.device),
        )
    )


def _write_poses(run: RunFolder, name: str, stack: ParticleStack, posed: PosedParticles) -> None:
    write_particle_star(run.path(name), stack.star, posed.poses, half_set=posed.half_set, extra_columns=posed.columns)


def _named_maps(maps: KnownReconstruction) -> dict[str, Volume]:
    """Files of the maps, without ending."""
    every = {"run_class001": maps.all}
    if maps.halves is None:
        return every
    halves = (maps.halves.first, maps.halves.second)
    return every | {f"run_half{number}_class001_unfil": volume for number, volume in enumerate(halves, 1)}


def _find_checkpoint(config: ReconstructConfig, count: int, device: torch.device) -> dict[str, Any] | None:
    # Not imported above: escnn, which only an encoder needs, takes a second.
    from cryoeq.pipelines.amortized import find_checkpoint

    return find_checkpoint(config, count, device)


def _take_poses(stack: ParticleStack) -> Generator[Event, None, PosedParticles]:
    """The poses and half sets of the star file."""
    table = stack.table
    if table.poses is None:
        raise ParticleFileError(
            f"{stack.star.path or 'the star file'}: no poses",
            "--pose-inference known needs rlnAngleRot, rlnAngleTilt and rlnAnglePsi",
            "Leave the option out to infer them",
        )
    if table.half_set is None:
        yield Note("The star file has no rlnRandomSubset: no half maps are made.", "warning")
    return PosedParticles(table.poses, table.half_set, {}, {})


def _search(
    config: ReconstructConfig, stack: ParticleStack, run: RunFolder, device: torch.device, keep: Keep
) -> Generator[Event, None, PosedParticles]:
    """Search for the poses, alone or with an encoder, at a working box where the images are large."""
    dataset = build_dataset(config, stack, working_box(config, stack))
    if config.pose_inference == "hybrid":
        from cryoeq.pipelines.hybrid import search_and_learn  # not above, because of escnn

        found = yield from search_and_learn(config, dataset, run, device, keep)
    else:
        found = yield from search_poses(config, dataset, device, keep)
    if found.decoded is not None and is_first():
        write_map(run.path("decoder_class001.mrc"), found.decoded)
    merit = torch.exp(-0.5 * found.rotation_sigma_rad.square())
    columns = {
        "rlnMaxValueProbDistribution": decimals(found.confidence.numpy()),
        "rlnParticleFigureOfMerit": decimals(merit.numpy()),
    }
    return PosedParticles(found.poses, found.half_set, columns, found.figures, found.half_poses, found.maps)


def _make_maps(
    dataset: ParticleDataset, posed: PosedParticles, device: torch.device, symmetry: str
) -> KnownReconstruction:
    """Maps from poses; where the halves were posed independently, half maps from those poses."""
    if posed.half_poses is None:
        return reconstruct_known(dataset, posed.poses, posed.half_set, device=device, symmetry=symmetry)
    halves = reconstruct_known(dataset, posed.half_poses, posed.half_set, device=device, symmetry=symmetry).halves
    every = reconstruct_known(dataset, posed.poses, device=device, symmetry=symmetry)
    return every if halves is None else filter_by_halves(every.all, halves)


def _write_maps(run: RunFolder, maps: KnownReconstruction, mask: Volume | None) -> dict[str, float]:
    """Maps, pictures and the half maps' FSC; their resolution."""
    for name, volume in _named_maps(maps).items():
        write_map(run.path(f"{name}.mrc"), volume)
    plot_map(run.path("slices.png"), run.path("projections.png"), maps.all)
    if maps.halves is None:
        return {}
    phases = torch.Generator().manual_seed(0)
    curves = compare_maps(maps.halves.first, maps.halves.second, mask, generator=phases)
    write_fsc_star(run.path("run_fsc.star"), curves)
    write_fsc_xml(run.path("run_fsc.xml"), curves)
    plot_fsc(run.path("run_fsc.png"), curves)
    resolution = curves.resolutions_angstrom(HALF_MAP_THRESHOLD)["unmasked"]
    return {"half_map_resolution_angstrom": resolution} if resolution and math.isfinite(resolution) else {}


def _rows(results: dict[str, float], config: ReconstructConfig) -> dict[str, str]:
    files = {"map": "run_class001.mrc", "poses": "run_data.star", "report": "report.html"}
    rows = {label: str(config.output / name) for label, name in files.items()}
    if "explained_variance" in results:
        rows["variance explained by the model"] = f"{100 * results['explained_variance']:.1f} %"
    if "held_out_median_deg" in results:
        rows["encoder alone on held-out particles (median)"] = f"{results['held_out_median_deg']:.1f} degrees"
    if "half_map_resolution_angstrom" in results:
        rows["half maps agree to (FSC 0.143, unmasked)"] = f"{results['half_map_resolution_angstrom']:.1f} Angstrom"
    if "reference_resolution_angstrom" in results:
        rows["agrees with the reference to (FSC 0.5)"] = f"{results['reference_resolution_angstrom']:.1f} Angstrom"
    return rows
