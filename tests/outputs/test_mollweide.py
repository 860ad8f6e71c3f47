"""The sphere drawn flat: directions end up where their longitude and latitude say."""

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from cryoeq.geometry.healpix import pixel_of_directions
from cryoeq.outputs.mollweide import draw_sphere, mark_direction


@pytest.mark.parametrize(
    ("vector", "longitude_deg", "latitude_deg"),
    [((1, 0, 0), 0, 0), ((0, 1, 0), 90, 0), ((0, -1, 1), -90, 45), ((-1, 1, -1), 135, -35.26)],
)
def test_a_direction_is_drawn_at_its_angles(
    vector: tuple[float, ...], longitude_deg: float, latitude_deg: float
) -> None:
    values = torch.zeros(3072)
    values[pixel_of_directions(torch.tensor(vector).float(), 4)] = 1
    axes = Figure().add_subplot(projection="mollweide")
    mesh = draw_sphere(axes, values, cmap="viridis")
    shown = np.asarray(mesh.get_array()).reshape(180, 360)
    rows, columns = np.nonzero(shown)
    assert np.median(rows) - 90 == pytest.approx(latitude_deg, abs=3)
    assert np.median(columns) - 180 == pytest.approx(longitude_deg, abs=3)


def test_a_mark_stands_at_the_direction_and_its_opposite() -> None:
    axes = Figure().add_subplot(projection="mollweide")
    mark_direction(axes, torch.tensor([0.0, 1.0, 1.0]), "X", "worst")
    places = [tuple(np.degrees(line.get_xydata()[0])) for line in axes.get_lines()]
    assert places[0] == pytest.approx((90, 45), abs=1e-3)
    assert places[1] == pytest.approx((-90, -45), abs=1e-3)
    assert [text.get_text() for text in axes.legend().get_texts()] == ["worst"]
    assert math.isclose(places[0][0] - places[1][0], 180)


def test_axes_are_rot_and_tilt() -> None:
    axes = Figure().add_subplot(projection="mollweide")
    draw_sphere(axes, torch.zeros(12), cmap="viridis")
    for latitude_rad, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True):
        assert label.get_text() == f"{90 - math.degrees(latitude_rad):.0f}°"
    assert (axes.get_xlabel()[:3], axes.get_ylabel()[:4]) == ("rot", "tilt")
