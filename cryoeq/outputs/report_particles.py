"""Particles of a report beside their predicted projections."""

import base64
import io
from typing import Any

import matplotlib.image
from jaxtyping import Float
from torch import Tensor

from cryoeq.evaluation.particle_fit import ParticleFits
from cryoeq.outputs.report_contents import ClassContents

_SHOWN, _SHOWN_OF_CLASS = 6, 3  # particles of each kind


def shown_particles(contents: ClassContents, n_classes: int) -> dict[str, Any]:
    """Best and worst of the sample of a class, and a description of the comparison; or why there are none.

    Args:
        contents: of the class, or of a run of one.
        n_classes: number of classes of the run.
    """
    compared, is_one = contents.particles, n_classes == 1
    heading = "" if is_one else f"Class {contents.number}"
    if isinstance(compared, str):
        return {"heading": heading, "missing": compared}
    fits = compared.fits
    order = fits.correlations.argsort(descending=True)
    count = min(_SHOWN if is_one else _SHOWN_OF_CLASS, len(order) // 2 or 1)
    groups = {"Best": order[:count], "Worst, worst first": order.flip(0)[:count]}
    median = float(fits.correlations.median())
    sample = "all" if len(order) == compared.total else f"{len(order):,} evenly spaced ones of"
    whose = "" if is_one else " of the class"
    return {
        "heading": heading,
        "missing": "",
        "compared": f"Of {sample} {compared.total:,} particles{whose}, those that correlate most and least with their "
        f"predictions; the median correlation is {median:.2f}.",
        "resolution_angstrom": compared.resolution_angstrom,
        "groups": {
            kind: [_shown_particle(fits, row, compared.names[row]) for row in rows.tolist()]
            for kind, rows in groups.items()
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
