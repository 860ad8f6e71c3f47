"""What figures of plotly.js have in common: fonts, grid, lines."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cryoeq.outputs.figure import COLOURS, GREY

Figure = dict[str, Any]

GRID = "#e4e4e4"
_FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif", "size": 14, "color": "#222222"}


def plotly_figure(traces: Sequence[Figure], layout: Figure) -> Figure:
    """A figure with the font and the background of the page."""
    shared = {"font": _FONT, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "autosize": True}
    return {"data": list(traces), "layout": shared | layout}


def threshold_line(level: float) -> Figure:
    """Dashed line at a level, all along the x axis."""
    return {"type": "line", "xref": "x domain", "x0": 0, "x1": 1, "y0": level, "y1": level, "layer": "below",
            "line": {"color": GREY, "width": 1, "dash": "dash"}}  # fmt: skip


def threshold_label(level: float) -> Figure:
    """The level of such a line, behind its end."""
    return {"x": 1, "xref": "x domain", "y": level, "text": f"{level:g}", "xanchor": "left", "showarrow": False,
            "font": {"color": GREY}, "xshift": 4}  # fmt: skip


def upright_line(x: float) -> Figure:
    """Dotted line that marks a place on the x axis."""
    return {"type": "line", "x0": x, "x1": x, "yref": "y domain", "y0": 0, "y1": 1, "layer": "below",
            "line": {"color": COLOURS[1], "width": 1.5, "dash": "dot"}}  # fmt: skip


def rounded(values: Tensor) -> list[float]:
    """Numbers as they travel in the page."""
    return [round(value, 5) for value in values.tolist()]
