"""The figures of a report: plotly takes them, and they show what they are given."""

import base64
import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import Volume
from cryoeq.evaluation.fsc_dips import CtfDip
from cryoeq.evaluation.resolution import compare_maps
from cryoeq.geometry.so3 import random_rotations
from cryoeq.outputs.progress_file import ProgressRow
from cryoeq.outputs.report_curves import class_fsc_figure, fsc_figure, junk_figure
from cryoeq.outputs.report_figures import (
    orientation_figure,
    progress_figures,
    slice_figures,
    stage_colours,
    surface_figure,
)


def ball(n: int, pixel: float, centre_angstrom: tuple[float, float, float], radius_angstrom: float) -> Volume:
    k = (torch.arange(n) - n // 2) * pixel
    x, y, z = (k - place for place in centre_angstrom)
    squared = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2
    return Volume(torch.exp(-squared / (2 * radius_angstrom**2)), pixel)


def decoded(array: dict[str, Any]) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(array["bdata"]), array["dtype"])
    return values.reshape([int(side) for side in array["shape"].split(",")]) if "shape" in array else values


def test_plotly_takes_every_figure(generator: torch.Generator) -> None:
    volume = Volume(torch.rand(16, 16, 16, generator=generator), 3.0)
    rows = [ProgressRow(1.0, "training", step, 3, {"loss": 1.0 / step}) for step in (1, 2, 3)]
    figures = [
        surface_figure(volume),
        *slice_figures(volume).values(),
        fsc_figure(compare_maps(volume, volume)),
        orientation_figure(Poses(random_rotations(50, generator), torch.zeros(50, 2))),
        *progress_figures(rows),
    ]
    assert len(figures) == 7
    for figure in figures:
        go.Figure(figure)  # refuses what plotly.js does not know


def test_an_empty_map_has_figures() -> None:
    volume = Volume(torch.zeros(16, 16, 16), 3.0)
    slices = slice_figures(volume).values()
    for figure in (surface_figure(volume), *slices, fsc_figure(compare_maps(volume, volume))):
        go.Figure(figure)


@pytest.mark.parametrize("n", [16, 64, 120])
def test_the_surface_is_where_the_density_is(n: int) -> None:
    """Whatever the box: small maps are made finer, large ones coarser, all are cropped."""
    pixel, centre = 320 / n, (50.0, -40.0, 60.0)
    figure = surface_figure(ball(n, pixel, centre, 30.0))
    (trace,) = figure["data"]
    value = decoded(trace["value"])
    inside = value >= trace["isomin"]
    for axis, expected in zip("xyz", centre, strict=True):
        ticks = figure["layout"]["scene"][f"{axis}axis"]
        places, labels = np.array(ticks["tickvals"]), np.array([float(text) for text in ticks["ticktext"]])
        scale = (labels[-1] - labels[0]) / (places[-1] - places[0])
        middle = labels[0] + (decoded(trace[axis])[inside].mean() - places[0]) * scale
        assert middle == pytest.approx(expected, abs=0.3 * pixel)
    assert len(value) <= 54**3
    slider = figure["layout"]["sliders"][0]
    level = float(slider["steps"][slider["active"]]["label"])  # the density at the surface, as a viewer would take it
    radius = 30.0 * math.sqrt(2 * math.log(1 / level))
    assert inside.sum() * scale**3 == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.08)


def test_slices_are_in_angstrom_from_the_centre() -> None:
    volume = ball(32, 2.0, (10.0, 0.0, 0.0), 4.0)
    figures = slice_figures(volume)
    assert list(figures) == ["slice_z", "slice_y", "slice_x"]
    for figure, (across, up) in zip(figures.values(), ((10.0, 0.0), (10.0, 0.0), (0.0, 0.0)), strict=True):
        (trace,) = figure["data"]
        plane = decoded(trace["z"])
        row, column = np.unravel_index(plane.argmax(), plane.shape)
        assert trace["x0"] + column * trace["dx"] == pytest.approx(across)
        assert trace["y0"] + row * trace["dy"] == pytest.approx(up)
    large = slice_figures(Volume(torch.rand(300, 300, 4).expand(300, 300, 4)[:, :, :1].expand(300, 300, 300), 1.0))
    assert all(decoded(figure["data"][0]["z"]).shape == (150, 150) for figure in large.values())


def test_the_resolution_is_marked(generator: torch.Generator) -> None:
    first = torch.randn(24, 24, 24, generator=generator)
    curves = compare_maps(Volume(first, 2.0), Volume(first + torch.randn(24, 24, 24, generator=generator), 2.0))
    figure = fsc_figure(curves)
    layout = figure["layout"]
    resolution = curves.resolutions_angstrom(0.143)["unmasked"]
    assert resolution is not None
    assert any(shape["x0"] == pytest.approx(1 / resolution) for shape in layout["shapes"])
    assert 0.143 in {shape["y0"] for shape in layout["shapes"]}
    assert 0.5 not in {shape["y0"] for shape in layout["shapes"]}  # of half maps
    assert f"unmasked: {resolution:.1f} Å" in {trace.get("name") for trace in figure["data"]}
    axis = layout["xaxis2"]
    assert [float(text) for text in axis["ticktext"]] == pytest.approx([1 / place for place in axis["tickvals"]])


