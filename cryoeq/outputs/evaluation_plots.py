"""Pictures of an evaluation: FSC curves and pose errors."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from cryoeq.evaluation.fsc_dips import CtfDip
from cryoeq.evaluation.poses import PoseErrors
from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD, FscCurves, resolution_angstrom
from cryoeq.outputs.figure import (
    COLOURS,
    CURVE_MARGINS,
    CURVES_INCHES,
    GREY,
    LEGEND_BELOW,
    png_figure,
    resolution_ticks_angstrom,
)

_MARKED_DEG = (5.0, 10.0, 30.0)
_ZOOM_DEG = 30.0
_CURVE_COLOURS = (*COLOURS[:3], *COLOURS[4:])
_LINE_STYLES = ("-", "--", "-.", (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))


def plot_fsc(
    path: Path,
    curves: FscCurves,
    *,
    title: str = "Fourier shell correlation of the half maps",
    threshold: float = HALF_MAP_THRESHOLD,
    ctf_power: Float[Tensor, " shells"] | None = None,
    dips: Sequence[CtfDip] = (),
) -> None:
    """Draw all curves against spatial frequency, with resolution in Å along the top.

    Args:
        path: the PNG file to create or replace.
        curves: the curves; missing ones are left out.
        title: title of the picture.
        threshold: correlation at which resolutions are read off: 0.143 between half maps, else 0.5.
        ctf_power: mean |CTF|^2 of the particles per shell, drawn behind the curves; None without.
        dips: dips of the unmasked curve at zeros of the CTF, which are marked.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    named = {"corrected": curves.corrected, "masked": curves.masked, "unmasked": curves.unmasked}
    present = {name: curve for name, curve in named.items() if curve is not None}
    side = curves.box_size_px * curves.pixel_size_angstrom
    plot_correlations(
        path, present, side, title=title, threshold=threshold, randomised=curves.randomised, ctf_power=ctf_power,
        dips=dips,
    )  # fmt: skip


def plot_correlations(
    path: Path,
    curves: Mapping[str, Float[Tensor, " shells"]],
    side_angstrom: float,
    *,
    title: str = "",
    threshold: float = HALF_MAP_THRESHOLD,
    randomised: Float[Tensor, " shells"] | None = None,
    ctf_power: Float[Tensor, " shells"] | None = None,
    dips: Sequence[CtfDip] = (),
) -> None:
    """Draw FSC curves against spatial frequency, with resolution in Å along the top.

    Args:
        path: the PNG file to create or replace.
        curves: correlation per shell by name; the first is drawn as a full line.
        side_angstrom: side of the box.
        title: title of the picture.
        threshold: correlation at which resolutions are read off: 0.143 between half maps, else 0.5.
        randomised: correlation after phase randomisation, which has no resolution.
        ctf_power: mean |CTF|^2 of the particles per shell, drawn behind the curves; None without.
        dips: dips at zeros of the CTF, which are marked.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    n_shells = len(next(iter(curves.values())))
    frequencies = torch.arange(n_shells, dtype=torch.float64) / side_angstrom
    with png_figure(path, size_inches=CURVES_INCHES, margins=CURVE_MARGINS) as figure:
        axes = figure.subplots()
        if ctf_power is not None:
            _add_ctf(axes, frequencies, ctf_power, dips)
        for (name, curve), colour, style in zip(curves.items(), _CURVE_COLOURS, _LINE_STYLES, strict=False):
            label = f"{name}: {_resolution_text(curve, threshold, side_angstrom)}"
            axes.plot(frequencies[1:], curve.cpu()[1:], linestyle=style, color=colour, label=label)
        if randomised is not None:
            axes.plot(frequencies[1:], randomised.cpu()[1:], ":", color=COLOURS[3], label="phases randomised")
        axes.axhline(threshold, color=GREY, linewidth=1.0, linestyle=(0, (6, 4)))
        axes.annotate(f"{threshold:g}", (1.0, threshold), (4, 0), xycoords=("axes fraction", "data"),
                      textcoords="offset points", va="center", color=GREY)  # fmt: skip
        axes.axhline(0.0, color=GREY, linewidth=0.8)
        drawn = [*curves.values(), *([] if randomised is None else [randomised])]
        lowest = min(float(curve[1:].min()) for curve in drawn)
        axes.set(xlabel="Spatial frequency (1/Å)", ylabel="Fourier shell correlation", xlim=(0, float(frequencies[-1])))
        axes.set_ylim(min(-0.05, lowest - 0.05), 1.03)
        figure.legend(title=f"Resolution at FSC = {threshold:g}", ncols=3, **LEGEND_BELOW)
        _add_resolution_axis(axes, side_angstrom, n_shells - 1)
        if title:
            figure.suptitle(title)


def plot_pose_errors(path: Path, errors: PoseErrors, *, title: str = "") -> None:
    """Draw the histogram of the pose errors, and beside it the fraction of images below each error.

    Args:
        path: the PNG file to create or replace.
        errors: errors of all images.
        title: title of the picture.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    kinds = {
        "rotation": errors.rotation_rad.rad2deg().cpu(),
        "view direction": errors.view_direction_rad.rad2deg().cpu(),
        "in plane": errors.in_plane_rad.rad2deg().cpu(),
    }
    with png_figure(path, size_inches=(10.0, 4.5)) as figure:
        histogram, cumulative = figure.subplots(1, 2)
        _draw_histogram(histogram, kinds)
        _draw_cumulative(cumulative, kinds)
        if title:
            figure.suptitle(title)


