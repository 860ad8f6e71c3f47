"""``report.html``: verdict, map, curves, particles and settings of a run in one file that needs no network."""

import importlib.resources
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cryoeq
from cryoeq.evaluation.unexplained import JUNK_CUT
from cryoeq.io.text import write_text
from cryoeq.outputs.plotly_parts import Figure
from cryoeq.outputs.report_classes import class_moves, junk_note
from cryoeq.outputs.report_contents import RunContents
from cryoeq.outputs.report_curves import class_fsc_figure, fsc_figure, junk_figure
from cryoeq.outputs.report_figures import (
    orientation_figure,
    progress_figures,
    slice_figures,
    stage_colours,
    surface_figure,
)
from cryoeq.outputs.report_particles import shown_particles

_MOST_SURFACES = 6  # each is half a megabyte, and a browser draws few at a time
_TIMES = ("started", "finished")
_RESULTS = {
    "log_evidence": "Log-likelihood per particle (higher is better)",
    "median_rotation_sigma_deg": "Median standard deviation of rotations (°)",
    "explained_variance": "Fraction of the variance explained by the model",
    "held_out_median_deg": "Encoder, held-out particles: median rotation difference (°)",
    "half_map_resolution_angstrom": "Half maps agree to (Å, FSC 0.143, unmasked)",
    "masked_resolution_angstrom": "Half maps agree to (Å, FSC 0.143, masked)",
    "corrected_resolution_angstrom": "Half maps agree to (Å, FSC 0.143, corrected for the mask)",
    "resolution_beyond_ctf_zeros_angstrom": "Half maps agree to (Å, FSC 0.143, unmasked, beyond a zero of the CTF)",
    "bfactor_angstrom2": "B-factor of run_postprocess.mrc (Å², 0 for none)",
    "map_diameter_angstrom": "Diameter of the map (Å)",
    "reference_resolution_angstrom": "Agrees with the reference to (Å, FSC 0.5)",
    "in_plane_divergence": "In-plane symmetry: divergence from uniform (nats)",
    "in_plane_p_value": "In-plane symmetry: p",
    "missing_astigmatism_angstrom": "Astigmatism that the CTF leaves out (Å)",
    "repeated_images": "Images in more than one row",
    "repeated_rows": "Rows that show such an image",
    "repeated_across_halves": "Images in both half sets of the particle file",
    "nonspherical_share": "Share of the map that is not spherical",
    "nonspherical_resolution_angstrom": "Half maps without their spherical averages agree to (Å, FSC 0.143, unmasked)",
    "unexplained_share": "Share of the particles that the map does not explain",
    "explained_signal_share": "Share of the images' signal that the map explains, at low resolution",
    "hand_t": "Hand of the map (t, positive for right-handed helices)",
    "hand_probability": "Probability of right-handed helices",
    "wrong_optimum_share": "Share of the particles with a better pose elsewhere",
    "dependent_halves": "Half maps are not independent",
    "class_agreement": "Classes of two random starts agree (1: the same, 0: by chance)",
}
_SURFACE_RAW = "run_class001.mrc."
_SURFACE_POSTPROCESSED = (
    "run_postprocess.mrc within run_mask.mrc: the average of the half maps, weighted by their correlation."
)


