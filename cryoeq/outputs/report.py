"""``report.html``: verdict, map, curves, particles and settings of a run in one file that needs no network."""

import base64
import importlib.resources
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.image
from jaxtyping import Float
from torch import Tensor

import cryoeq
from cryoeq.domain.events import Note
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import Volume
from cryoeq.evaluation.fsc_dips import CtfDip
from cryoeq.evaluation.particle_fit import ParticleFits
from cryoeq.evaluation.resolution import FscCurves
from cryoeq.evaluation.verdict import RunVerdict
from cryoeq.io.text import write_text
from cryoeq.outputs.progress_file import ProgressRow
from cryoeq.outputs.report_figures import (
    Figure,
    fsc_figure,
    orientation_figure,
    progress_figures,
    slice_figures,
    stage_colours,
    surface_figure,
)

_SHOWN = 6  # particles of each kind
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
    "wrong_optimum_share": "Share of the particles with a better pose elsewhere",
    "dependent_halves": "Half maps are not independent",
}
_SURFACE_RAW = "run_class001.mrc."
_SURFACE_POSTPROCESSED = (
    "run_postprocess.mrc within run_mask.mrc: the average of the half maps, weighted by their correlation."
)


@dataclass(frozen=True)
class ComparedParticles:
    """A sample of particles with their predictions.

    Args:
        fits: fits of the sample.
        total: number of particles in the stack.
        names: image name of each particle of the sample.
        resolution_angstrom: resolution of the comparison.
    """

    fits: ParticleFits
    total: int
    names: Sequence[str]
    resolution_angstrom: float


@dataclass(frozen=True)
class RunContents:
    """Contents of a report; None or empty where the run has none.

    Args:
        name: name of the run folder.
        job: content of ``job.json``.
        verdict: verdict on the run.
        facts: key metrics by label, in the order of the page.
        volume: map of all particles.
        postprocessed: post-processed map within the mask, whose surface is drawn; without it that of the map.
        curves: FSC of the half maps.
        ctf_power: mean |CTF|^2 of the particles per shell of the curves.
        dips: dips of the unmasked curve at zeros of the CTF.
        poses: poses of all particles.
        progress: rows of ``progress.csv``.
        notes: notes of the run.
        particles: particles with their predictions, or one sentence on why there are none.
    """

    name: str
    job: Mapping[str, Any]
    verdict: RunVerdict
    facts: Mapping[str, str]
    volume: Volume | None
    postprocessed: Volume | None
    curves: FscCurves | None
    ctf_power: Float[Tensor, " shells"] | None
    dips: Sequence[CtfDip]
    poses: Poses | None
    progress: Sequence[ProgressRow]
    notes: Sequence[Note]
    particles: ComparedParticles | str


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
    figures = _figures(run) | curves
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
        surface_note=_SURFACE_RAW if run.postprocessed is None else _SURFACE_POSTPROCESSED,
        resolution_note=_resolution_note(run),
        slices=[name for name in figures if name.startswith("slice_")],
        stages=stage_colours(run.progress),
        symmetry=settings.get("search.symmetry", "C1"),
        particles=None if isinstance(run.particles, str) else _shown_particles(run.particles),
        particles_missing=run.particles if isinstance(run.particles, str) else "",
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


def _figures(run: RunContents) -> dict[str, Figure]:
    figures = {}
    if run.volume is not None:
        shown = run.volume if run.postprocessed is None else run.postprocessed
        figures = {"surface": surface_figure(shown), **slice_figures(run.volume)}
    if run.curves is not None:
        figures["fsc"] = fsc_figure(run.curves, run.ctf_power, run.dips)
    if run.poses is not None:
        figures["orientations"] = orientation_figure(run.poses)
    return figures


def _resolution_note(run: RunContents) -> str:
    note = "Resolutions are those of the last shell before a curve first drops below 0.143; dotted, the unmasked one."
    if run.dips:
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
        _RESULTS.get(name, name): value if isinstance(value, str) else f"{value:.5g}" for name, value in results.items()
    }
    return {label: str(value) for label, value in rows.items() if value not in (None, "")}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        flat |= _flat(value, f"{key}.") if isinstance(value, Mapping) else {key: "–" if value is None else str(value)}
    return flat


def _shown_particles(compared: ComparedParticles) -> dict[str, Any]:
    """Best and worst of the sample, and a description of the comparison."""
    fits = compared.fits
    order = fits.correlations.argsort(descending=True)
    count = min(_SHOWN, len(order) // 2 or 1)
    groups = {"Best": order[:count], "Worst, worst first": order.flip(0)[:count]}
    median = float(fits.correlations.median())
    sample = "all" if len(order) == compared.total else f"{len(order):,} evenly spaced ones of"
    return {
        "compared": f"Of {sample} {compared.total:,} particles, those that correlate most and least with their "
        f"predictions; the median correlation is {median:.2f}.",
        "resolution_angstrom": compared.resolution_angstrom,
        "groups": {
            heading: [_shown_particle(fits, row, compared.names[row]) for row in rows.tolist()]
            for heading, rows in groups.items()
        },
    }


def _shown_particle(fits: ParticleFits, row: int, name: str) -> dict[str, Any]:
    images = {"particle": fits.images, "filtered": fits.filtered, "predicted": fits.predictions}
    return {
        "images": {label: _as_png(stack[row]) for label, stack in images.items()},
        "caption": f"{name}: correlation {float(fits.correlations[row]):.2f}",
    }


def _as_png(image: Float[Tensor, "n n"]) -> str:
    """Data URL of an image; black and white are the 0.5th and 99.5th percentile."""
    low, high = (float(image.quantile(fraction)) for fraction in (0.005, 0.995))
    scaled = ((image - low) / max(high - low, 1e-12)).clamp(0, 1)
    file = io.BytesIO()
    matplotlib.image.imsave(file, scaled.numpy(), cmap="gray", vmin=0, vmax=1, origin="lower", format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
