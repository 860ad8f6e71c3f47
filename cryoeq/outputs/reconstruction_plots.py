"""Pictures of a reconstruction: central slices and projections of the map, and the course of a training."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from matplotlib.axes import Axes

from cryoeq.domain.volume import Volume
from cryoeq.outputs.figure import COLOURS, GREY, png_figure
from cryoeq.outputs.metric_text import metric_title

_AXES = (("z", "x", "y"), ("y", "x", "z"), ("x", "y", "z"))
"""Direction of view, then the axes to the right and up, for array axes 0, 1, 2."""
_CURVES = ("loss", "synthetic_error_deg", "pose_change_deg")
_LABEL_WIDTH = 30  # characters


def plot_map(slices: Path, projections: Path, volume: Volume) -> None:
    """Draw central slices and projections along the three axes, each as one PNG.

    Args:
        slices: PNG file of the slices.
        projections: PNG file of the projections.
        volume: the map.
    """
    values, middle = volume.values.float(), volume.box_size_px // 2
    _plot_views(slices, [values.select(axis, middle) for axis in range(3)], volume, "Central slices")
    _plot_views(projections, [values.sum(axis) for axis in range(3)], volume, "Projections")


def _plot_views(path: Path, views: Sequence[torch.Tensor], volume: Volume, kind: str) -> None:
    n, pixel = volume.box_size_px, volume.pixel_size_angstrom
    first, last = -(n // 2 + 0.5) * pixel, (n - n // 2 - 0.5) * pixel  # the origin is the centre of voxel n // 2
    with png_figure(path, size_inches=(10.5, 3.8)) as figure:
        figure.set_layout_engine("compressed")
        figure.suptitle(f"{kind} of the map ({n} px, {pixel:.4g} Å)")
        for axes, view, (along, right, up) in zip(figure.subplots(1, 3), views, _AXES, strict=True):
            extent = (first, last, first, last)
            axes.imshow(view.numpy(), origin="lower", extent=extent, interpolation="bicubic")
            axes.set_title(f"along {along}")
            axes.set_xlabel(f"{right} (Å)")
            axes.set_ylabel(f"{up} (Å)")
            for axis in (axes.xaxis, axes.yaxis):
                axis.get_major_locator().set_params(nbins=5, min_n_ticks=3)


def plot_training(path: Path, history: Mapping[str, Sequence[float]]) -> None:
    """Draw loss, pose error on synthetic projections and pose change per epoch.

    Args:
        path: the PNG file.
        history: one value per epoch, by metric; metrics that were not recorded are left out.
    """
    curves = [(name, textwrap.fill(metric_title(name), _LABEL_WIDTH)) for name in _CURVES if name in history]
    with png_figure(path, size_inches=(4.2 * len(curves), 3.6)) as figure:
        grid = figure.subplots(1, len(curves), squeeze=False)[0]
        for axes, (name, label), colour in zip(grid, curves, COLOURS, strict=False):
            epochs = range(1, len(history[name]) + 1)
            axes.plot(epochs, history[name], color=colour, marker="." if len(epochs) < 3 else "")
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0)
            axes.grid(color=GREY, alpha=0.2)


def plot_comparison(path: Path, particles: Float[torch.Tensor, "images n n"], recovered: Volume, truth: Volume) -> None:
    """Draw some particles, and central slices of the recovered map above those of the true one.

    Args:
        path: the PNG file.
        particles: at least five images (y, x).
        recovered: the map, aligned to the truth.
        truth: the true map.
    """
    columns = 5
    with png_figure(path, size_inches=(10.0, 6.6)) as figure:
        grid = figure.subplots(3, columns, squeeze=False)
        for axes, image in zip(grid[0], particles, strict=False):
            axes.imshow(image.numpy(), origin="lower", interpolation="nearest")
        for row, volume in zip(grid[1:], (recovered, truth), strict=True):
            values, n = volume.values.float(), volume.box_size_px
            limits = {"vmin": float(values.min()), "vmax": float(values.max())}
            for axes, offset in zip(row, torch.linspace(-0.2, 0.2, columns).tolist(), strict=True):
                z = round(offset * n)
                axes.imshow(values[n // 2 + z].numpy(), origin="lower", interpolation="bicubic", **limits)
                axes.set_title(f"z = {z * volume.pixel_size_angstrom:.0f} Å", fontsize=11)
        for axes in grid.flat:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        for axes, label in zip(grid[:, 0], ("particles", "map without poses", "truth"), strict=True):
            axes.set_ylabel(label)
            _add_scale_bar(axes, truth)


def _add_scale_bar(axes: Axes, volume: Volume) -> None:
    """A bar of a round length, about a third of the box, in the lower left corner."""
    side = volume.box_size_px * volume.pixel_size_angstrom
    power = 10.0 ** math.floor(math.log10(side / 3))
    length = next(step * power for step in (5.0, 2.0, 1.0) if step * power <= side / 3)
    left, low = 0.06 * volume.box_size_px, 0.07 * volume.box_size_px
    axes.plot([left, left + length / volume.pixel_size_angstrom], [low, low], color="white", linewidth=4)
    axes.annotate(f"{length:g} Å", (left, low), (0, 5), textcoords="offset points", color="white", fontsize=11)
