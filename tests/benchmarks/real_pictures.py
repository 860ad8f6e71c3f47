"""Pictures of experimental particles and of the maps made from them, for ``real_particles.py``.

Some particles, blurred; the surface of the map from four sides, the two parts of a watershed of its blurred density
coloured where the molecule has two; slices through the map in the same orientation as the first surface; and the
curves: correlations per shell, with the mean square of the CTF of all particles, whose zeros they follow.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage
from torch import Tensor

from cryoeq.domain.volume import Volume
from cryoeq.geometry.fourier import fft_map, ifft_map, pad_centred
from cryoeq.io.particles import ParticleStack
from cryoeq.outputs.figure import COLOURS as CURVE_COLOURS
from cryoeq.outputs.figure import GREY, png_figure, resolution_ticks_angstrom
from cryoeq.physics.ctf import evaluate_ctf

COLOURS = np.array([(0.42, 0.62, 0.85), (0.95, 0.78, 0.38)])  # large subunit blue, small yellow, as usual
LEVEL = 0.45  # of the density that one voxel in a thousand exceeds
OVERSAMPLING = 3
PARTICLE_BLUR_ANGSTROM = 8.0  # standard deviation
BLURS = np.arange(0.04, 0.1, 0.005)  # standard deviations, of the box
LIGHT = np.array((-0.42, 0.5, 0.76))


def about_y(degrees: float) -> np.ndarray:
    """Rotation about the vertical of the picture."""
    angle = np.deg2rad(degrees)
    return np.array([(np.cos(angle), 0, np.sin(angle)), (0, 1, 0), (-np.sin(angle), 0, np.cos(angle))])


def towards(x: float, y: float, z: float) -> np.ndarray:
    """Rotation that turns a direction of the map towards the viewer."""
    sight = np.array((x, y, z)) / np.linalg.norm((x, y, z))
    across = np.cross((0, 1, 0), sight)
    across /= np.linalg.norm(across)
    return np.array([across, np.cross(sight, across), sight])


@dataclass(frozen=True)
class Look:
    """What a picture shows.

    Args:
        particles: four rows of the particle file.
        turns: rotations of the map in which its surface is seen.
        side_angstrom: of the field of view.
        slices_angstrom: heights of the slices, from the centre towards the viewer.
        has_two_parts: two subunits are coloured, and the map is turned into its principal axes; else it is not turned.
    """

    particles: tuple[int, ...]
    turns: tuple[np.ndarray, ...]
    side_angstrom: float
    slices_angstrom: tuple[int, ...]
    has_two_parts: bool = False


LOOKS: Mapping[str, Look] = {
    "ribosome": Look((0, 20, 120, 720), tuple(map(about_y, (0, 90, 180, 270))), 330, (-60, -20, 20, 60), True),
    "betagal": Look(
        (0, 400, 800, 1200), (towards(0, 0, 1), towards(1, 0, 0), towards(0, 1, 0.001), towards(1, 1, 1)), 240,
        (-40, -15, 15, 40),
    ),
    "apoferritin": Look(
        (0, 700, 1400, 2100), (towards(0, 0, 1), towards(1, 1, 1), towards(1, 1, 0), towards(1, 2, 4)), 160,
        (-48, -24, 0, 24),
    ),
}  # fmt: skip


class Surface:
    """The isosurface of a map, as seen from any side.

    Args:
        volume: map of one connected molecule.
        has_two_parts: colour two parts, and turn the map into its principal axes; else it is not turned.
    """

    def __init__(self, volume: Volume, *, has_two_parts: bool) -> None:
        n = volume.box_size_px
        fine = ifft_map(pad_centred(fft_map(volume.values.double()), OVERSAMPLING * n, 3)) * OVERSAMPLING**2
        values = fine.numpy()
        self.pixel_size_angstrom = volume.pixel_size_angstrom / OVERSAMPLING
        self.level = LEVEL * float(np.quantile(volume.values.numpy(), 0.999))
        labels, _ = ndimage.label(values > self.level)
        sizes = np.bincount(labels.ravel())
        inside = labels == 1 + sizes[1:].argmax()
        self.values = np.where(inside | (values < self.level), values, 0.99 * self.level)
        self.subunits = subunits(self.values, inside) if has_two_parts else inside.astype(np.int8)
        places = np.argwhere(inside)[:, ::-1].astype(float)
        self.centre = places.mean(0) if has_two_parts else np.full(3, OVERSAMPLING * n // 2, float)
        self.axes = principal_axes(places - self.centre) if has_two_parts else np.eye(3)

    def kilodaltons(self) -> float:
        """Protein of the enclosed volume, at 0.81 Da a cubic Angstrom."""
        return float((self.subunits > 0).sum() * self.pixel_size_angstrom**3 * 0.81e-3)

    def seen(self, turn: np.ndarray, size: int, *, array: np.ndarray | None = None, order: int = 1) -> np.ndarray:
        """The map (or another array on its grid) resampled with its axes along x, y and the line of sight.

        Args:
            turn: rotation of the molecule, which applies after its axes.
            size: voxels along each side.
            array: instead of the map.
            order: of the spline.
        """
        line = np.arange(size) - size / 2
        z, y, x = np.meshgrid(-line, line, line, indexing="ij")  # nearest to the viewer first
        points = np.stack([x, y, z], -1) @ (turn @ self.axes) + self.centre
        source = self.values if array is None else array
        return ndimage.map_coordinates(source, [points[..., axis] for axis in (2, 1, 0)], order=order)

    def shaded(self, turn: np.ndarray, size: int) -> np.ndarray:
        """A picture (y, x, RGB) of the surface: diffuse and specular light, occlusion by what lies nearby."""
        density = self.seen(turn, size)
        solid = density > self.level
        hit, first = solid.any(0), solid.argmax(0)
        rows, columns = np.indices(first.shape)
        slope = np.stack(np.gradient(ndimage.gaussian_filter(density, 1.0)))[::-1]
        normal = -np.stack([component[first, rows, columns] for component in slope], -1) * (1, 1, -1)
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-9
        light = LIGHT / np.linalg.norm(LIGHT)
        halfway = light + np.array((0, 0, 1))
        diffuse = np.clip(normal @ light, 0, 1)
        specular = np.clip(normal @ (halfway / np.linalg.norm(halfway)), 0, 1) ** 30
        before, at = density[np.maximum(first - 1, 0), rows, columns], density[first, rows, columns]
        depth = np.where(hit, size / 2 - first + np.clip((at - self.level) / np.maximum(at - before, 1e-9), 0, 1), 0.0)
        depth = np.where(hit, depth, -size / 2)
        open_sky = 1 - sum(
            0.02 * np.clip(ndimage.gaussian_filter(depth, width) - depth, 0, None) for width in (3, 8, 16)
        )
        open_sky = np.clip(open_sky, 0.25, 1)[..., None]
        shares = np.stack(
            [self.seen(turn, size, array=np.asarray(self.subunits == part, np.float32)) for part in (1, 2)]
        )[:, first, rows, columns]
        shares = shares[..., None] / np.maximum(shares.sum(0), 1e-3)[..., None]
        colour = (shares * COLOURS[:, None, None]).sum(0)
        picture = ((0.28 + 0.78 * diffuse[..., None]) * colour + 0.12 * specular[..., None]) * open_sky
        return np.clip(np.where(hit[..., None], picture, 1.0), 0, 1)


def subunits(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Two parts of a particle, 1 (larger) and 2, 0 outside: ascents of a density blurred to two maxima."""
    for width in BLURS:
        blurred = ndimage.gaussian_filter(np.where(inside, values, 0), width * len(values))
        peaks = np.argwhere((ndimage.maximum_filter(blurred, 9) == blurred) & inside)
        if len(peaks) <= 2:
            break
    parent = np.arange(blurred.size).reshape(blurred.shape)
    best = blurred.copy()
    for step in np.ndindex(3, 3, 3):
        shift = tuple(np.array(step) - 1)
        neighbour = np.roll(blurred, shift, (0, 1, 2))
        higher = neighbour > best
        best[higher] = neighbour[higher]
        parent[higher] = np.roll(np.arange(blurred.size).reshape(blurred.shape), shift, (0, 1, 2))[higher]
    ends = parent.ravel()[np.flatnonzero(inside)]
    while not np.array_equal(ends, above := parent.ravel()[ends]):
        ends = above
    found, numbers, counts = np.unique(ends, return_inverse=True, return_counts=True)
    rank = np.empty(len(found), int)
    rank[np.argsort(-counts)] = np.arange(len(found))
    parts = np.zeros(values.shape, np.int8)
    parts[inside] = 1 + np.minimum(rank[numbers], 1)
    return parts


