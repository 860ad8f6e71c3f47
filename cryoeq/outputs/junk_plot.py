"""Histogram of the particles' probability of being junk."""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cryoeq.evaluation.unexplained import JUNK_CUT
from cryoeq.outputs.figure import COLOURS, CURVE_MARGINS, CURVES_INCHES, GREY, LEGEND_BELOW, png_figure

_BINS = 40


def plot_junk(path: Path, probability: Float[Tensor, " particles"], cut: float = JUNK_CUT) -> None:
    """Draw the histogram of the probabilities, on a logarithmic scale, with a cut.

    Args:
        path: the PNG file to create or replace.
        probability: of each particle.
        cut: probability of the line drawn in.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    values = probability.double().numpy()
    kept = values < cut
    edges = np.linspace(0.0, 1.0, _BINS + 1)
    inside = f"{values[kept].mean():.1%}" if kept.any() else "none"
    with png_figure(path, size_inches=CURVES_INCHES, margins=CURVE_MARGINS) as figure:
        axes = figure.subplots()
        axes.hist(
            values[kept], edges.tolist(), color=COLOURS[0], label=f"{kept.sum():,} below, of which junk: {inside}"
        )
        axes.hist(values[~kept], edges.tolist(), color=COLOURS[1], label=f"{(~kept).sum():,} others")
        axes.axvline(cut, color=GREY, linestyle="--", label=f"--junk-below {cut:g}")
        axes.set(xlabel="Probability of being junk", ylabel="Particles", xlim=(0, 1), yscale="log", ylim=(0.5, None))
        figure.legend(ncols=3, **LEGEND_BELOW)
        figure.suptitle(f"Junk: {values.mean():.1%} of {len(values):,} particles expected")
