"""Picture of the view sphere: how far each direction is from a view, the rims of holes, and their axes."""

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
from cryoeq.outputs.mollweide import draw_sphere
from cryoeq.screening.view_coverage import ViewCoverage

_ORDER = 5


def plot_coverage(path: Path, coverage: ViewCoverage) -> None:
    """Draw landmarks, those without a stalk, and holes, over the angle to the nearest landmark.

    Args:
        path: the PNG file to create or replace.
        coverage: what to draw.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    landmarks = coverage.triangulation.landmarks
    angles = (
        torch.cat([(chunk @ landmarks.T).amax(1) for chunk in pixel_centres(_ORDER).split(1024)]).clamp(-1, 1).acos()
    )
    widest = math.degrees(coverage.threshold_rad)
    is_rim = (coverage.stalk_dims == 0).repeat(len(landmarks) // len(coverage.stalk_dims))
    with png_figure(path, size_inches=(8.0, 5.8)) as figure:
        axes = figure.add_subplot(projection="mollweide")
        mesh = draw_sphere(axes, angles.rad2deg(), cmap="Blues", norm=Normalize(0, 2 * widest))
        _dots(axes, landmarks[~is_rim], COLOURS[6], 1.5, "landmark views")
        if bool(is_rim.any()):
            _dots(axes, landmarks[is_rim], COLOURS[1], 4.0, "without a stalk: rim of a hole")
        if coverage.gaps:
            _dots(axes, torch.stack([gap.axis for gap in coverage.gaps]), "black", 11.0, "axis of a hole", "X")
        bar = figure.colorbar(mesh, ax=axes, orientation="horizontal", shrink=0.7, pad=0.06, extend="max")
        bar.set_label(f"Angle to the nearest landmark view (degrees); a hole from {widest:.0f}° on")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3, markerscale=1.2)
        figure.suptitle(_title(coverage))


def _dots(
    axes: Axes, vectors: Float[Tensor, "vectors 3"], colour: str, size: float, label: str, marker: str = "."
) -> None:
    x, y, z = vectors.numpy().T
    axes.plot(np.arctan2(y, x), np.arcsin(np.clip(z, -1, 1)), marker, color=colour, markersize=size,
              linestyle="none", label=label)  # fmt: skip


def _title(coverage: ViewCoverage) -> str:
    what = "views, mirror images counted as one" if coverage.are_opposites_one else "views"
    if coverage.is_covered:
        return f"{coverage.n_views} {what}: the sphere is covered"
    widest = math.degrees(coverage.gaps[0].radius_rad)
    plural = "hole" if len(coverage.gaps) == 1 else "holes"
    return f"{coverage.n_views} {what}: {len(coverage.gaps)} {plural}, the widest of radius {widest:.0f}°"
