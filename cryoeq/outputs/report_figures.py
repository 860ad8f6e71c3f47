"""Interactive figures of a report, in the form of plotly.js: dictionaries of traces and layout.

They are written as plain dictionaries, because importing ``plotly.graph_objects`` takes half a second and nothing but
the JSON is needed. Arrays travel as base64, which is smaller than text and faster to read.
"""

import base64
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import Volume
from cryoeq.geometry.fourier import crop_centred, fft_map, ifft_map, pad_centred
from cryoeq.outputs.figure import COLOURS, GREY
from cryoeq.outputs.metric_text import metric_rank, metric_title
from cryoeq.outputs.plotly_parts import GRID, Figure, plotly_figure
from cryoeq.outputs.progress_file import ProgressRow

_SURFACE_PX = 48  # plotly.js takes a second for 48 voxels along each axis
_LEVELS = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6)  # fractions of the density that one voxel in 1,000 exceeds
_FIRST_LEVEL = 5
_COARSE_PX = 64  # box in which the molecule is located
_MARGIN_PX = 2
_SLICE_PX = 256
_SLICE_AXIS = {"showgrid": False, "zeroline": False, "nticks": 5, "constrain": "domain"}
_MAX_POINTS = 300


def slice_figures(volume: Volume) -> dict[str, Figure]:
    """Central slices normal to z, y and x, by name; coordinates in Å from the centre of the box."""
    values, n, pixel = volume.values.float(), volume.box_size_px, volume.pixel_size_angstrom
    step = -(-n // _SLICE_PX)
    first, spacing = -(n // 2) * pixel, step * pixel
    low, high = float(values.min()), float(values.max())
    figures = {}
    for axis, (along, right, up) in enumerate((("z", "x", "y"), ("y", "x", "z"), ("x", "y", "z"))):
        plane = values.select(axis, n // 2)[::step, ::step]
        trace = {
            "type": "heatmap", "z": _base64(_quantised(plane, low, high)), "x0": first, "dx": spacing, "y0": first,
            "dy": spacing, "colorscale": "Greys", "zmin": 0, "zmax": 255, "zsmooth": "best", "showscale": False,
            "hovertemplate": f"{right} %{{x:.0f}} Å, {up} %{{y:.0f}} Å<extra></extra>",
        }  # fmt: skip
        layout = {
            "xaxis": {"title": {"text": f"{right} (Å)"}, **_SLICE_AXIS},
            "yaxis": {"title": {"text": f"{up} (Å)", "standoff": 2}, "scaleanchor": "x", **_SLICE_AXIS},
            "title": {"text": f"slice along {along}", "font": {"size": 15}, "y": 0.97, "yanchor": "top"},
            "height": 330, "margin": {"l": 60, "r": 10, "t": 36, "b": 46},
        }  # fmt: skip
        figures[f"slice_{along}"] = plotly_figure([trace], layout)
    return figures


def surface_figure(volume: Volume, *, height_px: int = 640) -> Figure:
    """Isosurface with a slider for its level; the map is cropped to the molecule and resampled.

    Args:
        volume: the map.
        height_px: of the figure.
    """
    values, pixel, corner, dense = _around_molecule(volume)
    quantised = _quantised(values, 0.0, dense)
    z, y, x = np.meshgrid(*[np.arange(side, dtype=np.uint8) for side in values.shape], indexing="ij")
    trace = {
        "type": "isosurface", "x": _base64(x.ravel()), "y": _base64(y.ravel()), "z": _base64(z.ravel()),
        "value": _base64(quantised.ravel()), "isomin": 255 * _LEVELS[_FIRST_LEVEL], "isomax": 255,
        "surface": {"count": 1}, "caps": {f"{axis}": {"show": False} for axis in "xyz"},
        "colorscale": [[0, COLOURS[5]], [1, COLOURS[5]]], "showscale": False, "hoverinfo": "skip",
        "lighting": {"ambient": 0.45, "diffuse": 0.75, "specular": 0.15, "roughness": 0.6},
        "lightposition": {"x": 2e4, "y": 2e4, "z": 4e4},
    }  # fmt: skip
    axes = {
        f"{axis}axis": {"title": {"text": f"{axis} (Å)"}, "showbackground": False, "gridcolor": GRID,
                        "zeroline": False, **_ticks_angstrom(values.shape[2 - place], pixel, corner[place])}
        for place, axis in enumerate("xyz")
    }  # fmt: skip
    slider = {
        "active": _FIRST_LEVEL, "x": 0.05, "len": 0.9, "pad": {"t": 8},
        "currentvalue": {"prefix": "density at the surface: ", "font": {"size": 13}},
        "steps": [
            {"method": "restyle", "args": [{"isomin": 255 * level}], "label": f"{level * dense:.3g}"}
            for level in _LEVELS
        ],
    }  # fmt: skip
    camera = {"eye": {"x": 1.45, "y": 1.45, "z": 0.8}, "center": {"x": 0, "y": 0, "z": -0.08}}
    layout = {
        "scene": {**axes, "aspectmode": "data", "camera": camera, "dragmode": "orbit"}, "sliders": [slider],
        "height": height_px, "margin": {"l": 0, "r": 0, "t": 0, "b": 96},
    }  # fmt: skip
    return plotly_figure([trace], layout)


def orientation_figure(poses: Poses) -> Figure:
    """Density of viewing directions over the sphere in cells of equal area; 1 for uniform views."""
    views = poses.rotations[:, 2].double()
    rows = min(max(4, math.isqrt(len(poses) // 12)), 18)  # about six views per cell, if they are few
    azimuths = torch.rad2deg(torch.atan2(views[:, 1], views[:, 0]))
    heights = views[:, 2].clamp(-1, 1)
    edges = [torch.linspace(-1, 1, rows + 1).double(), torch.linspace(-180, 180, 2 * rows + 1).double()]
    counts = torch.histogramdd(torch.stack([heights, azimuths], 1), edges).hist
    density = counts * (counts.numel() / len(poses))
    tilts = (0, 30, 60, 90, 120, 150, 180)
    trace = {
        "type": "heatmap", "z": density.double().round(decimals=3).tolist(), "x0": -180 + 90 / rows, "dx": 180 / rows,
        "y0": -1 + 1 / rows, "dy": 2 / rows, "colorscale": "Viridis", "zmin": 0,
        "zmax": max(2.0, float(density.max())), "colorbar": {"title": {"text": "uniform: 1"}},
        "hovertemplate": "rot %{x:.0f}°: %{z:.2f} times the mean<extra></extra>",
    }  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "rot (°)"}, "tickvals": list(range(-180, 181, 60)), "showgrid": False,
                  "zeroline": False},
        "yaxis": {"title": {"text": "tilt (°)"}, "tickvals": [math.cos(math.radians(tilt)) for tilt in tilts],
                  "ticktext": [str(tilt) for tilt in tilts], "showgrid": False, "zeroline": False},
        "height": 420, "margin": {"l": 64, "r": 20, "t": 20, "b": 56},
    }  # fmt: skip
    return plotly_figure([trace], layout)


def progress_figures(rows: Sequence[ProgressRow]) -> list[Figure]:
    """One curve per metric: over the steps of a training, over time where there were several stages."""
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    repeated = [name for name in names if sum(name in row.metrics for row in rows) > 1]
    colours = stage_colours(rows)
    return [_progress_figure(name, rows, colours) for name in sorted(repeated, key=metric_rank)]


def stage_colours(rows: Sequence[ProgressRow]) -> dict[str, str]:
    """Colour of each stage in ``progress_figures``, by their first appearance."""
    stages = dict.fromkeys(row.stage for row in rows)
    return {stage: COLOURS[number % len(COLOURS)] for number, stage in enumerate(stages)}


def _progress_figure(name: str, rows: Sequence[ProgressRow], colours: Mapping[str, str]) -> Figure:
    """The curve breaks where a stage starts over."""
    by_step = len(colours) == 1
    traces: list[Figure] = []
    last: ProgressRow | None = None
    for row in rows:
        if last is None or row.stage != last.stage or row.done < last.done:
            traces.append({"name": row.stage, "x": [], "y": []})
        last = row
        if name in row.metrics:
            traces[-1]["x"].append(row.done if by_step else round(row.seconds, 2))
            traces[-1]["y"].append(row.metrics[name])
    drawn = [trace for trace in traces if trace["x"]]
    for trace in drawn:
        x, y = (_thinned(trace[axis]) for axis in "xy")
        colour = colours[trace["name"]]
        trace |= {
            "type": "scatter", "x": x, "y": y, "mode": "lines" if len(x) > 30 else "lines+markers",
            "line": {"color": colour, "width": 2}, "marker": {"color": colour, "size": 6},
            "showlegend": False,
            "hovertemplate": "%{y:.4g}<extra>" + trace["name"] + "</extra>",
        }  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "step" if by_step else "time (s)"}, "gridcolor": GRID, "zeroline": False},
        "yaxis": {"gridcolor": GRID, "rangemode": "tozero", "zerolinecolor": GREY},
        "title": {"text": metric_title(name), "font": {"size": 15}, "x": 0.02, "y": 0.97, "yanchor": "top"},
        "height": 310, "margin": {"l": 50, "r": 12, "t": 40, "b": 50},
    }  # fmt: skip
    return plotly_figure(drawn, layout)


