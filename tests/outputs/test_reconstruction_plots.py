"""Pictures of a reconstruction: what they show, read back from the PNG."""

import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cryoeq.domain.volume import Volume
from cryoeq.outputs.reconstruction_plots import plot_comparison, plot_map, plot_training

PNG = b"\x89PNG\r\n\x1a\n"


def pixels(path: Path) -> np.ndarray:
    assert path.read_bytes().startswith(PNG)
    return matplotlib.image.imread(path)[..., :3].mean(-1)


def place_of_brightest(axes: Axes) -> dict[str, float]:
    """By the labels of its axes, in Angstrom."""
    (image,) = axes.get_images()
    shown = np.asarray(image.get_array())
    assert image.origin == "lower"
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    left, right, bottom, top = image.get_extent()
    x = left + (column + 0.5) * (right - left) / shown.shape[1]
    y = bottom + (row + 0.5) * (top - bottom) / shown.shape[0]
    return {axes.get_xlabel(): float(x), axes.get_ylabel(): float(y)}


def test_maps_are_shown_along_three_axes(tmp_path: Path, figures: list[Figure]) -> None:
    """One bright voxel is seen where it is, the origin being voxel n // 2."""
    n, pixel = 16, 3.0
    z, y, x = 3, 5, 12
    values = torch.zeros(n, n, n)
    values[z, y, x] = 5.0  # in all projections, and in no central slice
    values[8, y, x] = values[z, 8, x] = values[z, y, 8] = 1.0  # in one slice each
    plot_map(tmp_path / "slices.png", tmp_path / "projections.png", Volume(values, pixel))
    where = {f"{name} (Å)": (index - 8) * pixel for name, index in (("x", x), ("y", y), ("z", z))}
    for figure, kind in zip(figures, ("Central slices", "Projections"), strict=True):
        assert figure.get_suptitle() == f"{kind} of the map (16 px, 3 Å)"
        assert [axes.get_title() for axes in figure.axes] == [f"along {axis}" for axis in "zyx"]
        for axes in figure.axes:
            found = place_of_brightest(axes)
            assert len(found) == 2
            assert found == pytest.approx({label: where[label] for label in found})
            assert f"{axes.get_title()[-1]} (Å)" not in found
    assert pixels(tmp_path / "slices.png").shape == pixels(tmp_path / "projections.png").shape


def test_an_empty_map_can_be_shown(tmp_path: Path) -> None:
    plot_map(tmp_path / "s.png", tmp_path / "p.png", Volume(torch.zeros(8, 8, 8), 1.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.png", "s.png"]


HISTORY = {
    "loss": [1.0, 0.8, 0.5],
    "synthetic_error_deg": [90.0, 60.0, 20.0],
    "pose_change_deg": [math.nan, 80.0, 10.0],  # nothing to compare with in the first epoch
    "unknown": [1.0, 2.0, 3.0],
}


@pytest.mark.parametrize("names", [("loss",), ("loss", "pose_change_deg"), tuple(HISTORY)])
def test_the_curves_that_were_recorded_are_shown(tmp_path: Path, figures: list[Figure], names: tuple[str, ...]) -> None:
    plot_training(tmp_path / "training.png", {name: HISTORY[name] for name in names})
    (figure,) = figures
    curves = [axes.get_lines()[0].get_xydata() for axes in figure.axes]
    expected = [name for name in ("loss", "synthetic_error_deg", "pose_change_deg") if name in names]
    assert len(curves) == len(expected)
    for curve, name in zip(curves, expected, strict=True):
        np.testing.assert_array_equal(curve, np.stack([[1, 2, 3], HISTORY[name]], 1))
    assert pixels(tmp_path / "training.png").shape[1] == pytest.approx(4.2 * 150 * len(curves), abs=2)


def test_one_epoch_can_be_seen(tmp_path: Path) -> None:
    """A line through one point would be nothing."""
    plot_training(tmp_path / "seen.png", {"loss": [1.0]})
    coloured = matplotlib.image.imread(tmp_path / "seen.png")[..., :3]
    assert int((coloured.max(-1) - coloured.min(-1) > 0.3).sum()) > 10


def test_comparison_shows_particles_map_and_truth(tmp_path: Path, figures: list[Figure]) -> None:
    """Row by row; the middle column is the central slice."""
    particles = torch.arange(5.0)[:, None, None].expand(5, 16, 16)
    recovered, truth = (Volume(torch.rand(16, 16, 16), 3.0) for _ in range(2))
    plot_comparison(tmp_path / "comparison.png", particles, recovered, truth)
    assert pixels(tmp_path / "comparison.png").std() > 0
    shown = [np.asarray(axes.get_images()[0].get_array()) for axes in figures[0].axes]
    assert [image.mean() for image in shown[:5]] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(shown[7], recovered.values[8].numpy())
    np.testing.assert_array_equal(shown[12], truth.values[8].numpy())
    assert [figures[0].axes[row].get_ylabel() for row in (0, 5, 10)] == ["particles", "map without poses", "truth"]
