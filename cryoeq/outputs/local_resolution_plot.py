"""A picture of local resolution: central slices, coloured."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from matplotlib.colors import Normalize
from torch import Tensor

from cryoeq.evaluation.local_resolution import LocalResolution
from cryoeq.outputs.figure import png_figure

_AXES = (("z", "x", "y"), ("y", "x", "z"), ("x", "y", "z"))
"""Axis looked along, then those to the right and up, for array axes 0, 1, 2."""


def plot_local_resolution(
    path: Path, local: LocalResolution, region: Bool[Tensor, "n n n"], *, title: str = ""
) -> None:
    """Central slices along the three axes: the locally filtered map above, its resolution below.

    Args:
        path: the PNG file to create or replace.
        local: what to draw.
        region: where the resolution is meant; its outline is drawn, and the colours span what lies inside.
        title: above the picture.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    resolution, density = local.resolution_angstrom.values.cpu(), local.filtered.values.cpu()
    region = region.cpu()
    inside = resolution[region & (resolution > 0)].numpy()
    norm = Normalize(*np.percentile(inside, [2, 98])) if inside.size else Normalize()
    n, pixel = local.filtered.box_size_px, local.filtered.pixel_size_angstrom
    first, last = -(n // 2 + 0.5) * pixel, (n - n // 2 - 0.5) * pixel
    extent, middle = (first, last, first, last), n // 2
    with png_figure(path, size_inches=(11.0, 7.4)) as figure:
        grid = figure.subplots(2, 3)
        for axis, (along, right, up) in enumerate(_AXES):
            above, below = grid[:, axis]
            above.imshow(density.select(axis, middle).numpy(), origin="lower", extent=extent, interpolation="bicubic")
            above.set_title(f"Slice along {along}")
            values = resolution.select(axis, middle)
            shown = below.imshow(torch.where(values > 0, values, torch.nan).numpy(), origin="lower", extent=extent,
                                 cmap="viridis_r", norm=norm)  # fmt: skip
            outline = region.select(axis, middle).numpy().astype(float)
            if 0 < outline.mean() < 1:
                below.contour(outline, [0.5], colors="black", linewidths=1.2, extent=extent, origin="lower")
            for axes in (above, below):
                axes.set(xlabel=f"{right} (Å)", ylabel=f"{up} (Å)")
        bar = figure.colorbar(shown, ax=grid[1].tolist(), extend="both", pad=0.02)
        bar.set_label("Local resolution (Å)")
        figure.suptitle(title or "Map filtered to its local resolution (above), and that resolution (below)")