def principal_axes(places: np.ndarray) -> np.ndarray:
    """Axes of inertia as the rows of a rotation, the longest first; third moments decide the signs of two."""
    axes = np.linalg.eigh(np.cov(places.T))[1].T[::-1].copy()
    axes[:2] *= np.sign(((places @ axes[:2].T) ** 3).mean(0))[:, None]
    axes[2] = np.cross(axes[0], axes[1])
    return axes


def draw(picture: Path, stack: ParticleStack, volume: Volume, look: Look, curves: Mapping[str, list[float]]) -> float:
    """Write the picture; the mass within the surface, in kDa.

    Args:
        picture: PNG file.
        stack: the particles.
        volume: the map.
        look: what is shown.
        curves: correlations per shell of its box, by name; none for a picture without them.
    """
    surface = Surface(volume, has_two_parts=look.has_two_parts)
    fine = surface.pixel_size_angstrom
    size = int(look.side_angstrom / fine)
    with png_figure(picture, size_inches=(9.6, 10.0 if curves else 7.3), dpi=100) as figure:
        figure.set_layout_engine("compressed")
        rows = _rows(figure, volume, stack, curves)
        images = stack.images.read(torch.tensor(look.particles)).numpy()
        pixel = stack.table.pixel_size_angstrom
        for axes, image in zip(rows[0], images, strict=True):
            blurred = ndimage.gaussian_filter(image, PARTICLE_BLUR_ANGSTROM / pixel)
            axes.imshow(blurred, origin="lower", interpolation="bicubic")
        for axes, turn in zip(rows[1], look.turns, strict=True):
            axes.imshow(surface.shaded(turn, size), origin="lower", interpolation="bicubic")
        turned = surface.seen(look.turns[0], size, order=3)
        for axes, offset_angstrom in zip(rows[2], look.slices_angstrom, strict=True):
            density = turned[size // 2 - round(offset_angstrom / fine)]
            limits = {"vmin": float(turned.min()), "vmax": float(turned.max())}
            axes.imshow(density, origin="lower", interpolation="bicubic", **limits)
            axes.set_title(f"z = {offset_angstrom} Å", fontsize=10)
        for axes, label in zip(rows[:, 0], ("particles, blurred", "map", "slices of the map"), strict=True):
            axes.set_ylabel(label)
        for axes, width, colour in zip(rows[:, 0], (pixel, fine, fine), ("white", "black", "white"), strict=True):
            bar(axes, width, colour)
    Image.open(picture).convert("RGB").quantize(256).save(picture, optimize=True)
    return surface.kilodaltons()


def _rows(figure: Figure, volume: Volume, stack: ParticleStack, curves: Mapping[str, list[float]]) -> np.ndarray:
    """Three rows of four empty pictures, above the curves where there are any."""
    grid = figure.add_gridspec(4 if curves else 3, 4)
    rows = np.array([[figure.add_subplot(grid[row, column]) for column in range(4)] for row in range(3)])
    for axes in rows.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    if curves:
        side = volume.box_size_px * volume.pixel_size_angstrom
        plot_curves(
            figure.add_subplot(grid[3, :]), side, curves, mean_squared_ctf(stack, side, volume.box_size_px // 2)
        )
    return rows


def plot_curves(
    axes: Axes, side_angstrom: float, curves: Mapping[str, list[float]], ctf: Float[Tensor, " shells"]
) -> None:
    """Correlations per shell, over the mean square of the CTF.

    Args:
        axes: empty.
        side_angstrom: side of the box.
        curves: correlations by name.
        ctf: mean square of the CTF per shell.
    """
    shells = np.arange(1, len(ctf))
    axes.fill_between(shells, ctf[1:].numpy(), color=GREY, alpha=0.25, linewidth=0, label="mean squared CTF")
    for (name, curve), colour in zip(curves.items(), CURVE_COLOURS, strict=False):
        axes.plot(shells, curve[1 : len(ctf)], color=colour, label=name)
    for level in (0.143, 0.5):
        axes.axhline(level, color=GREY, linewidth=0.8, linestyle=":")
    ticks = resolution_ticks_angstrom(side_angstrom / shells[-1], count=9)
    axes.set_xticks([side_angstrom / tick for tick in ticks], [f"{tick:g}" for tick in ticks])
    axes.set(xlim=(1, shells[-1]), ylim=(-0.05, 1.02), xlabel="resolution (Å)", ylabel="FSC")
    axes.legend(fontsize=9, loc="lower left")


def mean_squared_ctf(stack: ParticleStack, side_angstrom: float, last_shell: int) -> Float[Tensor, " shells"]:
    """Mean over particles and directions of the squared CTF, per shell.

    Args:
        stack: the particles.
        side_angstrom: side of the map's box.
        last_shell: its Nyquist shell.
    """
    if stack.table.ctf is None:
        return torch.ones(last_shell + 1)
    angles = torch.arange(8) * (torch.pi / 8)
    radii = torch.arange(last_shell + 1) / side_angstrom
    points = radii[:, None, None] * torch.stack([angles.cos(), angles.sin()], -1)
    values = evaluate_ctf(stack.table.ctf, points.reshape(-1, 2))
    return values.square().mean(0).reshape(last_shell + 1, 8).mean(1)


def bar(axes: Axes, pixel_size_angstrom: float, colour: str) -> None:
    """A bar of 100 Angstrom in the lower left corner."""
    side = axes.get_xlim()[1] - axes.get_xlim()[0]
    left, low = 0.05 * side, 0.06 * side
    axes.plot([left, left + 100 / pixel_size_angstrom], [low, low], color=colour, linewidth=3)
    axes.annotate("100 Å", (left, low), (0, 4), textcoords="offset points", color=colour, fontsize=9)
