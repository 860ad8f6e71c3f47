"""The sphere of directions in Mollweide's equal-area projection, with RELION's angles rot and tilt as axes."""

import math

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patheffects import withStroke
from torch import Tensor

from cryoeq.geometry.healpix import pixel_of_directions
from cryoeq.outputs.figure import GREY

_COLUMNS, _ROWS = 360, 180


def draw_sphere(
    axes: Axes, values: Float[Tensor, " pixels"], *, cmap: str, norm: Normalize | None = None
) -> ScalarMappable:
    """Draw one colour per HEALPix pixel; z (tilt 0) is up, x (rot 0, tilt 90 degrees) in the middle, y to the right.

    Args:
        axes: made with ``projection="mollweide"``.
        values: one per HEALPix pixel, in ring order.
        cmap: name of the colour map.
        norm: range of the colours.

    Returns:
        The mappable of a colour bar.
    """
    order = round(math.log(len(values) / 12, 4))
    azimuth = torch.linspace(-math.pi, math.pi, _COLUMNS + 1, dtype=torch.float64)
    elevation = torch.linspace(-math.pi / 2, math.pi / 2, _ROWS + 1, dtype=torch.float64)
    middles = [(edges[1:] + edges[:-1]) / 2 for edges in (elevation, azimuth)]
    up, around = torch.meshgrid(*middles, indexing="ij")
    vectors = torch.stack([up.cos() * around.cos(), up.cos() * around.sin(), up.sin()], -1)
    colours = values.cpu()[pixel_of_directions(vectors, order)]
    mesh = axes.pcolormesh(
        azimuth.numpy(), elevation.numpy(), colours.numpy(), cmap=cmap, norm=norm, rasterized=True, shading="flat"
    )
    axes.set_xticks(np.radians([-120, -60, 0, 60, 120]), labels=["−120°", "−60°", "0°", "60°", "120°"])
    axes.set_yticks(np.radians([-60, -30, 0, 30, 60]), labels=["150°", "120°", "90°", "60°", "30°"])
    axes.tick_params(labelsize=10)
    axes.set_xlabel("rot (about z)", fontsize=11)
    axes.set_ylabel("tilt (from z)", fontsize=11)
    for label in axes.get_xticklabels():
        label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    axes.grid(color=GREY, alpha=0.35, linewidth=0.6)
    return mesh


def mark_direction(
    axes: Axes, vector: Float[Tensor, " 3"], marker: str, label: str, *, with_opposite: bool = True
) -> None:
    """Draw a marker at a direction.

    Args:
        axes: axes of ``draw_sphere``.
        vector: the direction (x, y, z).
        marker: matplotlib's name of the marker.
        label: text of the legend; empty for none.
        with_opposite: whether to mark the opposite direction too, as in Fourier space.
    """
    for sign, text in ((1, label or None), (-1, None))[: 1 + with_opposite]:
        x, y, z = (sign * vector / vector.norm()).tolist()
        axes.plot(math.atan2(y, x), math.asin(max(-1.0, min(1.0, z))), marker, markersize=10, markeredgewidth=1.5,
                  markerfacecolor="white", markeredgecolor="black", linestyle="none", label=text)  # fmt: skip
