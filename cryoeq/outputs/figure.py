"""Pictures as PNG files: matplotlib without pyplot's global state, saved atomically."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from cryoeq.io.atomic import atomic_path

# Okabe and Ito's palette: distinct to colour-blind readers, and by lightness in grey print.
COLOURS: Final[tuple[str, ...]] = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY: Final[str] = "#666666"
# Curves with a title, ticks along the bottom and the top, and a legend below, where no curve can run into it.
CURVES_INCHES: Final = (7.0, 5.4)
CURVE_MARGINS: Final[Mapping[str, float]] = {"left": 0.105, "right": 0.915, "bottom": 0.305, "top": 0.845}
LEGEND_BELOW: Final[Mapping[str, Any]] = {"loc": "upper center", "bbox_to_anchor": (0.51, 0.185)}
_ROUND: Final = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.5, 2.8, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0)


def resolution_ticks_angstrom(finest_angstrom: float, *, count: int = 7) -> list[float]:
    """Round resolutions, coarse to fine, about evenly spaced in spatial frequency.

    Args:
        finest_angstrom: the finest resolution of the axis.
        count: maximal number of ticks.
    """
    wanted = (finest_angstrom * count / step for step in range(1, count + 1))
    return sorted({_rounded(value, finest_angstrom) for value in wanted}, reverse=True)


def _rounded(value: float, minimum: float) -> float:
    """Round number nearest to a value by ratio, not below a minimum."""
    power = 10.0 ** math.floor(math.log10(value))
    allowed = [step * power for step in _ROUND if step * power > 0.999 * minimum]
    return min(allowed, key=lambda candidate: abs(math.log(candidate / value)))


@contextmanager
def png_figure(
    path: Path,
    *,
    size_inches: tuple[float, float] = (7.0, 4.5),
    dpi: int = 150,
    margins: Mapping[str, float] | None = None,
) -> Iterator[Figure]:
    """A figure that is saved as PNG when the block ends, and not at all when it raises.

    Args:
        path: the file to write; its folder must exist.
        size_inches: width and height.
        dpi: pixels per inch; text stays legible at half size with the default.
        margins: left, right, bottom and top of the axes as fractions of the figure; None fits them to the text, which
            means to draw everything twice.

    Yields:
        An empty figure; add axes with ``figure.subplots()``.
    """
    style: dict[Any, Any] = {
        "font.size": 12.0,
        "axes.labelsize": 13.0,
        "axes.titlesize": 13.0,
        "legend.fontsize": 11.0,
        "legend.frameon": False,
        "lines.linewidth": 2.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "image.cmap": "gray",
        "image.interpolation": "nearest",
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=size_inches, dpi=dpi, layout=None if margins else "constrained")
        if margins:
            figure.subplots_adjust(**margins)
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
