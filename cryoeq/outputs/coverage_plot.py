"""Picture of angular coverage: distance of each direction to the nearest view, and gaps with boundary and axis."""

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from torch import Tensor

from cryoeq.geometry.healpix import pixel_centres
from cryoeq.outputs.figure import COLOURS, png_figure
from cryoeq.outputs.mollweide import draw_sphere, mark_direction
from cryoeq.screening.view_coverage import ViewCoverage

_ORDER = 5


def plot_coverage(path: Path, coverage: ViewCoverage) -> None:
    """Draw landmark views, boundaries and axes of gaps, over the angle to the nearest landmark.

    Args:
        path: the PNG file to create or replace.
        coverage: angular coverage.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    landmarks, gaps = coverage.triangulation.landmarks, coverage.gaps
    angles = (
        torch.cat([(chunk @ landmarks.T).amax(1) for chunk in pixel_centres(_ORDER).split(1024)]).clamp(-1, 1).acos()
    )
    threshold_deg = math.degrees(coverage.threshold_rad)
    darkest_deg = max(threshold_deg, math.degrees(float(angles.max())))
    at_boundary = (coverage.stalk_dims == 0).repeat(len(landmarks) // len(coverage.stalk_dims))
    with png_figure(path, size_inches=(8.0, 5.8)) as figure:
        axes = figure.add_subplot(projection="mollweide")
        mesh = draw_sphere(axes, angles.rad2deg(), cmap="viridis_r", norm=Normalize(0, darkest_deg))
        _dots(axes, landmarks[~at_boundary], COLOURS[6], 3.0, "landmark views")
        if bool(at_boundary.any()):
            _dots(axes, landmarks[at_boundary], COLOURS[1], 8.0, "boundary of a gap")
        for number, gap in enumerate(gaps):
            mark_direction(axes, gap.axis, "X", "" if number else "middle of a gap", with_opposite=False)
        bar = figure.colorbar(mesh, ax=axes, orientation="horizontal", shrink=0.7, pad=0.08)
        bar.set_label(f"Angle to the nearest view (°; gap threshold: {threshold_deg:.1f}°); dark: missing")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3)
        figure.suptitle(_title(coverage))


def _dots(axes: Axes, vectors: Float[Tensor, "vectors 3"], colour: str, size: float, label: str) -> None:
    x, y, z = vectors.numpy().T
    axes.plot(np.arctan2(y, x), np.arcsin(np.clip(z, -1, 1)), ".", color=colour, markersize=size,
              linestyle="none", label=label)  # fmt: skip


def _title(coverage: ViewCoverage) -> str:
    views = f"{coverage.n_views} views" + (", mirror images counted as one" if coverage.are_opposites_one else "")
    gaps = coverage.gaps
    if not gaps:
        return f"Angular coverage of {views}: no gap"
    count = "1 gap" if len(gaps) == 1 else f"{len(gaps)} gaps"
    return f"Angular coverage of {views}: {count}, the widest of radius {math.degrees(gaps[0].radius_rad):.0f}°"
