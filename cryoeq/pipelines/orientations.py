"""``cryoeq orientations``: evenness of the orientation distribution of a star file."""

from collections.abc import Iterator
from pathlib import Path

import torch

from cryoeq.config.orientations import OrientationsConfig
from cryoeq.domain.events import Event, Note, Report
from cryoeq.evaluation.orientations import MAX_VIEWS, UNEVEN_SCF, OrientationSummary, coarser_counts
from cryoeq.evaluation.orientations import summarise_orientations as summarise
from cryoeq.io.euler import rotations_from_euler_deg
from cryoeq.io.optics import star_box_angstrom
from cryoeq.io.particles import pose_notes, read_table, star_euler_deg
from cryoeq.io.star import StarTable
from cryoeq.io.text import write_json
from cryoeq.outputs.bild import write_bild
from cryoeq.outputs.folder import make_folder
from cryoeq.outputs.run_folder import RunFolder
from cryoeq.pipelines.class_choice import rows_of_one_frame, table_of
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.runtime.device import choose_device

_BILD_ORDER = 3
_BILD_RADIUS_ANGSTROM = 100.0  # where the star file does not state the box
_SIGNIFICANT, _LONG = 1e-3, 0.05
_FEW_PARTICLES = 1000


def orientations(config: OrientationsConfig) -> Iterator[Event]:
    """Summarise the orientations of a star file and write the results.

    Yields:
        One report, and warnings.

    Raises:
        ParticleFileError: the file is damaged, or has no orientations.
        ConfigError: no such symmetry or class, or particles of several structures.
        OutputError: a file cannot be written.
    """
    path = table_of(config.particles)
    star = read_table(path)
    star = star.rows(rows_of_one_frame(star, path, config.class_number).tolist())
    euler = star_euler_deg(star)
    summary = summarise(
        rotations_from_euler_deg(euler).to(choose_device(config.device)),
        euler[:, 2].deg2rad(),
        symmetry=config.symmetry or _symmetry_of(config),
        generator=torch.Generator().manual_seed(config.seed),
    )
    yield Report(f"Orientations of {summary.n_particles} particles of {path.name}", _rows(summary))
    yield from (Note(note, "warning") for note in pose_notes(star))
    yield from _warnings(summary)
    if config.json_file is not None:
        write_json(config.json_file, as_json(summary))
        yield Note(f"Results: {config.json_file}")
    if config.output is not None:
        yield from _write_folder(make_folder(config.output), star, summary)


def _symmetry_of(config: OrientationsConfig) -> str:
    """Point group of the run of a folder, or of its class; C1 of a table."""
    if not config.particles.is_dir():
        return "C1"
    from cryoeq.pipelines.reconstruction_run import read_reconstruction_job  # not above, because of scipy

    job = read_reconstruction_job(RunFolder(config.particles), "Name the point group by --sym, and the star file")
    classes = ReconstructionMetrics.from_json(job.get("results", {})).classes
    if classes and config.class_number is not None:
        return classes[config.class_number - 1].symmetry
    symmetry: str = job["settings"]["search"]["symmetry"]
    return symmetry


def as_json(summary: OrientationSummary) -> dict[str, object]:
    """All metrics of a summary, without the angles of single particles."""
    return {
        "n_particles": summary.n_particles,
        "symmetry": summary.symmetry,
        "efficiency": summary.efficiency,
        "scf": summary.scf,
        "scf_star": summary.scf_star,
        "is_uneven": summary.is_uneven,
        "unsampled_share": summary.unsampled_share,
        "fourier_radius": summary.fourier_radius,
        "in_plane": {"length": summary.in_plane_length, "p_value": summary.in_plane_p_value},
        "view_counts_healpix_ring": summary.view_counts.tolist(),
    }


def _rows(summary: OrientationSummary) -> dict[str, str]:
    verdict = "uneven, below" if summary.is_uneven else "even, at least"
    return {
        "Symmetry": summary.symmetry,
        "Efficiency E_od": f"{summary.efficiency:.3f}",
        "SCF*": f"{summary.scf_star:.3f} at shell {summary.fourier_radius:.3g} ({verdict} {UNEVEN_SCF:g})",
        "Fourier space not sampled": f"{summary.unsampled_share:.1%}",
        "In-plane angle, Rayleigh's test": f"length {summary.in_plane_length:.3f}, p = {summary.in_plane_p_value:.2g}",
    }


def _warnings(summary: OrientationSummary) -> Iterator[Note]:
    if summary.is_uneven:
        yield Note(
            f"The views are uneven: SCF* {summary.scf_star:.3f} is below {UNEVEN_SCF:g}, that of side views alone. Look"
            " at fourier_sampling.png, at gaps in angular coverage (cryoeq screen) and at resolution by direction"
            " (cryoeq fsc --directional).",
            "warning",
        )
    if summary.in_plane_p_value < _SIGNIFICANT and summary.in_plane_length > _LONG:
        yield Note(
            f"The in-plane angles are not uniform (p = {summary.in_plane_p_value:.2g}). Ice has no preferred direction"
            " in its plane: unless these are tilt series, poses may follow something else than the particle.",
            "warning",
        )
    if summary.n_particles < _FEW_PARTICLES:
        yield Note(
            f"{summary.n_particles} particles are few: chance alone lowers SCF* and E_od. Published values are of"
            f" {MAX_VIEWS:,} views.",
            "warning",
        )


def _write_folder(folder: Path, star: StarTable, summary: OrientationSummary) -> Iterator[Note]:
    from cryoeq.outputs.orientation_plots import (  # not above, because of matplotlib
        plot_in_plane_angles,
        plot_sampling,
        plot_views,
    )

    plot_views(folder / "orientations.png", summary)
    plot_sampling(folder / "fourier_sampling.png", summary)
    plot_in_plane_angles(folder / "in_plane_angles.png", summary)
    side = star_box_angstrom(star)
    radius = _BILD_RADIUS_ANGSTROM if side is None else side / 2
    write_bild(folder / "orientations.bild", coarser_counts(summary.view_counts, _BILD_ORDER), radius)
    write_json(folder / "orientations.json", as_json(summary))
    yield Note(
        f"Written to {folder}: orientations.png, fourier_sampling.png, in_plane_angles.png, orientations.bild,"
        " orientations.json"
    )