def test_a_dip_is_marked_over_the_power_of_the_ctf(generator: torch.Generator) -> None:
    """And every curve that there is has its resolution in the legend."""
    first, second = (Volume(torch.randn(16, 16, 16, generator=generator), 2.0) for _ in range(2))
    curves = compare_maps(first, second, Volume(torch.ones(16, 16, 16), 2.0), generator=generator)
    power = torch.rand(9, generator=generator)
    figure = fsc_figure(curves, power, [CtfDip(3, 5, 7)])
    go.Figure(figure)
    named = {trace["name"].partition(":")[0]: trace for trace in figure["data"] if "name" in trace}
    assert set(named) == {"mean |CTF|² of the particles", "unmasked", "masked", "corrected", "phases randomised"}
    assert named["mean |CTF|² of the particles"]["y"] == pytest.approx(power[1:].tolist(), abs=1e-5)
    (stripe,) = [shape for shape in figure["layout"]["shapes"] if shape["type"] == "rect"]
    assert (stripe["x0"], stripe["x1"]) == pytest.approx((3 / 32, 5 / 32))


def test_uniform_views_have_density_one_and_a_top_view_stands_out(generator: torch.Generator) -> None:
    uniform = orientation_figure(Poses(random_rotations(20000, generator), torch.zeros(20000, 2)))["data"][0]
    density = np.array(uniform["z"])
    assert density.mean() == pytest.approx(1.0, abs=1e-3)
    assert density.std() < 0.3  # 31 views per cell: 0.18
    top = orientation_figure(Poses(torch.eye(3).repeat(10, 1, 1), torch.zeros(10, 2)))["data"][0]
    row, _ = np.unravel_index(np.array(top["z"]).argmax(), np.array(top["z"]).shape)
    assert top["y0"] + row * top["dy"] == pytest.approx(1.0, abs=0.3)  # cos tilt


def test_curves_break_where_a_stage_begins_anew() -> None:
    search = [ProgressRow(float(k), "searching", k % 3 + 1, 3, {"log evidence": float(k)}) for k in range(6)]
    joint = [ProgressRow(6.0 + k, "refining", 9, 9, {"log evidence": 10.0, "radius": 5.0}) for k in range(3)]
    evidence, radius = progress_figures([*search, *joint])
    assert [trace["y"] for trace in evidence["data"]] == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [10.0, 10.0, 10.0]]
    assert [trace["x"] for trace in radius["data"]] == [[6.0, 7.0, 8.0]]
    assert len(set(stage_colours([*search, *joint]).values())) == 2


def test_long_curves_are_thinned_to_their_means() -> None:
    rows = [ProgressRow(0.1 * step, "training", step, 6000, {"loss": float(step % 2)}) for step in range(1, 6001)]
    ((trace,),) = ([*figure["data"]] for figure in progress_figures(rows))
    assert len(trace["x"]) == 300
    assert trace["x"][0] == pytest.approx(10.5)  # steps, since training is all there was
    assert set(trace["y"]) == {0.5}


def test_curves_of_several_classes_are_in_one_figure(generator: torch.Generator) -> None:
    maps = [Volume(torch.randn(16, 16, 16, generator=generator), 2.0) for _ in range(3)]
    mask = Volume(torch.ones(16, 16, 16), 2.0)
    curves = {1: compare_maps(maps[0], maps[1]), 3: compare_maps(maps[0], maps[2], mask, generator=generator)}
    figure = class_fsc_figure(curves)
    go.Figure(figure)
    named = {trace["name"].partition(":")[0]: trace for trace in figure["data"] if "name" in trace}
    assert set(named) == {"class 1, unmasked", "class 3, unmasked", "class 3, corrected"}
    for number, each in curves.items():
        assert named[f"class {number}, unmasked"]["y"] == pytest.approx(each.unmasked[1:].tolist(), abs=1e-5)
    colours = [
        named[name]["line"]["color"] for name in ("class 1, unmasked", "class 3, unmasked", "class 3, corrected")
    ]
    assert colours[0] != colours[1] == colours[2]


def test_the_histogram_of_junk_counts_each_particle_once(generator: torch.Generator) -> None:
    probabilities = {1: torch.rand(300, generator=generator), 2: torch.tensor([0.0, 0.5, 1.0])}
    figure = junk_figure(probabilities, 0.5)
    go.Figure(figure)
    assert [sum(trace["y"]) for trace in figure["data"]] == [300, 3]
    first = figure["data"][0]
    above = sum(count for place, count in zip(first["x"], first["y"], strict=True) if place > 0.5)
    assert above == int((probabilities[1] >= 0.5).sum())
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [0.5]