def _add_ctf(
    axes: Axes, frequencies: Float[Tensor, " shells"], ctf_power: Float[Tensor, " shells"], dips: Sequence[CtfDip]
) -> None:
    """Mean |CTF|^2 as an area behind the curves, and stripes where a curve dips at its zeros."""
    axes.fill_between(frequencies[1:], ctf_power[1:], color=GREY, alpha=0.13, linewidth=0, label="mean |CTF|²")
    for number, dip in enumerate(dips):
        label = "dip at a CTF zero" if number == 0 else None
        first, last = (float(frequencies[shell]) for shell in (dip.last_before, dip.first_after))
        axes.axvspan(first, last, color=COLOURS[4], alpha=0.25, linewidth=0, label=label)


def _resolution_text(curve: Float[Tensor, " shells"], threshold: float, side_angstrom: float) -> str:
    resolution = resolution_angstrom(curve, threshold, 1, side_angstrom)
    return f"{resolution:.2f} Å" if math.isfinite(resolution) else "none"


def _add_resolution_axis(axes: Axes, side_angstrom: float, n_shells: int) -> None:
    """Ticks along the top at round resolutions, coarse to fine, evenly spaced in frequency."""
    ticks = resolution_ticks_angstrom(side_angstrom / n_shells)
    top = axes.secondary_xaxis("top")
    top.set_xticks([1 / tick for tick in ticks], labels=[f"{tick:g}" for tick in ticks])
    top.set_xlabel("Resolution (Å)")


def _draw_histogram(axes: Axes, kinds: Mapping[str, Float[Tensor, " batch"]]) -> None:
    """Steps up to 30 degrees with the rest in the last bin, or up to 180 where most rotations are wrong."""
    is_good = float((kinds["rotation"] < _ZOOM_DEG).float().mean()) >= 0.5
    limit = _ZOOM_DEG if is_good else 180.0
    edges = torch.linspace(0, limit, 31, dtype=torch.float64)
    for (name, values), colour, style in zip(kinds.items(), COLOURS, ("-", "--", ":"), strict=False):
        counts = torch.histogram(values.double().clamp(max=limit), edges).hist / len(values)
        label = f"{name}, median {float(values.median()):.3g}°"
        axes.stairs(counts.numpy(), edges.numpy(), color=colour, linewidth=2, linestyle=style, label=label)
    axes.set(xlabel="Error (degrees)", ylabel=f"Fraction of images per {limit / 30:g}°", xlim=(0, limit))
    if is_good:
        axes.set_xlabel(f"Error (degrees); all above {limit:g} in the last bin")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="best")


def _draw_cumulative(axes: Axes, kinds: Mapping[str, Float[Tensor, " batch"]]) -> None:
    for values, colour, style in zip(kinds.values(), COLOURS, ("-", "--", ":"), strict=False):
        ordered = values.double().sort().values.clamp(min=0.1)
        fraction = torch.arange(1, len(ordered) + 1, dtype=torch.float64) / len(ordered)
        axes.plot(ordered, fraction, style, color=colour, drawstyle="steps-post")
    for limit in _MARKED_DEG:
        axes.axvline(limit, color=GREY, linewidth=1.0, linestyle=(0, (6, 4)))
    axes.set_xscale("log")
    axes.set(xlabel="Error (degrees)", ylabel="Fraction of images below", xlim=(0.1, 180), ylim=(0, 1.02))
    ticks = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 180.0)
    axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
