"""Pictures of an orientation distribution: views, their sampling of Fourier space, in-plane angles."""

import math
from pathlib import Path

import numpy as np
from matplotlib.colors import Normalize

from cryoeq.evaluation.orientations import UNEVEN_SCF, VIEWS_ORDER, OrientationSummary, coarser_counts
from cryoeq.outputs.figure import COLOURS, GREY, png_figure
from cryoeq.outputs.mollweide import draw_sphere

_PARTICLES_PER_PIXEL = 4
_IN_PLANE_BINS = 36


def plot_views(path: Path, summary: OrientationSummary, *, title: str = "") -> None:
    """Draw the density of particles by viewing direction, in Mollweide's projection, in pixels of 4 particles or more.

    Args:
        path: the PNG file to create or replace.
        summary: orientations of the particles.
        title: title of the picture.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    fitting = math.log(max(summary.n_particles / _PARTICLES_PER_PIXEL / 12, 1), 4)
    counts = coarser_counts(summary.view_counts, min(VIEWS_ORDER, max(1, math.floor(fitting))))
    density = counts / counts.mean()
    with png_figure(path, size_inches=(8.0, 5.2)) as figure:
        axes = figure.add_subplot(projection="mollweide")
        mesh = draw_sphere(axes, density, cmap="viridis", norm=Normalize(0, max(2.0, float(density.max()))))
        bar = figure.colorbar(mesh, ax=axes, orientation="horizontal", shrink=0.7, pad=0.06)
        bar.set_label("Particles per viewing direction (uniform: 1); dark: missing")
        name = f"{summary.n_particles} particles" + (f", {summary.symmetry}" if summary.symmetry != "C1" else "")
        figure.suptitle(title or f"Viewing directions of {name}: efficiency $E_{{od}}$ = {summary.efficiency:.2f}")


def plot_sampling(path: Path, summary: OrientationSummary, *, title: str = "") -> None:
    """Draw the sampling of each direction of Fourier space by the views, in Mollweide's projection.

    Args:
        path: the PNG file to create or replace.
        summary: orientations of the particles.
        title: title of the picture.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    sign = "<" if summary.is_uneven else "≥"
    with png_figure(path, size_inches=(8.0, 5.2)) as figure:
        axes = figure.add_subplot(projection="mollweide")
        highest = max(2.0, float(np.percentile(summary.sampling.cpu().numpy(), 99)))
        mesh = draw_sphere(axes, summary.sampling, cmap="viridis", norm=Normalize(0, highest))
        bar = figure.colorbar(mesh, ax=axes, orientation="horizontal", shrink=0.7, pad=0.06, extend="max")
        bar.set_label("Views that sample this direction of Fourier space (uniform: 1); dark: missing")
        missing = f", {summary.unsampled_share:.0%} not sampled" if summary.unsampled_share else ""
        figure.suptitle(title or f"Fourier sampling: SCF* = {summary.scf_star:.3f} {sign} {UNEVEN_SCF:g}{missing}")


def plot_in_plane_angles(path: Path, summary: OrientationSummary, *, title: str = "") -> None:
    """Draw the histogram of the in-plane angle, with the range of 95 % of the bars of a uniform one.

    Args:
        path: the PNG file to create or replace.
        summary: orientations of the particles.
        title: title of the picture.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    wrapped = (np.rad2deg(summary.in_plane_rad.cpu().numpy()) + 180) % 360 - 180
    edges = np.linspace(-180, 180, _IN_PLANE_BINS + 1)
    counts = np.histogram(wrapped, edges)[0]
    expected = summary.n_particles / _IN_PLANE_BINS
    half_width = 1.96 * math.sqrt(expected * (1 - 1 / _IN_PLANE_BINS))
    with png_figure(path, size_inches=(7.0, 4.5)) as figure:
        axes = figure.subplots()
        axes.axhspan(max(expected - half_width, 0), expected + half_width, color=GREY, alpha=0.25, linewidth=0,
                     label="uniform: 95 % of the bars")  # fmt: skip
        axes.stairs(counts, edges, color=COLOURS[0], linewidth=2, label="particles")
        axes.set(xlabel="In-plane angle psi (degrees)", ylabel=f"Particles per {360 // _IN_PLANE_BINS}°")
        axes.set(xlim=(-180, 180), ylim=(0, 1.25 * max(counts.max(), expected + half_width)))
        axes.set_xticks(range(-180, 181, 60))
        axes.legend(loc="upper right", ncols=2)
        length, p_value = summary.in_plane_length, summary.in_plane_p_value
        figure.suptitle(title or f"In-plane angles: Rayleigh's test, length {length:.3f}, p = {p_value:.2g}")
