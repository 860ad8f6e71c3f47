"""Picture of what ``cryoeq infer`` found: confidence, fit, views, and the fit of each micrograph."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from torch import Tensor

from cryoeq.geometry.healpix import pixel_of_directions
from cryoeq.outputs.figure import COLOURS, GREY, png_figure
from cryoeq.outputs.mollweide import draw_sphere

_BINS = 40
_HEALPIX_ORDER = 2
_INCHES = (12.0, 8.0)


@dataclass(frozen=True)
class InferredSet:
    """Poses of a set of particles, as far as the picture shows them.

    Args:
        confidence: probability that each pose is right.
        directions: view of each.
        fit: log-likelihood of each, in standard deviations from that of a right pose.
        is_unusual: whether the fit is lower than that of the run's own particles.
        was_doubtful: whether the encoder's pose was of low confidence.
        micrograph_index: number of each particle's micrograph; None where they are not named.
    """

    confidence: Float[Tensor, " particles"]
    directions: Float[Tensor, "particles 3"]
    fit: Float[Tensor, " particles"]
    is_unusual: Bool[Tensor, " particles"]
    was_doubtful: Bool[Tensor, " particles"]
    micrograph_index: Int[Tensor, " particles"] | None


def plot_inferred_poses(path: Path, found: InferredSet) -> None:
    """Draw confidence, fit, views, and the fit of each micrograph.

    Args:
        path: the PNG file to create or replace.
        found: the particles.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    with png_figure(path, size_inches=_INCHES) as figure:
        grid = figure.add_gridspec(2, 2)
        confidence, fit, micrographs = (figure.add_subplot(grid[place]) for place in ((0, 0), (0, 1), (1, 1)))
        sphere = figure.add_subplot(grid[1, 0], projection="mollweide")
        _confidence(confidence, found)
        _fit(fit, found)
        _micrographs(micrographs, found)
        pixels = pixel_of_directions(found.directions.double(), _HEALPIX_ORDER)
        counts = pixels.bincount(minlength=12 * 4**_HEALPIX_ORDER).double()
        mesh = draw_sphere(sphere, counts, cmap="viridis")
        figure.colorbar(mesh, ax=sphere, label="Particles", shrink=0.7)
        figure.suptitle(
            f"{len(found.fit):,} particles posed; {found.is_unusual.float().mean():.0%} fit worse than usual"
        )


def _confidence(axes: Axes, found: InferredSet) -> None:
    values, doubtful = found.confidence.double().numpy(), found.was_doubtful.numpy()
    edges = np.linspace(0.0, 1.0, _BINS + 1).tolist()
    axes.hist(
        [values[~doubtful], values[doubtful]],
        edges,
        stacked=True,
        color=COLOURS[:2],
        label=["by the encoder", "searched, or below the limit"],
    )
    axes.set(xlabel="Probability that the pose is right", ylabel="Particles", xlim=(0, 1))
    axes.legend()


def _fit(axes: Axes, found: InferredSet) -> None:
    values, unusual = found.fit.double().numpy(), found.is_unusual.numpy()
    edges = np.linspace(values.min() - 0.1, values.max() + 0.1, _BINS + 1).tolist()
    axes.hist(
        [values[~unusual], values[unusual]],
        edges,
        stacked=True,
        color=[COLOURS[0], COLOURS[4]],
        label=["as the run's particles", "lower"],
    )
    axes.set(xlabel="Fit (standard deviations)", ylabel="Particles")
    axes.legend()


def _micrographs(axes: Axes, found: InferredSet) -> None:
    index = found.micrograph_index
    if index is None:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "The particles name no micrographs.", ha="center", va="center")
        return
    count = index.bincount().clamp(min=1)
    mean = index.bincount(found.fit.double()) / count
    axes.plot(mean.numpy(), ".", color=COLOURS[0])
    axes.axhline(float(found.fit.median()), color=GREY, linestyle="--", label="median of all particles")
    axes.set(xlabel="Micrograph", ylabel="Mean fit of its particles")
    axes.legend()
