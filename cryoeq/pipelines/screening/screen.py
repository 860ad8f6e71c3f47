"""``cryoeq screen``: gaps in the angular coverage of a set of particles, and scores that find junk particles."""

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from cryoeq.config.screen import ScreenConfig
from cryoeq.domain.events import Event, Note, Report
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import HalfMaps
from cryoeq.evaluation.particle_scorers import z_scores
from cryoeq.evaluation.screened_particles import ScreenedParticles
from cryoeq.io.euler import view_angles_deg
from cryoeq.io.labels import SELECTION_Z_SCORE
from cryoeq.io.mrc import read_map
from cryoeq.io.particles import pose_notes, read_table, star_half_set, star_poses, write_particle_star
from cryoeq.io.star import StarTable, read_star
from cryoeq.io.text import write_json
from cryoeq.outputs.coverage_plot import plot_coverage
from cryoeq.outputs.folder import make_folder
from cryoeq.outputs.map_names import MapNames, map_names
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.class_choice import rows_of_one_frame
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.pipelines.reconstruction_run import open_particles, read_reconstruction_job
from cryoeq.pipelines.screening.score_particles import ScorerKind, build_scorer
from cryoeq.runtime.device import choose_device
from cryoeq.runtime.random_streams import Stream, stream_generator
from cryoeq.screening.view_coverage import AngularGap, ViewCoverage, measure_coverage

SCORE_COLUMN = SELECTION_Z_SCORE
_MAX_REPORTED_GAPS = 5
_MAX_BOX_PX = 64  # particles are compared in a smaller box where theirs is larger
_CACHE_BYTES = 2**29


@dataclass(frozen=True)
class _Source:
    """What is screened.

    Args:
        star: the particles.
        rows: their rows of the table.
        count: number of all rows of it.
        folder: for all files.
        job: record of the run; None for a star file.
        names: maps of the run.
        symmetry: point group of the run; C1 of a star file.
    """

    star: StarTable
    rows: Int[Tensor, " rows"]
    count: int
    folder: Path
    job: Mapping[str, Any] | None = None
    names: MapNames = field(default_factory=map_names)
    symmetry: str = "C1"


def screen(config: ScreenConfig) -> Iterator[Event]:
    """Find gaps in angular coverage, and score the particles.

    Args:
        config: the resolved settings.

    Yields:
        Progress, notes, a report on angular coverage and one on the particles.

    Raises:
        OutputError: the folder holds no reconstruction, or a file cannot be written.
        ParticleFileError: there are no poses, or their images were moved or changed since.
        ConfigError: no such symmetry.
    """
    source = _open(config)
    star, folder = source.star, source.folder
    poses, symmetry = star_poses(star), config.symmetry or source.symmetry
    coverage = measure_coverage(
        poses.rotations,
        symmetry=symmetry,
        threshold_deg=config.gap_threshold_deg,
        are_opposites_one=config.mirrored,
    )
    yield from (Note(note, "warning") for note in pose_notes(star))
    yield from _report_coverage(coverage, symmetry)
    plot_coverage(folder / "coverage.png", coverage)
    results: dict[str, object] = {"views": coverage_as_json(coverage, symmetry)}
    written = "coverage.png, screening.json"
    scorer = config.scorer
    if scorer != "none" and source.job is not None:
        results["particles"] = yield from _score(config, scorer, source, poses)
        written += ", screened.star"
    write_json(folder / "screening.json", results)
    yield Note(f"Written to {folder}: {written}")


def _open(config: ScreenConfig) -> _Source:
    number = config.class_number
    if config.run.is_file():
        star = read_table(config.run)
        rows = rows_of_one_frame(star, config.run, number)
        folder = config.output or config.run.with_suffix("").with_name(f"{config.run.stem}_screening")
        return _Source(star.rows(rows.tolist()), rows, len(star), make_folder(folder))
    run = RunFolder(config.run)
    job = read_reconstruction_job(run, "Give the folder that cryoeq reconstruct -o made, or a star file with poses")
    star, metrics = read_star(run.path("run_data.star")), ReconstructionMetrics.from_json(job.get("results", {}))
    rows = rows_of_one_frame(star, run.path("run_data.star"), number)
    names, symmetry = map_names(), job["settings"]["search"]["symmetry"]
    if metrics.classes and number is not None:
        names, symmetry = map_names(number, metrics.n_classes), metrics.classes[number - 1].symmetry
    folder = run.path("screening" if number is None else f"screening_class{number:03d}")
    return _Source(
        star.rows(rows.tolist()), rows, len(star), make_folder(config.output or folder), job, names, symmetry
    )


