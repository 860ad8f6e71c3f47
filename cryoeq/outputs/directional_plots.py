"""Pictures of resolution by direction: conical FSC curves, and resolution over the sphere."""

import math
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from cryoeq.evaluation.directional import ANISOTROPIC_CFAR, CONE_HALF_ANGLE_DEG, DirectionalFsc
from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD, TRUTH_THRESHOLD, resolution_angstrom
from cryoeq.outputs.figure import COLOURS, GREY, png_figure, resolution_ticks_angstrom
from cryoeq.outputs.mollweide import draw_sphere, mark_direction

_MIN_SPAN = 1.15  # ratio of either end of the colours to the median


def plot_directional_curves(path: Path, directional: DirectionalFsc, *, title: str = "") -> None:
    """Draw the overall curve, the range of the conical ones, and the fraction of directions above 0.143.

    Args:
        path: the PNG file to create or replace.
        directional: FSC by direction.
        title: title of the picture.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    with png_figure(path, size_inches=(8.0, 5.8)) as figure:
        axes = figure.subplots()
        _draw_curves(axes, directional)
        _draw_fractions(axes, directional)
        _mark_thresholds(axes)
        side = directional.box_size_px * directional.pixel_size_angstrom
        last = (directional.curves.shape[1] - 1) / side
        axes.set(xlabel="Spatial frequency (1/Å)", ylabel="FSC, or fraction of directions", xlim=(0, last))
        axes.set_ylim(min(-0.05, float(directional.overall[1:].min()) - 0.05), 1.03)
        top = axes.secondary_xaxis("top")
        ticks = resolution_ticks_angstrom(1 / last)
        top.set_xticks([1 / tick for tick in ticks], labels=[f"{tick:g}" for tick in ticks])
        top.set_xlabel("Resolution (Å)")
        figure.legend(loc="outside lower center", ncols=2, fontsize=11)
        figure.suptitle(title or f"FSC by direction: {_summary(directional)}")


def plot_directional_resolution(path: Path, directional: DirectionalFsc, *, title: str = "") -> None:
    """Draw the resolution at 0.143 in each direction of Fourier space, in Mollweide's projection.

    Colours span 30 % at least, so that an isotropic map looks isotropic.

    Args:
        path: the PNG file to create or replace.
        directional: FSC by direction.
        title: title of the picture.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    side = directional.box_size_px * directional.pixel_size_angstrom
    values = directional.resolutions_angstrom.clamp(max=side)
    best, median, worst = (float(value) for value in (values.min(), values.median(), values.max()))
    norm = Normalize(min(best, median / _MIN_SPAN), max(worst, median * _MIN_SPAN))
    with png_figure(path, size_inches=(8.0, 5.8)) as figure:
        axes = figure.add_subplot(projection="mollweide")
        mesh = draw_sphere(axes, values, cmap="viridis_r", norm=norm)
        mark_direction(axes, directional.best_axis, "o", f"best direction: {best:.2f} Å")
        mark_direction(axes, directional.worst_axis, "X", f"worst direction: {worst:.2f} Å")
        bar = figure.colorbar(mesh, ax=axes, orientation="horizontal", shrink=0.7, pad=0.06)
        bar.set_label(f"Resolution at FSC = {HALF_MAP_THRESHOLD:g} along this direction (Å); dark: worse")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2)
        figure.suptitle(title or "Resolution by direction")


def _draw_curves(axes: Axes, directional: DirectionalFsc) -> None:
    side = directional.box_size_px * directional.pixel_size_angstrom
    x = torch.arange(1, directional.curves.shape[1], dtype=torch.float64) / side
    curves = directional.curves[:, 1:]
    mean, deviation = curves.mean(0), curves.std(0)
    low, high = curves.min(0).values, curves.max(0).values
    cone = f"cones of {CONE_HALF_ANGLE_DEG:g}°"
    axes.fill_between(x, low, high, color=COLOURS[5], alpha=0.25, linewidth=0, label=f"{cone}: worst to best")
    axes.fill_between(x, mean - deviation, (mean + deviation).clamp(max=1), color=COLOURS[0], alpha=0.35, linewidth=0,
                      label=f"{cone}: mean ± standard deviation")  # fmt: skip
    resolution = resolution_angstrom(
        directional.overall, HALF_MAP_THRESHOLD, directional.box_size_px, directional.pixel_size_angstrom
    )
    name = f"{resolution:.2f} Å" if math.isfinite(resolution) else "none"
    axes.plot(x, directional.overall[1:], color="black", label=f"all directions: {name}")


def _draw_fractions(axes: Axes, directional: DirectionalFsc) -> None:
    """Draw the fraction of directions whose curve stays above 0.143 up to each shell, as descending steps."""
    side = directional.box_size_px * directional.pixel_size_angstrom
    shells = torch.arange(1, directional.curves.shape[1], dtype=torch.float64)
    reached = side / directional.resolutions_angstrom  # 0 where no shell is above
    fractions = (reached[:, None] >= shells - 0.01).double().mean(0)
    label = f"fraction of directions above {HALF_MAP_THRESHOLD:g}"
    axes.plot(shells / side, fractions, "--", color=COLOURS[1], drawstyle="steps-mid", label=label)


def _summary(directional: DirectionalFsc) -> str:
    sign, word = ("<", "anisotropic") if directional.area_ratio < ANISOTROPIC_CFAR else ("≥", "about isotropic")
    ratio, sphericity = directional.area_ratio, directional.sphericity
    return f"cFAR {ratio:.2f} {sign} {ANISOTROPIC_CFAR:g}: {word}; sphericity {sphericity:.2f}"


def _mark_thresholds(axes: Axes) -> None:
    for level in (HALF_MAP_THRESHOLD, TRUTH_THRESHOLD):
        axes.axhline(level, color=GREY, linewidth=1.0, linestyle=(0, (6, 4)))
    axes.axhline(0.0, color=GREY, linewidth=0.8)
    right = axes.secondary_yaxis("right")
    right.set_yticks([HALF_MAP_THRESHOLD, TRUTH_THRESHOLD], labels=[f"{HALF_MAP_THRESHOLD:g}", f"{TRUTH_THRESHOLD:g}"])
    right.spines["right"].set_visible(False)
