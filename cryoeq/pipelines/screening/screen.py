"""``cryoeq screen``: which views are missing from a set of particles, and which particles are none."""

import math
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cryoeq.config.screen import ScreenConfig
from cryoeq.domain.events import Event, Note, Report
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import HalfMaps
from cryoeq.evaluation.particle_scorers import z_scores
from cryoeq.io.labels import SELECTION_Z_SCORE
from cryoeq.io.mrc import read_map
from cryoeq.io.particles import star_half_set, star_poses, write_particle_star
from cryoeq.io.star import StarTable, read_star
from cryoeq.io.text import write_json
from cryoeq.outputs.coverage_plot import plot_coverage
from cryoeq.outputs.folder import make_folder
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.reconstruction_run import open_particles, read_reconstruction_job
from cryoeq.pipelines.screening.score_particles import LARGEST_BOX_PX, ScorerKind, ScreenedParticles
from cryoeq.runtime.random_streams import Stream, stream_generator
from cryoeq.screening.view_coverage import ViewCoverage, measure_coverage

SCORE_COLUMN = SELECTION_Z_SCORE
_MOST_HOLES = 5
_CACHE_BYTES = 2**29


def screen(config: ScreenConfig) -> Iterator[Event]:
    """Find the holes among the views, and score the particles.

    Args:
        config: the resolved settings.

    Yields:
        Progress, notes, and a report on the views and one on the particles.

    Raises:
        OutputError: the folder holds no reconstruction, or a file cannot be written.
        ParticleFileError: there are no poses, or the particles are not where or what they were.
        ConfigError: no such symmetry.
    """
    if config.run.is_file():
        star, job = read_star(config.run), None
        folder = make_folder(config.output or config.run.with_suffix("").with_name(f"{config.run.stem}_screening"))
    else:
        run = RunFolder(config.run)
        job = read_reconstruction_job(run, "Give the folder that cryoeq reconstruct -o made, or a star file with poses")
        star = read_star(run.path("run_data.star"))
        folder = make_folder(config.output or run.path("screening"))
    poses = star_poses(star)
    symmetry = config.symmetry or (job["settings"]["search"]["symmetry"] if job else "C1")
    coverage = measure_coverage(
        poses.rotations, symmetry=symmetry, widest_deg=config.hole_deg, are_opposites_one=config.mirrored
    )
    yield from _report_views(coverage, symmetry)
    plot_coverage(folder / "coverage.png", coverage)
    figures: dict[str, object] = {"views": coverage_as_json(coverage, symmetry)}
    written = "coverage.png, screening.json"
    scorer = config.scorer
    if scorer != "none" and job is not None:
        figures["particles"] = yield from _score(config, scorer, job, star, poses, folder)
        written += ", screened.star"
    write_json(folder / "screening.json", figures)
    yield Note(f"Written to {folder}: {written}")


def coverage_as_json(coverage: ViewCoverage, symmetry: str) -> dict[str, object]:
    """All figures of a coverage."""
    dims = coverage.stalk_dims
    return {
        "symmetry": symmetry,
        "n_views": coverage.n_views,
        "mirrored_views_are_one": coverage.are_opposites_one,
        "hole_radius_deg": math.degrees(coverage.widest_rad),
        "chance_radius_deg": math.degrees(coverage.chance_rad),
        "is_covered": coverage.is_covered,
        "holes": [
            {"axis": hole.axis.tolist(), "radius_deg": math.degrees(hole.radius_rad), "share_of_sphere": hole.share}
            for hole in coverage.holes
        ],
        "landmarks": len(dims),
        "landmarks_at_rim": int((dims == 0).sum()),
        "global_sections": coverage.n_sections,
        "regions": coverage.n_regions,
        "orientable_regions": coverage.n_orientable,
    }


def _report_views(coverage: ViewCoverage, symmetry: str) -> Iterator[Event]:
    rows = {
        "Views": f"{coverage.n_views}" + (f" ({symmetry})" if symmetry.upper() != "C1" else ""),
        "A hole is a gap of radius": f"{math.degrees(coverage.widest_rad):.1f}° or more",
        "Sphere": "covered" if coverage.is_covered else _count(len(coverage.holes), "hole"),
    }
    for number, hole in enumerate(coverage.holes[:_MOST_HOLES], 1):
        x, y, z = hole.axis.tolist()
        rows[f"Hole {number}"] = (
            f"radius {math.degrees(hole.radius_rad):.0f}° about ({x:.2f}, {y:.2f}, {z:.2f}), {hole.share:.1%} of the"
            " sphere"
        )
    regions = _count(coverage.n_regions, "region")
    rows["Hand"] = (
        f"consistent: {regions}, each with one hand"
        if coverage.is_orientable
        else f"not consistent: {coverage.n_orientable} of {regions} can be given one hand throughout"
    )
    yield Report("Views", rows)
    if math.degrees(coverage.chance_rad) > math.degrees(coverage.widest_rad):
        yield Note(
            f"{coverage.n_views} views are few: chance alone leaves gaps of {math.degrees(coverage.chance_rad):.0f}°,"
            " wider than what counts as a hole here.",
            "warning",
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _score(
    config: ScreenConfig,
    scorer: ScorerKind,
    job: dict[str, Any],
    star: StarTable,
    poses: Poses,
    folder: Path,
) -> Generator[Event, None, dict[str, object]]:
    """Score all particles and write them down."""
    run, half_set = RunFolder(config.run), star_half_set(star)
    halves = [run.path(f"run_half{half}_class001_unfil.mrc") for half in (1, 2)]
    has_halves = half_set is not None and all(path.is_file() for path in halves)
    maps = HalfMaps(*map(read_map, halves)) if has_halves else read_map(run.path("run_class001.mrc"))
    box = maps.first.box_size_px if isinstance(maps, HalfMaps) else maps.box_size_px
    _, dataset = open_particles(
        job, config.datadir, count=len(poses), box_size_px=box, largest_px=LARGEST_BOX_PX, cache_bytes=_CACHE_BYTES
    )
    particles = ScreenedParticles.of(dataset, poses, half_set, maps)
    evidence = yield from particles.weigh()
    generator = stream_generator(config.seed, Stream.JUNK)
    chosen = particles.make_scorer(scorer, evidence, generator)
    z = z_scores(chosen.score(evidence))
    path = folder / "screened.star"
    write_particle_star(path, star, None, extra_columns={SCORE_COLUMN: np.char.mod("%.4f", z.double().numpy())})
    area = particles.try_scorer(chosen, generator)
    yield Report(
        f"{len(z)} particles scored by {scorer}",
        {
            "Junk made of them told from the others": f"{area:.3f} (area under the ROC curve, 0.5 by chance)",
            "Column": f"{SCORE_COLUMN} of {path}: the highest look least like particles",
        },
    )
    return {"scorer": scorer, "column": SCORE_COLUMN, "made_junk_roc_auc": area}
