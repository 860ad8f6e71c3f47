"""``report.html``: one file with everything a reader of a run asks for, its pictures inside, no network needed."""

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
    slices_figure,
    stage_colours,
    surface_figure,
)

_SHOWN = 6  # particles of each kind
_TIMES = ("started", "finished")


@dataclass(frozen=True)
class ComparedParticles:
    """A sample of particles with their predictions.

    Args:
        fits: of the sample.
        total: particles in the stack.
        names: image name of each particle of the sample.
        resolution_angstrom: up to which they were compared.
    """

    fits: ParticleFits
    total: int
    names: Sequence[str]
    resolution_angstrom: float


@dataclass(frozen=True)
class RunContents:
    """All that a report shows; what a run does not have is None or empty.

    Args:
        name: of the run folder.
        job: what ``job.json`` holds.
        verdict: on the run.
        facts: label and value of the key figures, in the order to show.
        volume: the map of all particles.
        curves: of the half maps.
        poses: of all particles.
        progress: the figures that the run reported.
        notes: what it said.
        particles: compared with their predictions, or one sentence on why there are none.
    """

    name: str
    job: Mapping[str, Any]
    verdict: RunVerdict
    facts: Mapping[str, str]
    volume: Volume | None
    curves: FscCurves | None
    poses: Poses | None
    progress: Sequence[ProgressRow]
    notes: Sequence[Note]
    particles: ComparedParticles | str


def write_report(path: Path, run: RunContents) -> None:
    """Write the report.

    Args:
        path: the HTML file to create or replace.
        run: what to show.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    import jinja2  # here, like plotly: no other command needs them
    from plotly.offline import get_plotlyjs

    curves = {f"progress{place}": figure for place, figure in enumerate(progress_figures(run.progress))}
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
        figures = {"surface": surface_figure(run.volume), "slices": slices_figure(run.volume)}
    if run.curves is not None:
        figures["fsc"] = fsc_figure(run.curves)
    if run.poses is not None:
        figures["orientations"] = orientation_figure(run.poses)
    return figures


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
        "Results": ", ".join(f"{name} {value:.5g}" for name, value in results.items()),
    }
    return {label: str(value) for label, value in rows.items() if value not in (None, "")}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        flat |= _flat(value, f"{key}.") if isinstance(value, Mapping) else {key: "–" if value is None else str(value)}
    return flat


def _shown_particles(compared: ComparedParticles) -> dict[str, Any]:
    """The best and the worst of the sample, and what was compared in words."""
    fits = compared.fits
    order = fits.correlations.argsort(descending=True)
    count = min(_SHOWN, len(order) // 2 or 1)
    groups = {"Best": order[:count], "Worst, worst first": order.flip(0)[:count]}
    median = float(fits.correlations.median())
    of_all = "all" if len(order) == compared.total else f"{len(order):,} evenly spaced ones of"
    return {
        "compared": f"Of {of_all} {compared.total:,} particles, those that correlate most and least with their "
        f"predictions; the median correlation is {median:.2f}.",
        "resolution_angstrom": compared.resolution_angstrom,
        "groups": {
            heading: [_shown_particle(fits, place, compared.names[place]) for place in places.tolist()]
            for heading, places in groups.items()
        },
    }


def _shown_particle(fits: ParticleFits, place: int, name: str) -> dict[str, Any]:
    images = {"particle": fits.images, "filtered": fits.filtered, "predicted": fits.predictions}
    return {
        "images": {label: _as_png(stack[place]) for label, stack in images.items()},
        "caption": f"{name}: correlation {float(fits.correlations[place]):.2f}",
    }


def _as_png(image: Float[Tensor, "n n"]) -> str:
    """A data URL; black and white are the 0.5th and 99.5th percentile."""
    low, high = (float(image.quantile(share)) for share in (0.005, 0.995))
    scaled = ((image - low) / max(high - low, 1e-12)).clamp(0, 1)
    file = io.BytesIO()
    matplotlib.image.imsave(file, scaled.numpy(), cmap="gray", vmin=0, vmax=1, origin="lower", format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
