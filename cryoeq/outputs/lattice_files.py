"""Files of ``cryoeq lattice find``: the indexed spots as a star file, the spectrum with its lattice as PNG."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from torch import Tensor

from cryoeq.io.small_tables import Number, write_small_tables
from cryoeq.lattice.power_spectrum import Spectrum
from cryoeq.outputs.figure import COLOURS, png_figure

_LABELLED_ORDER = 2
_MAX_SIDE_PX = 1024


def write_spots(
    path: Path,
    orders: Int[Tensor, "spots 2"],
    frequencies: Float[Tensor, "spots 2"],
    power: Float[Tensor, " spots"],
    pixel_size_angstrom: float,
) -> None:
    """Write one row per spot, in order of increasing resolution.

    Args:
        path: the file to create or replace.
        orders: Miller indices (h, k) in the reduced cell.
        frequencies: positions (x, y) of the peaks, cycles per pixel.
        power: power of the peaks over the background.
        pixel_size_angstrom: pixel size of the micrograph.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    per_angstrom = frequencies / pixel_size_angstrom
    resolution = 1 / per_angstrom.norm(dim=1)
    order = resolution.argsort(descending=True)
    columns: dict[str, Sequence[Number]] = {
        "cryoeqMillerH": orders[order, 0].tolist(),
        "cryoeqMillerK": orders[order, 1].tolist(),
        "cryoeqFrequencyX": per_angstrom[order, 0].tolist(),
        "cryoeqFrequencyY": per_angstrom[order, 1].tolist(),
        "cryoeqResolution": resolution[order].tolist(),
        "cryoeqPowerOverNoise": power[order].tolist(),
    }
    write_small_tables(path, {"spots": columns}, float_format=".6g")


def plot_spectrum(
    path: Path,
    spectrum: Spectrum,
    reciprocal: Float[Tensor, "2 2"] | None,
    spots: tuple[Int[Tensor, "spots 2"], Float[Tensor, "spots 2"]] | None,
    *,
    title: str,
) -> None:
    """Draw the background-corrected power spectrum, with the spots circled and the two reciprocal vectors.

    Args:
        path: the PNG file to create or replace.
        spectrum: background-corrected power spectrum.
        reciprocal: vectors of the lattice as columns (x, y), cycles per pixel; None for no lattice.
        spots: orders and positions of the indexed spots, cycles per pixel, one of each Friedel pair.
        title: title of the figure.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    reach = 0.5 / spectrum.pixel_size_angstrom
    if spots is not None and len(spots[1]):
        reach = min(reach, 1.25 * float(spots[1].norm(dim=1).max()) / spectrum.pixel_size_angstrom)
    with png_figure(path, size_inches=(7.4, 7.0)) as figure:
        axes = figure.subplots()
        excess, extent = _cropped(spectrum, reach)
        axes.imshow(excess.sqrt().numpy(), cmap="gray_r", vmin=0.4, vmax=3.5, extent=extent, origin="lower")
        if reciprocal is not None and spots is not None:
            _draw_lattice(
                axes, reciprocal / spectrum.pixel_size_angstrom, spots[0], spots[1] / spectrum.pixel_size_angstrom
            )
        axes.set(
            xlim=(-reach, reach),
            ylim=(-reach, reach),
            xlabel="Frequency along x (1/Å)",
            ylabel="Frequency along y (1/Å)",
        )
        axes.set_title(title)


def _cropped(spectrum: Spectrum, reach: float) -> tuple[Float[Tensor, "ny nx"], tuple[float, float, float, float]]:
    """The spectrum within a frequency, max-pooled to at most about 1024 pixels a side, and its extent in 1/Angstrom."""
    ny, nx = spectrum.excess.shape
    step_x, step_y = 1 / (nx * spectrum.pixel_size_angstrom), 1 / (ny * spectrum.pixel_size_angstrom)
    half_x, half_y = min(nx // 2, round(reach / step_x) + 1), min(ny // 2, round(reach / step_y) + 1)
    excess = spectrum.excess[ny // 2 - half_y : ny // 2 + half_y, nx // 2 - half_x : nx // 2 + half_x]
    stride = max(1, max(excess.shape) // _MAX_SIDE_PX)
    pooled = torch.nn.functional.max_pool2d(excess[None, None], stride)[0, 0] if stride > 1 else excess
    left, bottom = (-half_x - 0.5) * step_x, (-half_y - 0.5) * step_y
    return pooled, (left, left + 2 * half_x * step_x, bottom, bottom + 2 * half_y * step_y)


def _draw_lattice(
    axes: Axes, reciprocal: Float[Tensor, "2 2"], orders: Int[Tensor, "spots 2"], positions: Float[Tensor, "spots 2"]
) -> None:
    both = torch.cat([positions, -positions])
    axes.scatter(both[:, 0].numpy(), both[:, 1].numpy(), s=70, facecolors="none", edgecolors=COLOURS[1], linewidths=1.1)
    for (h, k), (x, y) in zip(orders.tolist(), positions.tolist(), strict=True):
        if max(abs(h), abs(k)) <= _LABELLED_ORDER:
            axes.annotate(f"{h},{k}", (x, y), xytext=(5, 5), textcoords="offset points", fontsize=7, color=COLOURS[0])
    for (x, y), name, colour in zip(reciprocal.T.tolist(), ("a*", "b*"), (COLOURS[0], COLOURS[2]), strict=True):
        axes.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 2})
        axes.annotate(name, (x, y), xytext=(-16, -14), textcoords="offset points", color=colour, fontweight="bold")
