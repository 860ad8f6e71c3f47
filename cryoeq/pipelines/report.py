"""``cryoeq report``: verdict and contents of a run folder on one page."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cryoeq.config.report import ReportConfig
from cryoeq.domain.events import Event, Note, Report
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.errors import CryoEqError, MapFileError
from cryoeq.evaluation.orientations import OrientationSummary, summarise_orientations
from cryoeq.evaluation.particle_fit import fit_particles
from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD, FscCurves, require_mask
from cryoeq.evaluation.verdict import RunFacts, judge_run
from cryoeq.io.euler import rotations_from_euler_deg
from cryoeq.io.labels import IMAGE_NAME, MAX_PROBABILITY
from cryoeq.io.mrc import read_map
from cryoeq.io.particles import star_ctf, star_euler_deg, star_poses
from cryoeq.io.star import StarTable, read_star
from cryoeq.outputs.progress_file import read_progress
from cryoeq.outputs.report import ComparedParticles, RunContents, write_report
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.reconstruct.event_log import PROGRESS_FILE
from cryoeq.pipelines.reconstruct.half_map_resolution import HalfMapResolution, compare_half_maps
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.pipelines.reconstruction_run import open_particles, read_reconstruction_job

_SOURCES = {"search": "search", "hybrid": "search and encoder", "amortized": "encoder", "known": "star file"}
_COMPARED_PX = 64  # box in which particles are compared with their predictions
# Pixels to read for that, which bounds the cost of a report for any stack, and minimal number of particles.
_SAMPLE_PX, _MIN_SAMPLE = 2**23, 64
_MIN_SHELL = 4


def report(config: ReportConfig) -> Iterator[Event]:
    """Write the report on a run.

    Yields:
        Notes on missing files, and one report.

    Raises:
        OutputError: the folder holds no reconstruction, or the report cannot be written.
        CryoEqError: a file of the run is damaged.
    """
    path = config.output or config.run / "report.html"
    contents = read_run(config.run, config.datadir)
    if isinstance(contents.particles, str):
        yield Note(contents.particles, "warning")
    write_report(path, contents)
    megabytes = path.stat().st_size / 1e6
    rows = {"verdict": contents.verdict.summary, "file": f"{path} ({megabytes:.1f} MB)"}
    yield Report(f"Report on {config.run}", rows)


def read_run(folder: Path, datadir: Path | None = None) -> RunContents:
    """Contents of the report on a run, from its folder and its particle stacks.

    Args:
        folder: run folder of a reconstruction, finished or not.
        datadir: folder in which stacks are looked for first.
    """
    run = RunFolder(folder)
    job = read_reconstruction_job(run, "Give the folder that cryoeq reconstruct -o made; in a demo it is map/")
    volume, star = _read_map(run, "run_class001.mrc"), _read_poses(run)
    resolved = _read_halves(run, job, star)
    curves = None if resolved is None else resolved.curves
    views = _summarise_views(job, star)
    facts = _facts(job, volume, curves, star, views)
    poses = None if star is None else star_poses(star)
    return RunContents(
        name=folder.resolve().name,
        job=job,
        verdict=judge_run(facts),
        facts=_key_metrics(job, facts, volume, star, resolved) | _view_metrics(views),
        volume=volume,
        postprocessed=_read_surface(run, resolved),
        curves=curves,
        ctf_power=None if resolved is None else resolved.ctf_power,
        dips=() if resolved is None else resolved.dips,
        poses=poses,
        progress=read_progress(run.path(PROGRESS_FILE)),
        notes=run.notes(),
        particles=_compare_particles(job, volume, poses, _limit_angstrom(facts), datadir),
    )


def _read_map(run: RunFolder, name: str) -> Volume | None:
    path = run.path(name)
    return read_map(path) if path.is_file() else None


def _read_halves(run: RunFolder, job: Mapping[str, Any], star: StarTable | None) -> HalfMapResolution | None:
    """Agreement of the half maps, within the mask of the run; None where they are not there."""
    first, second = (_read_map(run, f"run_half{half}_class001_unfil.mrc") for half in (1, 2))
    if first is None or second is None:
        return None
    ctf = star_ctf(star) if star is not None and job["settings"]["input"]["with_ctf"] else None
    mask = _read_map(run, "run_mask.mrc")
    if mask is not None:
        require_mask(mask, first, name=str(run.path("run_mask.mrc")))
    return compare_half_maps(HalfMaps(first, second), mask, ctf)


def _read_surface(run: RunFolder, resolved: HalfMapResolution | None) -> Volume | None:
    """The post-processed map within the mask of the run; None for runs without."""
    postprocessed = _read_map(run, "run_postprocess.mrc")
    if postprocessed is None or resolved is None or resolved.mask is None:
        return None
    if (n := postprocessed.box_size_px) != resolved.mask.box_size_px:
        found = f"{run.path('run_postprocess.mrc')} has a box of {n} px, the half maps {resolved.mask.box_size_px} px"
        raise MapFileError(found, "Expected the files of one run", "Restore the file, or remove it")
    return replace(postprocessed, values=postprocessed.values * resolved.mask.values)


def _read_poses(run: RunFolder) -> StarTable | None:
    path = run.path("run_data.star")
    return read_star(path) if path.is_file() else None


def _summarise_views(job: Mapping[str, Any], star: StarTable | None) -> OrientationSummary | None:
    if star is None:
        return None
    euler = star_euler_deg(star)
    symmetry, generator = job["settings"]["search"]["symmetry"], torch.Generator().manual_seed(0)
    rotations = rotations_from_euler_deg(euler)
    return summarise_orientations(rotations, euler[:, 2].deg2rad(), symmetry=symmetry, generator=generator)


def _view_metrics(views: OrientationSummary | None) -> dict[str, str]:
    return {} if views is None else {"Views: E_od, SCF*": f"{views.efficiency:.2f}, {views.scf_star:.2f}"}


def _facts(
    job: Mapping[str, Any],
    volume: Volume | None,
    curves: FscCurves | None,
    star: StarTable | None,
    views: OrientationSummary | None,
) -> RunFacts:
    settings = job["settings"]
    side = 0.0 if volume is None else volume.box_size_px * volume.pixel_size_angstrom
    is_searched = settings["pose_inference"] in {"search", "hybrid"}
    metrics = ReconstructionMetrics.from_json(job.get("results", {}))
    has_probabilities = star is not None and MAX_PROBABILITY in star.particles
    return RunFacts(
        status=job["status"],
        error=job.get("results", {}).get("error"),
        pose_inference=settings["pose_inference"],
        starts=settings["search"]["multi_start"]["min"],
        side_angstrom=side,
        resolution_angstrom=None if curves is None else curves.resolutions_angstrom(HALF_MAP_THRESHOLD)["unmasked"],
        shared_angstrom=side / max(settings["search"]["consensus"]["shells"]) if is_searched else None,
        probabilities=star.floats(MAX_PROBABILITY).tolist() if star is not None and has_probabilities else None,
        warnings=[note["text"] for note in job.get("notes", []) if note["level"] == "warning"],
        scf_star=None if views is None else views.scf_star,
        dependent_halves=metrics.dependent_halves,
        nonspherical_share=metrics.nonspherical_share,
        nonspherical_angstrom=metrics.nonspherical_resolution_angstrom,
        unexplained_share=metrics.unexplained_share,
        explained_signal=metrics.explained_signal_share,
        junk_share=metrics.junk_share,
        broken_share=metrics.broken_share or 0.0,
        wrong_optimum_share=metrics.wrong_optimum_share,
        symmetry=settings["search"]["symmetry"],
        apparent_symmetry=metrics.apparent_symmetry,
    )


def _key_metrics(
    job: Mapping[str, Any],
    facts: RunFacts,
    volume: Volume | None,
    star: StarTable | None,
    resolved: HalfMapResolution | None,
) -> dict[str, str]:
    resolution, seconds = facts.resolution_angstrom, job.get("results", {}).get("seconds")
    symmetry = job["settings"]["search"]["symmetry"]
    metrics = {"Poses from": _SOURCES.get(facts.pose_inference, facts.pose_inference)}
    if star is not None:
        metrics["Particles"] = f"{len(star):,}"
    if volume is not None:
        metrics["Box and pixel"] = f"{volume.box_size_px} px, {volume.pixel_size_angstrom:.4g} Å"
    if resolution is not None:
        metrics["Half maps, unmasked"] = f"{resolution:.1f} Å" if math.isfinite(resolution) else "no resolution"
    corrected = None if resolved is None else resolved.resolution_angstrom("corrected")
    if corrected is not None:
        metrics["Half maps, corrected for the mask"] = f"{corrected:.1f} Å"
    if symmetry != "C1":
        metrics["Symmetry"] = symmetry
    if facts.apparent_symmetry is not None:
        metrics["Looks like"] = facts.apparent_symmetry
    if seconds is not None:
        metrics["Time"] = f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
    return metrics


def _compare_particles(
    job: Mapping[str, Any], volume: Volume | None, poses: Poses | None, limit_angstrom: float, datadir: Path | None
) -> ComparedParticles | str:
    """A sample of the particles beside their predictions, or the reason why there is none."""
    if volume is None or poses is None:
        return "The run left no map with poses with which particles could be compared."
    try:
        stack, dataset = open_particles(
            job, datadir, count=len(poses), box_size_px=volume.box_size_px, max_box_px=_COMPARED_PX
        )
        box = volume.box_size_px
        count = min(len(poses), max(_MIN_SAMPLE, _SAMPLE_PX // box**2))
        rows = torch.linspace(0, len(poses) - 1, count, dtype=torch.float64).round().long()
        fits = fit_particles(dataset, poses, volume, rows, resolution_angstrom=limit_angstrom)
    except CryoEqError as error:
        return f"Particle images cannot be shown: not found, or changed. {error}"
    names = stack.star.particles[IMAGE_NAME][rows.numpy()].tolist()
    return ComparedParticles(fits, len(poses), names, limit_angstrom)


def _limit_angstrom(facts: RunFacts) -> float:
    """Twice the resolution of the half maps, a quarter of the box at most; that without half maps."""
    coarsest, agreed = facts.side_angstrom / _MIN_SHELL, facts.resolution_angstrom
    return coarsest if agreed is None else min(coarsest, 2 * agreed)
