"""Residuals of the particles beside those of particles that the map explains."""

from pathlib import Path

import numpy as np

from cryoeq.evaluation.unexplained import Residuals
from cryoeq.outputs.figure import COLOURS, CURVE_MARGINS, CURVES_INCHES, GREY, LEGEND_BELOW, png_figure

_LOWEST, _HIGHEST, _WIDTH = -4.0, 10.0, 0.25


def plot_residuals(path: Path, residuals: Residuals) -> None:
    """Draw the histogram of the residuals' power, observed and expected.

    Args:
        path: the PNG file to create or replace.
        residuals: residuals of the particles.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    z = residuals.z.clamp(_LOWEST, _HIGHEST).numpy()
    edges = np.arange(_LOWEST, _HIGHEST + _WIDTH, _WIDTH)
    x = np.linspace(_LOWEST, _HIGHEST, 400)
    expected = len(z) * _WIDTH * np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)
    share = residuals.unexplained_share
    title = "no statement: the particles are too noisy" if share is None else f"{share:.0%} not explained by the map"
    with png_figure(path, size_inches=CURVES_INCHES, margins=CURVE_MARGINS) as figure:
        axes = figure.subplots()
        axes.hist(z, edges.tolist(), color=COLOURS[0], alpha=0.6, label=f"{len(z):,} particles")
        axes.plot(x, expected, color=GREY, label="expected where the map explains all of them")
        axes.set(
            xlabel=f"Power of the residual to {residuals.resolution_angstrom:.1f} Å, in standard deviations of noise",
            ylabel="Particles",
            xlim=(_LOWEST, _HIGHEST),
        )
        figure.legend(ncols=2, **LEGEND_BELOW)
        figure.suptitle(f"Fit of the particles: {title}")