def write_report(path: Path, run: RunContents) -> None:
    """Write the report.

    Args:
        path: the HTML file to create or replace.
        run: contents of the report.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    import jinja2  # here, like plotly: no other command needs them
    from plotly.offline import get_plotlyjs

    curves = {f"progress{number}": figure for number, figure in enumerate(progress_figures(run.progress))}
    maps = _map_figures(run)
    figures = maps.figures | _run_figures(run) | curves
    settings = _flat(run.job.get("settings", {}))
    template = importlib.resources.files("cryoeq.outputs").joinpath("templates/report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(template).render(
        title=f"cryoeq: {run.name}",
        subtitle=_subtitle(run.job),
        verdict=run.verdict,
        facts=run.facts,
        figures=figures,
        curves=list(curves),
        surfaces=maps.surfaces,
        slices=maps.slices,
        orientations=maps.orientations,
        classes=run.classes,
        moves=class_moves(run),
        agreement=run.class_agreement,
        surface_note=_surface_note(run),
        resolution_note=_resolution_note(run),
        junk_note=junk_note(run),
        stages=stage_colours(run.progress),
        symmetry=settings.get("search.symmetry", "C1"),
        particles=[shown_particles(each, len(run.classes)) for each in run.classes],
        notes=run.notes,
        provenance=_provenance(run.job),
        command=shlex.join(run.job.get("command", [])),
        inputs=run.job.get("inputs", []),
        settings=settings,
        version=cryoeq.__version__,
        plotly_js=get_plotlyjs(),
        # Inside a script element, only this could end it.
        figures_json=json.dumps(figures, allow_nan=False, separators=(",", ":")).replace("</", "<\\/"),
    )
    write_text(path, page)


@dataclass(frozen=True)
class _Panel:
    """Place of a figure on the page, and what stands above it."""

    name: str
    caption: str


@dataclass(frozen=True)
class _MapFigures:
    """Figures of maps and poses by name, and where they stand: a row of slices for each axis, classes side by side."""

    figures: dict[str, Figure]
    surfaces: list[_Panel]
    slices: list[list[_Panel]]
    orientations: list[_Panel]


def _map_figures(run: RunContents) -> _MapFigures:
    figures, surfaces, orientations = dict[str, Figure](), list[_Panel](), list[_Panel]()
    slices: dict[str, list[_Panel]] = {}
    is_one = len(run.classes) == 1
    for each in run.classes:
        ending, caption = ("", "") if is_one else (f"_{each.number}", f"Class {each.number}")
        if each.volume is not None:
            if len(surfaces) < _MOST_SURFACES:
                shown, height = each.postprocessed or each.volume, 640 if is_one else 420
                figures[f"surface{ending}"] = surface_figure(shown, height_px=height)
                surfaces.append(_Panel(f"surface{ending}", caption))
            for name, figure in slice_figures(each.volume).items():
                figures[f"{name}{ending}"] = figure
                slices.setdefault("" if is_one else name, []).append(_Panel(f"{name}{ending}", caption))
        if each.poses is not None and len(each.poses):
            figures[f"orientations{ending}"] = orientation_figure(each.poses)
            orientations.append(_Panel(f"orientations{ending}", caption))
    return _MapFigures(figures, surfaces, list(slices.values()), orientations)


def _run_figures(run: RunContents) -> dict[str, Figure]:
    """Curves and histogram of all classes."""
    figures = {}
    curves = {each.number: each.curves for each in run.classes if each.curves is not None}
    if len(run.classes) > 1 and curves:
        figures["fsc"] = class_fsc_figure(curves)
    elif curves:
        only = run.classes[0]
        figures["fsc"] = fsc_figure(curves[only.number], only.ctf_power, only.dips)
    if run.junk:
        figures["junk"] = junk_figure(run.junk, JUNK_CUT)
    return figures


def _surface_note(run: RunContents) -> str:
    if len(run.classes) > 1:
        more = f" of the first {_MOST_SURFACES} classes" if len(run.classes) > _MOST_SURFACES else ""
        return f"Surfaces{more}, each map in a frame of its own: they are not turned onto each other."
    return _SURFACE_RAW if run.classes[0].postprocessed is None else _SURFACE_POSTPROCESSED


def _resolution_note(run: RunContents) -> str:
    if len(run.classes) > 1:
        return (
            "Resolutions are those of the last shell before a curve first drops below 0.143: unmasked, and dashed that"
            " corrected for the mask."
        )
    note = "Resolutions are those of the last shell before a curve first drops below 0.143; dotted, the unmasked one."
    if run.classes[0].dips:
        note += " Orange: the unmasked curve dips where the CTFs of all particles are near zero, and comes back."
    return note


def _subtitle(job: Mapping[str, Any]) -> str:
    started, finished = (str(job.get(name, "")).replace("T", " ").replace("+00:00", " UTC") for name in _TIMES)
    return f"Started {started}, {job['status']}{' at ' + finished if finished else ''}."


def _provenance(job: Mapping[str, Any]) -> dict[str, str]:
    results = {name: value for name, value in job.get("results", {}).items() if name not in {"error", "seconds"}}
    rows = {
        "Version": f"cryoeq {job.get('version')}",
        "Commit": job.get("commit") or "installed from a package",
        "Seed": job.get("seed"),
        "Device": job.get("device"),
        "Resumed": ", ".join(job.get("resumed", [])),
    }
    rows |= {
        _RESULTS.get(name, name): value if isinstance(value, str) else f"{value:.5g}"
        for name, value in results.items()
        if isinstance(value, str | float | int)
    }
    return {label: str(value) for label, value in rows.items() if value not in (None, "")}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        flat |= _flat(value, f"{key}.") if isinstance(value, Mapping) else {key: "–" if value is None else str(value)}
    return flat