def coverage_as_json(coverage: ViewCoverage, symmetry: str) -> dict[str, object]:
    """Angular coverage as ``screening.json`` holds it, angles in degrees."""
    dims = coverage.stalk_dims
    return {
        "symmetry": symmetry,
        "n_views": coverage.n_views,
        "mirrored_views_are_one": coverage.are_opposites_one,
        "gap_threshold_deg": math.degrees(coverage.threshold_rad),
        "chance_gap_deg": math.degrees(coverage.chance_rad),
        "is_covered": coverage.is_covered,
        "gaps": [
            {
                "rot_deg": rot_deg,
                "tilt_deg": tilt_deg,
                "radius_deg": math.degrees(gap.radius_rad),
                "fraction_of_sphere": gap.fraction,
            }
            for gap, (rot_deg, tilt_deg) in zip(coverage.gaps, _axes_deg(coverage.gaps), strict=True)
        ],
        "landmarks": len(dims),
        "landmarks_at_boundary": int((dims == 0).sum()),
        "global_sections": coverage.n_sections,
        "regions": coverage.n_regions,
        "orientable_regions": coverage.n_orientable,
    }


def _axes_deg(gaps: Sequence[AngularGap]) -> list[list[float]]:
    """Rot and tilt of the axis of each gap."""
    return view_angles_deg(torch.stack([gap.axis for gap in gaps])).tolist() if gaps else []


def _report_coverage(coverage: ViewCoverage, symmetry: str) -> Iterator[Event]:
    threshold_deg, chance_deg = math.degrees(coverage.threshold_rad), math.degrees(coverage.chance_rad)
    rows = {
        "Views": f"{coverage.n_views}" + (f" ({symmetry})" if symmetry.upper() != "C1" else ""),
        "Angular gap threshold": f"radius {threshold_deg:.1f}°",
        "Gaps in angular coverage": f"{len(coverage.gaps)}" if coverage.gaps else "none: the sphere is covered",
    }
    reported = coverage.gaps[:_MAX_REPORTED_GAPS]
    for number, (gap, (rot_deg, tilt_deg)) in enumerate(zip(reported, _axes_deg(reported), strict=True), 1):
        rows[f"Gap {number}"] = (
            f"rot {rot_deg:.0f}°, tilt {tilt_deg:.0f}°, radius {math.degrees(gap.radius_rad):.1f}°,"
            f" {gap.fraction:.1%} of the sphere"
        )
    regions = _count(coverage.n_regions, "region")
    rows["Hand"] = (
        f"consistent: {regions}, each with one hand"
        if coverage.is_orientable
        else f"not consistent: one hand holds throughout {coverage.n_orientable} of {regions}"
    )
    yield Report("Angular coverage", rows)
    if chance_deg > threshold_deg:
        yield Note(
            f"{coverage.n_views} views are few: uniformly random ones may leave gaps of radius {chance_deg:.1f}°,"
            f" above the threshold of {threshold_deg:.1f}°.",
            "warning",
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _score(
    config: ScreenConfig, kind: ScorerKind, source: _Source, poses: Poses
) -> Generator[Event, None, dict[str, object]]:
    """Score all particles and write ``screened.star``."""
    run, star, half_set, names = RunFolder(config.run), source.star, star_half_set(source.star), source.names
    halves = [run.path(name) for name in (names.first_half, names.second_half)]
    has_halves = half_set is not None and all(path.is_file() for path in halves)
    maps = HalfMaps(*map(read_map, halves)) if has_halves else read_map(run.path(names.whole))
    box = maps.first.box_size_px if isinstance(maps, HalfMaps) else maps.box_size_px
    _, dataset = open_particles(
        source.job or {}, config.datadir, count=source.count, box_size_px=box, max_box_px=_MAX_BOX_PX,
        cache_bytes=_CACHE_BYTES, rows=source.rows, star=star,
    )  # fmt: skip
    yield from (Note(text, "warning") for text in dataset.warnings)
    particles = ScreenedParticles.from_maps(dataset, poses, half_set, maps, choose_device(config.device))
    features = yield from particles.measure_features()
    yield from (Note(text, "warning") for text in dataset.new_warnings())
    generator = stream_generator(config.seed, Stream.JUNK)
    scorer = build_scorer(kind, particles, features, generator)
    z = z_scores(scorer.score(features))
    path = source.folder / "screened.star"
    write_particle_star(path, star, None, extra_columns={SCORE_COLUMN: np.char.mod("%.4f", z.double().numpy())})
    auc = particles.cross_validate(scorer, generator)
    yield Report(
        f"{len(z)} particles scored by {kind}",
        {
            "Synthetic outliers detected (ROC AUC)": f"{auc:.3f} (0.5 by chance, 1 at best)",
            "Column": f"{SCORE_COLUMN} of {path}, highest for junk particles",
        },
    )
    return {"scorer": kind, "column": SCORE_COLUMN, "synthetic_outlier_roc_auc": auc}
