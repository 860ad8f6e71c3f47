"""Pictures of resolution by direction: conical curves, and the resolution over the sphere."""

import math
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from cryoeq.evaluation.directional import ANISOTROPIC_CFAR, AXES_ORDER, CONE_HALF_ANGLE_DEG, DirectionalFsc
from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD, TRUTH_THRESHOLD, crossing_shells, resolution_angstrom
from cryoeq.geometry.healpix import pixel_of_directions
from cryoeq.outputs.figure import COLOURS, GREY, png_figure, resolution_ticks_angstrom
from cryoeq.outputs.mollweide import draw_sphere, mark_direction

_LEAST_SPAN = 1.15


def plot_directional_curves(path: Path, directional: DirectionalFsc, *, title: str = "") -> None:
    """Draw the overall curve, the spread of the conical ones, and the share of directions that reach each resolution.

    Args:
        path: the PNG file to create or replace.
        directional: what to draw.
        title: above the picture.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    with png_figure(path, size_inches=(8.0, 5.8)) as figure:
        axes = figure.subplots()
        _draw_curves(axes, directional)
        _draw_shares(axes, directional)
        _mark_thresholds(axes)
        side = directional.box_size_px * directional.pixel_size_angstrom
        last = (directional.curves.shape[1] - 1) / side
        axes.set(xlabel="Spatial frequency (1/Å)", ylabel="Correlation, or share of directions", xlim=(0, last))
        axes.set_ylim(min(-0.05, float(directional.overall[1:].min()) - 0.05), 1.03)
        top = axes.secondary_xaxis("top")
        ticks = resolution_ticks_angstrom(1 / last)
        top.set_xticks([1 / tick for tick in ticks], labels=[f"{tick:g}" for tick in ticks])
        top.set_xlabel("Resolution (Å)")
        figure.legend(loc="outside lower center", ncols=2, fontsize=11)
        figure.suptitle(title or _verdict(directional))


def plot_directional_resolution(path: Path, directional: DirectionalFsc, *, title: str = "") -> None:
    """Draw the resolution at 0.143 in each direction of Fourier space, in Mollweide's projection.

    Interpolated between shells; colours span 30 % at least, so that an isotropic map looks like one.

    Args:
        path: the PNG file to create or replace.
        directional: what to draw.
        title: above the picture.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    side = directional.box_size_px * directional.pixel_size_angstrom
    values = (side / crossing_shells(directional.curves, HALF_MAP_THRESHOLD)).clamp(max=side)
    middle = float(values.median())
    norm = Normalize(min(float(values.min()), middle / _LEAST_SPAN), max(float(values.max()), middle * _LEAST_SPAN))
    best = int(directional.areas.argmax())
    worst = int(pixel_of_directions(directional.worst_axis, AXES_ORDER))
    marked = {"best": ("o", best), "worst": ("X", worst)}
    with png_figure(path, size_inches=(8.0, 5.2)) as figure:
        axes = figure.add_subplot(projection="mollweide")
        mesh = draw_sphere(axes, values, cmap="viridis_r", norm=norm)
        for name, (marker, place) in marked.items():
            mark_direction(axes, directional.axes[place], marker, f"{name} cones: {float(values[place]):.2f} Å")
        bar = figure.colorbar(mesh, ax=axes, orientation="horizontal", shrink=0.7, pad=0.06)
        bar.set_label(f"Resolution at {HALF_MAP_THRESHOLD:g} in this direction of Fourier space (Å)")
        axes.legend(loc="upper right", bbox_to_anchor=(1.04, 1.12), fontsize=10, labelspacing=0.7)
        figure.suptitle(title or "Resolution by direction (z up, x in the middle)", x=0.4)


def _draw_curves(axes: Axes, directional: DirectionalFsc) -> None:
    side = directional.box_size_px * directional.pixel_size_angstrom
    x = torch.arange(1, directional.curves.shape[1], dtype=torch.float64) / side
    curves = directional.curves[:, 1:]
    mean, spread = curves.mean(0), curves.std(0)
    low, high = curves.min(0).values, curves.max(0).values
    cone = f"cones of {CONE_HALF_ANGLE_DEG:g}°"
    axes.fill_between(x, low, high, color=COLOURS[5], alpha=0.25, linewidth=0, label=f"{cone}: worst to best")
    axes.fill_between(x, mean - spread, (mean + spread).clamp(max=1), color=COLOURS[0], alpha=0.35, linewidth=0,
                      label=f"{cone}: mean ± standard deviation")  # fmt: skip
    resolution = resolution_angstrom(
        directional.overall, HALF_MAP_THRESHOLD, directional.box_size_px, directional.pixel_size_angstrom
    )
    name = f"{resolution:.2f} Å" if math.isfinite(resolution) else "none"
    axes.plot(x, directional.overall[1:], color="black", label=f"all directions: {name}")


def _draw_shares(axes: Axes, directional: DirectionalFsc) -> None:
    """The share of directions whose curve is above 0.143 up to here, as steps that fall from 1 to 0."""
    side = directional.box_size_px * directional.pixel_size_angstrom
    shells = torch.arange(1, directional.curves.shape[1], dtype=torch.float64)
    reached = side / directional.resolutions_angstrom  # 0 where no shell is above
    shares = (reached[:, None] >= shells - 0.01).double().mean(0)
    label = f"share of directions above {HALF_MAP_THRESHOLD:g}"
    axes.plot(shells / side, shares, "--", color=COLOURS[1], drawstyle="steps-mid", label=label)


def _verdict(directional: DirectionalFsc) -> str:
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
