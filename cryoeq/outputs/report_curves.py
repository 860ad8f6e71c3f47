"""Curves of a report: Fourier shell correlation, and the histogram of the probability of junk."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.evaluation.fsc_dips import CtfDip
from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD, FscCurves
from cryoeq.outputs.figure import COLOURS, GREY, resolution_ticks_angstrom
from cryoeq.outputs.plotly_parts import (
    GRID,
    Figure,
    plotly_figure,
    rounded,
    threshold_label,
    threshold_line,
    upright_line,
)

_JUNK_BINS = 40


def fsc_figure(
    curves: FscCurves, ctf_power: Float[Tensor, " shells"] | None = None, dips: Sequence[CtfDip] = ()
) -> Figure:
    """FSC of the half maps: spatial frequency below, resolution above, threshold and resolution marked.

    Args:
        curves: the curves; missing ones are left out.
        ctf_power: mean |CTF|^2 of the particles per shell, drawn behind the curves; None without.
        dips: dips of the unmasked curve at zeros of the CTF, which are marked.
    """
    side = curves.box_size_px * curves.pixel_size_angstrom
    frequencies = (torch.arange(1, len(curves.unmasked)) / side).tolist()
    resolutions = curves.resolutions_angstrom(HALF_MAP_THRESHOLD)
    named = {"unmasked": curves.unmasked, "masked": curves.masked, "corrected": curves.corrected}
    drawn = {name: curve for name, curve in named.items() if curve is not None}
    traces = [
        _fsc_curve(f"{name}: {_resolution_text(resolutions[name])}", frequencies, curve, COLOURS[number])
        for number, (name, curve) in enumerate(drawn.items())
    ]
    if curves.randomised is not None:
        traces.append(_fsc_curve("phases randomised", frequencies, curves.randomised, COLOURS[3], dash="dot"))
    if ctf_power is not None:
        traces.insert(0, _ctf_area(frequencies, ctf_power))
    shapes = [threshold_line(HALF_MAP_THRESHOLD), *(_dip_stripe(dip, side) for dip in dips)]
    resolution = resolutions["unmasked"] or math.inf
    if math.isfinite(resolution):
        shapes.append(upright_line(1 / resolution))
    lowest = min(float(curve[1:].min()) for curve in drawn.values())
    return _fsc_figure(traces, shapes, frequencies, lowest)


def class_fsc_figure(curves: Mapping[int, FscCurves]) -> Figure:
    """FSC of the half maps of several classes: unmasked, and dashed the one that is corrected for the mask.

    Args:
        curves: curves of each class by its number; at least one, of maps of one box.
    """
    some = next(iter(curves.values()))
    side = some.box_size_px * some.pixel_size_angstrom
    frequencies = (torch.arange(1, len(some.unmasked)) / side).tolist()
    traces, lowest = list[Figure](), 0.0
    for number, each in curves.items():
        resolutions, colour = each.resolutions_angstrom(HALF_MAP_THRESHOLD), class_colour(number)
        for name, curve, dash in (("unmasked", each.unmasked, "solid"), ("corrected", each.corrected, "dash")):
            if curve is not None:
                label = f"class {number}, {name}: {_resolution_text(resolutions[name])}"
                traces.append(_fsc_curve(label, frequencies, curve, colour, dash=dash))
                lowest = min(lowest, float(curve[1:].min()))
    return _fsc_figure(traces, [threshold_line(HALF_MAP_THRESHOLD)], frequencies, lowest)


def class_colour(number: int) -> str:
    """Colour of a class wherever it is drawn.

    Args:
        number: of the class, from 1.
    """
    return COLOURS[(number - 1) % len(COLOURS)]


def junk_figure(probabilities: Mapping[int, Float[Tensor, " particles"]], cut: float) -> Figure:
    """Histogram of the probability that a particle is junk, classes stacked, with the cut.

    Args:
        probabilities: of the particles of each class, by its number; of a run of one class under 1.
        cut: probability from which on a particle counts as junk.
    """
    edges = torch.linspace(0, 1, _JUNK_BINS + 1, dtype=torch.float64)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    traces = [
        {
            "type": "bar", "x": middles, "y": torch.histogram(values.double(), edges).hist.long().tolist(),
            "name": f"class {number}", "marker": {"color": class_colour(number)}, "width": 1 / _JUNK_BINS,
            "showlegend": len(probabilities) > 1,
            "hovertemplate": "about %{x:.3f}: %{y} particles<extra></extra>",
        }
        for number, values in probabilities.items()
    ]  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "Probability of being junk"}, "range": [0, 1], "gridcolor": GRID,
                  "zeroline": False},
        "yaxis": {"title": {"text": "Particles"}, "rangemode": "tozero", "gridcolor": GRID, "zerolinecolor": GREY},
        "barmode": "stack", "bargap": 0, "shapes": [upright_line(cut)], "height": 340,
        "annotations": [{"x": cut, "y": 1, "yref": "y domain", "yanchor": "bottom", "showarrow": False,
                         "text": f"cut: {cut:g}", "font": {"color": GREY}}],
        "legend": {"orientation": "h", "x": 0, "y": -0.22, "yanchor": "top", "traceorder": "normal"},
        "margin": {"l": 64, "r": 20, "t": 30, "b": 56},
    }  # fmt: skip
    return plotly_figure(traces, layout)


def _fsc_figure(traces: Sequence[Figure], shapes: list[Figure], frequencies: Sequence[float], lowest: float) -> Figure:
    """Curves over spatial frequency, with the resolution above."""
    ticks = resolution_ticks_angstrom(1 / frequencies[-1])
    on_top = {
        "type": "scatter", "x": [frequencies[0]], "y": [None], "xaxis": "x2", "hoverinfo": "skip", "showlegend": False,
    }  # fmt: skip
    limits = [0, frequencies[-1] * 1.01]
    axis = {"range": limits, "gridcolor": GRID, "zeroline": False}
    layout = {
        "xaxis": {**axis, "title": {"text": "Spatial frequency (1/Å)"}, "rangemode": "tozero"},
        "xaxis2": {
            "range": limits, "overlaying": "x", "side": "top", "matches": "x", "showgrid": False,
            "tickvals": [1 / tick for tick in ticks], "ticktext": [f"{tick:g}" for tick in ticks],
            "title": {"text": "Resolution (Å)"}, "ticks": "outside",
        },
        "yaxis": {"range": [min(-0.05, lowest - 0.05), 1.05], "gridcolor": GRID,
                  "title": {"text": "Fourier shell correlation"}, "zerolinecolor": GREY},
        "shapes": shapes, "annotations": [threshold_label(HALF_MAP_THRESHOLD)], "height": 470,
        "legend": {"orientation": "h", "x": 0, "y": -0.25, "yanchor": "top", "font": {"size": 13}},
        "margin": {"l": 64, "r": 56, "t": 64, "b": 56},
    }  # fmt: skip
    return plotly_figure([*traces, on_top], layout)


def _fsc_curve(
    name: str, frequencies: Sequence[float], curve: Float[Tensor, " shells"], colour: str, *, dash: str = "solid"
) -> Figure:
    return {
        "type": "scatter", "mode": "lines", "name": name, "x": list(frequencies), "y": rounded(curve[1:]),
        "line": {"color": colour, "width": 2.5, "dash": dash},
        "customdata": [f"{1 / frequency:.4g}" for frequency in frequencies],
        "hovertemplate": "%{customdata} Å: FSC %{y:.3f}<extra>" + name.partition(":")[0] + "</extra>",
    }  # fmt: skip


def _ctf_area(frequencies: Sequence[float], ctf_power: Float[Tensor, " shells"]) -> Figure:
    return {
        "type": "scatter", "mode": "lines", "name": "mean |CTF|² of the particles", "x": list(frequencies),
        "y": rounded(ctf_power[1:]), "line": {"width": 0}, "fill": "tozeroy", "fillcolor": "rgba(102,102,102,0.14)",
        "hoverinfo": "skip",
    }  # fmt: skip


def _dip_stripe(dip: CtfDip, side_angstrom: float) -> Figure:
    return {"type": "rect", "yref": "y domain", "y0": 0, "y1": 1, "x0": dip.last_before / side_angstrom,
            "x1": dip.first_after / side_angstrom, "layer": "below", "line": {"width": 0},
            "fillcolor": COLOURS[4], "opacity": 0.25}  # fmt: skip


def _resolution_text(resolution: float | None) -> str:
    return "none" if resolution is None or math.isinf(resolution) else f"{resolution:.1f} Å"
