"""The picture of junk probabilities."""

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from cryoeq.outputs import junk_plot
from cryoeq.outputs.junk_plot import plot_junk


@pytest.mark.parametrize("probability", [torch.rand(500), torch.zeros(3), torch.ones(3)])
def test_every_stack_has_its_picture(probability: torch.Tensor, tmp_path: Path) -> None:
    plot_junk(tmp_path / "junk.png", probability)
    assert (tmp_path / "junk.png").read_bytes()[:4] == b"\x89PNG"


def test_each_particle_is_in_one_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    drawn = junk_plot.png_figure
    probability = torch.cat([torch.zeros(7), torch.full((4,), 0.5), torch.ones(2)])

    class Kept:
        def __init__(self, *arguments: object, **named: object) -> None:
            self.inner = drawn(*arguments, **named)  # type: ignore[arg-type]

        def __enter__(self) -> Figure:
            figures.append(self.inner.__enter__())
            return figures[0]

        def __exit__(self, *error: object) -> None:
            self.inner.__exit__(*error)  # type: ignore[arg-type]

    monkeypatch.setattr(junk_plot, "png_figure", Kept)
    plot_junk(tmp_path / "junk.png", probability)
    (axes,) = figures[0].axes
    heights = [bar.get_height() for container in axes.containers for bar in container]  # type: ignore[attr-defined]
    assert sum(heights) == len(probability)
    (legend,) = figures[0].legends
    said = " ".join(text.get_text() for text in legend.get_texts())
    assert "7 below, of which junk: 0.0%" in said
    assert "6 others" in said