def _thinned(values: Sequence[float]) -> list[float]:
    """Means of neighbouring values, which leave 300 points at most."""
    count = -(-len(values) // _MAX_POINTS)
    groups = (values[start : start + count] for start in range(0, len(values), count))
    return [float(f"{sum(group) / len(group):.6g}") for group in groups]


def _around_molecule(
    volume: Volume,
) -> tuple[Float[Tensor, "d h w"], float, tuple[float, float, float], float]:
    """Dense part of the map, resampled; its pixel size, corner and high density."""
    n, transform = volume.box_size_px, fft_map(volume.values.float())
    first = min(n, _COARSE_PX)
    low, high, _ = _bounds(_resampled(transform, first))
    m = min(2 * n, 2 * round(first * _SURFACE_PX / (2 * int((high - low).max()))))
    values, pixel = _resampled(transform, m), volume.pixel_size_angstrom * n / m
    low, high, dense = _bounds(values)
    part = values[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    x, y, z = ((low.flip(0) - m // 2) * pixel).tolist()
    return part, pixel, (x, y, z), dense


def _resampled(transform: Complex[Tensor, "n n n"], size: int) -> Float[Tensor, "m m m"]:
    """Map of a centred transform on another grid, with the same densities."""
    n = len(transform)
    return ifft_map((crop_centred if size < n else pad_centred)(transform, size, 3)) * (size / n) ** 2


def _bounds(values: Float[Tensor, "n n n"]) -> tuple[Int[Tensor, " 3"], Int[Tensor, " 3"], float]:
    """First and last index (exclusive) of the dense part, with a margin; the density of the top 0.1 % of voxels."""
    dense = float(values.flatten().topk(max(1, values.numel() // 1000)).values[-1])
    dense = max(dense, torch.finfo(values.dtype).tiny)
    voxels = (values >= _LEVELS[0] * dense).nonzero()
    if not len(voxels):  # an empty map
        voxels = torch.tensor([[0, 0, 0], [len(values) - 1] * 3])
    return (voxels.amin(0) - _MARGIN_PX).clamp(min=0), (voxels.amax(0) + _MARGIN_PX + 1).clamp(max=len(values)), dense


def _ticks_angstrom(side_px: int, pixel: float, first: float) -> Figure:
    """Ticks at round distances from the centre of the box, on an axis that counts voxels."""
    span = side_px * pixel
    step = next(step for step in (5, 10, 20, 25, 50, 100, 200, 500, 1000, 1e9) if span / step <= 5)
    ticks = [step * k for k in range(math.ceil(first / step), math.floor((first + span - pixel) / step) + 1)]
    return {"tickvals": [(tick - first) / pixel for tick in ticks], "ticktext": [f"{tick:g}" for tick in ticks]}


def _quantised(values: Tensor, low: float, high: float) -> np.ndarray:
    scaled = (values - low) * (255 / ((high - low) or 1.0))
    return scaled.clamp(0, 255).round().to(torch.uint8).numpy()


def _base64(array: np.ndarray) -> Figure:
    encoded = {"dtype": "u1", "bdata": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")}
    return encoded if array.ndim == 1 else encoded | {"shape": ", ".join(map(str, array.shape))}
