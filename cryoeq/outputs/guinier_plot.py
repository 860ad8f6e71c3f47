"""Guinier plot: logarithm of the amplitude against 1 / resolution^2."""

from pathlib import Path

from cryoeq.evaluation.sharpening import LOG_OF_NOTHING, GuinierPlot
from cryoeq.outputs.figure import COLOURS, CURVE_MARGINS, CURVES_INCHES, GREY, LEGEND_BELOW, png_figure

_STYLES = ("-", "--", "-.", (0, (1, 1)))
_TICKS_ANGSTROM = (50, 20, 15, 12, 10, 9, 8, 7, 6, 5, 4.5, 4, 3.5, 3, 2.5, 2.2, 2, 1.8, 1.6, 1.4, 1.2, 1)
_MIN_TICK_DISTANCE = 0.07  # fraction of the axis


def plot_guinier(path: Path, guinier: GuinierPlot, *, title: str = "") -> None:
    """Draw ln(amplitude) against 1 / resolution^2 after each step, and the fitted line.

    Args:
        path: the PNG file to create or replace.
        guinier: the amplitudes.
        title: title of the picture.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    named = {
        "original": guinier.original,
        "divided by the MTF": guinier.mtf_corrected,
        "weighted by the FSC": guinier.weighted,
        f"sharpened, B = {guinier.bfactor_angstrom2:.0f} Å²": guinier.sharpened,
    }
    x = guinier.inverse_square_resolution.cpu()
    with png_figure(path, size_inches=CURVES_INCHES, margins=CURVE_MARGINS) as figure:
        axes = figure.subplots()
        for (name, curve), colour, style in zip(named.items(), COLOURS, _STYLES, strict=False):
            if curve is not None:
                present = curve.cpu() > LOG_OF_NOTHING
                axes.plot(x[present], curve.cpu()[present], linestyle=style, color=colour, label=name)
        if guinier.fit is not None:
            low, high = axes.get_ylim()
            line = guinier.fit.intercept + guinier.fit.slope_angstrom2 * x
            axes.plot(x, line, color=GREY, linewidth=1.2, label=f"fit to {guinier.fit.n_points} shells")
            axes.set_ylim(low, high)
        axes.set(xlabel="1 / resolution² (1/Å²)", ylabel="ln(mean amplitude)", xlim=(0, float(x[-1])))
        figure.legend(ncols=2, **LEGEND_BELOW)
        top = axes.secondary_xaxis("top")
        ticks = _spaced_ticks(float(x[-1]))
        top.set_xticks([tick**-2 for tick in ticks], labels=[f"{tick:g}" for tick in ticks])
        top.set_xlabel("Resolution (Å)")
        if title:
            figure.suptitle(title)


def _spaced_ticks(last: float) -> list[float]:
    """Round resolutions that are not crowded along 1 / resolution^2."""
    chosen: list[float] = []
    for tick in _TICKS_ANGSTROM:
        before = chosen[-1] ** -2 if chosen else 0.0
        if before + _MIN_TICK_DISTANCE * last < tick**-2 <= last:
            chosen.append(tick)
    return chosen
