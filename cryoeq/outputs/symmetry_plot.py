"""Picture of a map's point groups: agreement with rotated copies, shell by shell."""

from pathlib import Path

import torch

from cryoeq.maps.point_groups import PointGroups
from cryoeq.outputs.figure import COLOURS, CURVE_MARGINS, CURVES_INCHES, GREY, LEGEND_BELOW, png_figure

_CURVES = 6
_STYLES = ("-", "--", "-.", (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (5, 1)))


def plot_point_groups(path: Path, groups: PointGroups, side_angstrom: float, *, title: str = "") -> None:
    """Draw the correlation of a half map with the other, rotated by each group, beside that of random rotations.

    Args:
        path: the PNG file to create or replace.
        groups: the groups; of many those that hold and have most elements, then those with the highest scores.
        side_angstrom: side of the box.
        title: title of the picture.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    order = sorted(groups.groups, key=lambda group: (not group.holds, -group.order if group.holds else -group.score))
    halves, mean, deviation = (
        values.cpu() for values in (groups.half_correlations, groups.random_correlations, groups.random_deviations)
    )
    frequencies = torch.arange(len(halves), dtype=torch.float64) / side_angstrom
    with png_figure(path, size_inches=CURVES_INCHES, margins=CURVE_MARGINS) as figure:
        axes = figure.subplots()
        axes.fill_between(frequencies[1:], (mean - 2 * deviation)[1:], (mean + 2 * deviation)[1:], color=GREY,
                          alpha=0.25, linewidth=0, label="random rotations (± 2 σ)")  # fmt: skip
        axes.plot(frequencies[1:], halves[1:], color="black", linewidth=3, label="not rotated")
        for group, colour, style in zip(order[:_CURVES], COLOURS, _STYLES, strict=False):
            label = f"{group.symmetry}: {group.score:.2f}" + ("" if group.holds else ", no")
            axes.plot(frequencies[1:], group.correlations.cpu()[1:], linestyle=style, color=colour, label=label)
        axes.axhline(0.0, color=GREY, linewidth=0.8)
        axes.axvline(groups.last_shell / side_angstrom, color=GREY, linewidth=1.0, linestyle=(0, (6, 4)))
        axes.set(xlabel="Spatial frequency (1/Å)", ylabel="Fourier shell correlation", xlim=(0, float(frequencies[-1])))
        axes.set_ylim(-0.1, 1.03)
        figure.legend(ncols=3, **LEGEND_BELOW)
        figure.suptitle(title or "Half maps, one of them rotated by a point group")
