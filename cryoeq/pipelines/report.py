"""``cryoeq report``: verdict and contents of a run folder on one page."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cryoeq.config.report import ReportConfig
from cryoeq.domain.events import Event, Note, Report
from cryoeq.errors import CryoEqError
from cryoeq.evaluation.class_verdict import judge_class, judge_classes
from cryoeq.evaluation.particle_fit import fit_particles
from cryoeq.evaluation.verdict import judge_run
from cryoeq.io.labels import IMAGE_NAME
from cryoeq.io.particles import star_poses
from cryoeq.io.star import StarTable, read_star
from cryoeq.outputs.progress_file import read_progress
from cryoeq.outputs.report import write_report
from cryoeq.outputs.report_contents import ComparedParticles, RunContents
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.reconstruct.event_log import PROGRESS_FILE
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.pipelines.reconstruction_run import open_particles, read_reconstruction_job
from cryoeq.pipelines.run_classes import ClassOfRun, read_class

_SOURCES = {
    "search": "search",
    "hybrid": "search and encoder",
    "amortized": "encoder",
    "known": "star file",
    "refine": "refinement",
}
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
    missing = [each.particles for each in contents.classes if isinstance(each.particles, str)]
    yield from (Note(text, "warning") for text in dict.fromkeys(missing))
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
    metrics = ReconstructionMetrics.from_json(job.get("results", {}))
    star, n_classes = _read_poses(run), metrics.n_classes
    classes = [read_class(run, job, star, number) for number in range(1, n_classes + 1)]
    if n_classes == 1:
        verdict, rows = judge_run(classes[0].facts), [dict[str, str]()]
    else:
        facts = [each.class_facts for each in classes]
        verdicts = [judge_class(each) for each in facts]
        verdict = judge_classes(facts, verdicts)
        rows = [each.row(its_own) for each, its_own in zip(classes, verdicts, strict=True)]
    compared = _compare_particles(job, classes, star, datadir)
    return RunContents(
        name=folder.resolve().name,
        job=job,
        verdict=verdict,
        facts=_key_metrics(job, classes, star, metrics),
        classes=[each.contents(row, of_it) for each, row, of_it in zip(classes, rows, compared, strict=True)],
        progress=read_progress(run.path(PROGRESS_FILE)),
        notes=run.notes(),
        junk={each.number: each.junk for each in classes if each.junk is not None},
        class_moves=metrics.class_moves,
        class_agreement=metrics.class_agreement,
    )


def _read_poses(run: RunFolder) -> StarTable | None:
    path = run.path("run_data.star")
    return read_star(path) if path.is_file() else None


def _key_metrics(
    job: Mapping[str, Any], classes: Sequence[ClassOfRun], star: StarTable | None, metrics: ReconstructionMetrics
) -> dict[str, str]:
    seconds, source = job.get("results", {}).get("seconds"), job["settings"]["pose_inference"]
    symmetry, first = job["settings"]["search"]["symmetry"], classes[0]
    found = {"Poses from": _SOURCES.get(source, source)}
    if star is not None:
        found["Particles"] = f"{len(star):,}"
    if first.volume is not None:
        found["Box and pixel"] = f"{first.volume.box_size_px} px, {first.volume.pixel_size_angstrom:.4g} Å"
    found |= _facts_of_one(first, symmetry) if len(classes) == 1 else _facts_of_several(metrics)
    if seconds is not None:
        found["Time"] = f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
    return found | (first.view_facts() if len(classes) == 1 else {})


def _facts_of_one(whole: ClassOfRun, symmetry: str) -> dict[str, str]:
    found = whole.resolution_facts()
    if symmetry != "C1":
        found["Symmetry"] = symmetry
    if whole.facts.apparent_symmetry is not None:
        found["Looks like"] = whole.facts.apparent_symmetry
    return found


def _facts_of_several(metrics: ReconstructionMetrics) -> dict[str, str]:
    agreement = metrics.class_agreement
    found = {"Classes": f"{metrics.n_classes}"}
    return found if agreement is None else found | {"Classes of two starts agree": f"{agreement:.2f}"}


def _compare_particles(
    job: Mapping[str, Any], classes: Sequence[ClassOfRun], star: StarTable | None, datadir: Path | None
) -> list[ComparedParticles | str]:
    """Of each class a sample of its particles beside their predictions, or the reason why there is none."""
    volumes = [each.volume for each in classes if each.volume is not None]
    if not volumes or star is None:
        return ["The run left no map with poses with which particles could be compared."] * len(classes)
    poses, box = star_poses(star), volumes[0].box_size_px
    try:
        stack, dataset = open_particles(
            job, datadir, count=len(poses), box_size_px=box, max_box_px=_COMPARED_PX, star=star
        )
        names, compared = stack.star.particles[IMAGE_NAME], list[ComparedParticles | str]()
        for each in classes:
            if each.volume is None or not len(each.rows):
                compared.append("The class has no map or no particles.")
                continue
            count = min(len(each.rows), max(_MIN_SAMPLE, _SAMPLE_PX // box**2 // len(classes)))
            rows = each.rows[torch.linspace(0, len(each.rows) - 1, count, dtype=torch.float64).round().long()]
            limit = _limit_angstrom(each)
            fits = fit_particles(dataset, poses, each.volume, rows, resolution_angstrom=limit)
            compared.append(ComparedParticles(fits, len(each.rows), names[rows.numpy()].tolist(), limit))
    except CryoEqError as error:
        return [f"Particle images cannot be shown: not found, or changed. {error}"] * len(classes)
    return compared


def _limit_angstrom(of_class: ClassOfRun) -> float:
    """Twice the resolution of the half maps, a quarter of the box at most; that without half maps."""
    coarsest, agreed = of_class.facts.side_angstrom / _MIN_SHELL, of_class.facts.resolution_angstrom
    return coarsest if agreed is None or not math.isfinite(agreed) else min(coarsest, 2 * agreed)
