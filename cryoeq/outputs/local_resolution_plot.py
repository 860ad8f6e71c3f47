"""Picture of local resolution: slices through the centre of mass, coloured."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.colors import Normalize
from torch import Tensor

from cryoeq.evaluation.local_resolution import LocalResolution
from cryoeq.outputs.figure import png_figure

_AXES = (("z", "x", "y"), ("y", "x", "z"), ("x", "y", "z"))
"""Normal of the slice, then the axes to the right and up, for array axes 0, 1, 2."""


def plot_local_resolution(
    path: Path, local: LocalResolution, region: Bool[Tensor, "n n n"], *, title: str = ""
) -> None:
    """Draw slices through the centre of mass: the locally filtered map above, its resolution below.

    Args:
        path: the PNG file to create or replace.
        local: local resolution and locally filtered map.
        region: the molecule; its outline is drawn, and the colours span the resolutions inside.
        title: title of the picture.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    resolution, density = local.resolution_angstrom.values.cpu(), local.filtered.values.cpu()
    region = region.cpu()
    measured = resolution[region & (resolution > 0)].numpy()
    norm = Normalize(*np.percentile(measured, [2, 98])) if measured.size else Normalize()
    n, pixel = local.filtered.box_size_px, local.filtered.pixel_size_angstrom
    first, last = -(n // 2 + 0.5) * pixel, (n - n // 2 - 0.5) * pixel
    extent, centre = (first, last, first, last), _centre_of_mass(density, region)
    with png_figure(path, size_inches=(11.0, 7.4)) as figure:
        grid = figure.subplots(2, 3)
        for axis, (along, right, up) in enumerate(_AXES):
            above, below = grid[:, axis]
            filtered, values, inside = (volume.select(axis, centre[axis]) for volume in (density, resolution, region))
            above.imshow(filtered.numpy(), origin="lower", extent=extent, interpolation="bicubic")
            above.set_title(f"{along} = {(centre[axis] - n // 2) * pixel:.0f} Å")
            coloured = below.imshow(torch.where(values > 0, values, torch.nan).numpy(), origin="lower", extent=extent,
                                 cmap="viridis_r", norm=norm)  # fmt: skip
            outline = inside.numpy().astype(float)
            if 0 < outline.mean() < 1:
                below.contour(outline, [0.5], colors="black", linewidths=1.2, extent=extent, origin="lower")
            for axes in (above, below):
                axes.set(xlabel=f"{right} (Å)", ylabel=f"{up} (Å)")
        bar = figure.colorbar(coloured, ax=grid[1].tolist(), extend="both", pad=0.02)
        bar.set_label("Local resolution (Å)")
        figure.suptitle(title or "Map filtered to its local resolution (above), and that resolution (below)")


def _centre_of_mass(density: Float[Tensor, "n n n"], region: Bool[Tensor, "n n n"]) -> tuple[int, int, int]:
    """Voxel (z, y, x) nearest to the centre of mass of the density above the noise of the box."""
    mass = torch.where(region, density - density.mean() - 2 * density.std(), 0.0).clamp(min=0).double()
    if float(mass.sum()) <= 0:
        middle = len(density) // 2
        return middle, middle, middle
    voxels, weights = (mass > 0).nonzero().double(), mass[mass > 0]
    z, y, x = (weights @ voxels / weights.sum()).round().long().tolist()
    return z, y, x
