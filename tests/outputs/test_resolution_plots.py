"""Pictures of resolution: legends off the curves, numbers of the terminal, slices that meet the particle."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from cryoeq.domain.events import Report
from cryoeq.domain.volume import Volume
from cryoeq.evaluation.directional import AXES_ORDER, DirectionalFsc, directional_fsc
from cryoeq.evaluation.local_resolution import LocalResolution
from cryoeq.evaluation.sharpening import GuinierFit, GuinierPlot
from cryoeq.geometry.healpix import pixel_of_directions
from cryoeq.outputs.directional_plots import plot_directional_curves, plot_directional_resolution
from cryoeq.outputs.evaluation_plots import plot_correlations
from cryoeq.outputs.guinier_plot import plot_guinier
from cryoeq.outputs.local_resolution_plot import plot_local_resolution
from cryoeq.pipelines.resolution.directional import directional_resolution


def require_legend_off_the_axes(figure: Figure) -> None:
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, page = legend.get_window_extent(), figure.bbox
    for axes in figure.axes:
        assert not box.overlaps(axes.get_tightbbox())
    assert page.x0 <= box.x0 <= box.x1 <= page.x1
    assert page.y0 <= box.y0 <= box.y1 <= page.y1


@pytest.mark.parametrize("count", range(1, 6))
def test_no_legend_lies_on_fsc_curves(tmp_path: Path, figures: list[Figure], count: int) -> None:
    names = ("no mask", "spherical", "loose", "mask in use", "corrected")
    curves = {name: torch.linspace(1, 0.1 * place, 40) for place, name in enumerate(names[:count])}
    randomised = -torch.linspace(0, 0.3, 40) if count == 3 else None
    plot_correlations(tmp_path / "fsc.png", curves, 200.0, title="half1.mrc and half2.mrc", randomised=randomised)
    (figure,) = figures
    require_legend_off_the_axes(figure)
    axes, *_ = figure.axes
    low, high = axes.get_ylim()
    assert all(low < y < high for line in axes.get_lines() for y in np.asarray(line.get_ydata(), float))


@pytest.mark.parametrize("threshold", [0.143, 0.5])
def test_only_the_threshold_in_use_is_drawn(tmp_path: Path, figures: list[Figure], threshold: float) -> None:
    plot_correlations(tmp_path / "fsc.png", {"unmasked": torch.linspace(1, 0, 41)}, 200.0, threshold=threshold)
    axes, *_ = figures[0].axes
    assert [text.get_text() for text in axes.texts] == [f"{threshold:g}"]
    assert figures[0].legends[0].get_title().get_text() == f"Resolution at FSC = {threshold:g}"


def test_no_legend_lies_on_a_guinier_plot(tmp_path: Path, figures: list[Figure]) -> None:
    x = torch.linspace(0, 0.02, 30)
    guinier = GuinierPlot(x, -x * 100, -x * 90, -x * 110, -x * 20, GuinierFit(-50.0, -3.0, 0.9, 12), -1234.5)
    plot_guinier(tmp_path / "guinier.png", guinier, title="half1.mrc and half2.mrc")
    require_legend_off_the_axes(figures[0])


def anisotropic(generator: torch.Generator) -> tuple[Volume, Volume]:
    """Two maps that share signal everywhere but in a cone about z, where only coarse shells agree."""
    n = 32
    k = torch.fft.fftfreq(n, 1 / n)
    z, y, x = torch.meshgrid(k, k, k, indexing="ij")
    radius = (x**2 + y**2 + z**2).sqrt()
    is_shared = ((z.abs() < 0.7 * radius) & (radius < 12)) | (radius < 5)
    signal, *noise = (torch.randn(n, n, n, generator=generator) for _ in range(3))
    shared = torch.fft.ifftn(torch.fft.fftn(signal) * is_shared).real
    return Volume(shared + 0.1 * noise[0], 3.0), Volume(shared + 0.1 * noise[1], 3.0)


def test_the_picture_has_the_resolutions_of_the_terminal(
    tmp_path: Path, figures: list[Figure], generator: torch.Generator
) -> None:
    halves = anisotropic(generator)
    directional, (report, *_) = directional_fsc(*halves), list(directional_resolution(*halves))
    assert isinstance(report, Report)
    plot_directional_resolution(tmp_path / "sphere.png", directional)
    axes = figures[-1].axes[0]
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    rows = {name: report.rows[f"{name.capitalize()} direction"].split(",")[0] for name in ("best", "worst")}
    assert shown == [f"{name} direction: {resolution}" for name, resolution in rows.items()]
    assert rows["best"] != rows["worst"]
    # The marks stand where the sphere has these resolutions.
    for name, axis in (("best", directional.best_axis), ("worst", directional.worst_axis)):
        place = int(pixel_of_directions(axis, AXES_ORDER))
        assert f"{float(directional.resolutions_angstrom[place]):.2f} Å" == rows[name]
    (mesh,) = axes.collections
    resolutions = np.asarray(mesh.get_array())
    assert f"{resolutions.min():.2f} Å" == rows["best"]
    assert f"{resolutions.max():.2f} Å" == rows["worst"]


def test_no_legend_lies_on_directional_curves(tmp_path: Path, figures: list[Figure]) -> None:
    curves = torch.linspace(1, 0, 17, dtype=torch.float64).expand(3072, 17)
    plot_directional_curves(tmp_path / "curves.png", DirectionalFsc(32, 3.0, curves, curves[0]))
    require_legend_off_the_axes(figures[0])


def blob(n: int, centre: tuple[int, int, int]) -> Tensor:
    z, y, x = (torch.arange(n) - place for place in centre)
    return torch.exp(-(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2) / 8.0)


@pytest.mark.parametrize("centre", [(8, 20, 24), (16, 16, 16)])
def test_slices_of_local_resolution_meet_the_particle(
    tmp_path: Path, figures: list[Figure], centre: tuple[int, int, int], generator: torch.Generator
) -> None:
    n, pixel = 32, 2.0
    density = blob(n, centre) + 0.02 * torch.randn(n, n, n, generator=generator)
    local = LocalResolution(Volume(torch.full((n, n, n), 5.0), pixel), Volume(density, pixel))
    plot_local_resolution(tmp_path / "slices.png", local, torch.ones(n, n, n, dtype=torch.bool))
    for axis, axes in enumerate(figures[0].axes[:3]):
        np.testing.assert_array_equal(axes.get_images()[0].get_array(), density.select(axis, centre[axis]).numpy())
        assert axes.get_title() == f"{'zyx'[axis]} = {(centre[axis] - n // 2) * pixel:.0f} Å"
