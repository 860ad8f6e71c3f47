"""The map of the README, from real particles: ``python tests/benchmarks/real_map.py --particles STAR --work DIR``.

811 images of the Plasmodium falciparum 80S ribosome (EMPIAR-10028, CC0; Wong et al., eLife 3, e03080 (2014)), 80 px of
5.36 Angstrom, cut from averaged micrographs. Three steps, each a command of cryoeq: the map without poses, with both
hands (``reconstruct``); the FSC of its half maps within a mask (``fsc``); with ``--reference MAP.mrc`` the FSC against
a map from elsewhere, whose hand is then shown (``fsc --align``). Figures go to ``real_map.json``.

The picture: some particles; the surface of the map from four sides, the two parts of a watershed of its
blurred density coloured; central slices through the map in the same orientation as the first surface.
"""

import argparse
import shlex
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image
from recorded_runs import CRYOEQ, Cost, measure
from scipy import ndimage

from cryoeq.domain.volume import Volume
from cryoeq.geometry.fourier import fft_map, ifft_map, pad_centred
from cryoeq.io.mrc import read_map, write_map
from cryoeq.io.particles import read_particles
from cryoeq.io.text import read_json, write_json
from cryoeq.outputs.figure import png_figure

RESULTS = Path(__file__).with_suffix(".json")
COLOURS = np.array([(0.42, 0.62, 0.85), (0.95, 0.78, 0.38)])  # large subunit blue, small yellow, as usual
LEVEL = 0.45  # of the density that one voxel in a thousand exceeds
OVERSAMPLING = 3
PARTICLE_BLUR_ANGSTROM = 8.0  # standard deviation
PARTICLES = (0, 20, 120, 720)
BLURS = np.arange(0.04, 0.1, 0.005)  # standard deviations, of the box
LIGHT = np.array((-0.42, 0.5, 0.76))
DEGREES_ABOUT_Y = (0, 90, 180, 270)


class Surface:
    """The isosurface of a map in its principal axes, as seen from any side.

    Args:
        volume: map of one connected molecule.
    """

    def __init__(self, volume: Volume) -> None:
        n = volume.box_size_px
        fine = ifft_map(pad_centred(fft_map(volume.values.double()), OVERSAMPLING * n, 3)) * OVERSAMPLING**2
        values = fine.numpy()
        self.pixel_size_angstrom = volume.pixel_size_angstrom / OVERSAMPLING
        self.level = LEVEL * float(np.quantile(volume.values.numpy(), 0.999))
        labels, _ = ndimage.label(values > self.level)
        sizes = np.bincount(labels.ravel())
        inside = labels == 1 + sizes[1:].argmax()
        self.values = np.where(inside | (values < self.level), values, 0.99 * self.level)
        self.subunits = subunits(self.values, inside)
        places = np.argwhere(inside)[:, ::-1].astype(float)
        self.centre = places.mean(0)
        self.axes = principal_axes(places - self.centre)

    def kilodaltons(self) -> float:
        """Protein of the enclosed volume, at 0.81 Da a cubic Angstrom."""
        return float((self.subunits > 0).sum() * self.pixel_size_angstrom**3 * 0.81e-3)

    def seen(self, turn: np.ndarray, size: int, *, array: np.ndarray | None = None, order: int = 1) -> np.ndarray:
        """The map (or another array on its grid) resampled with its principal axes along x, y and the line of sight.

        Args:
            turn: rotation of the molecule, which applies after the principal axes.
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


def about_y(degrees: float) -> np.ndarray:
    """Rotation about the vertical of the picture."""
    angle = np.deg2rad(degrees)
    return np.array([(np.cos(angle), 0, np.sin(angle)), (0, 1, 0), (-np.sin(angle), 0, np.cos(angle))])


def draw(picture: Path, particles: np.ndarray, particle_angstrom: float, volume: Volume) -> float:
    """Write the picture; the mass within the surface, in kDa."""
    surface = Surface(volume)
    fine = surface.pixel_size_angstrom
    size = int(330 / fine)
    with png_figure(picture, size_inches=(9.6, 7.3), dpi=100) as figure:
        figure.set_layout_engine("compressed")
        rows = figure.subplots(3, 4)
        for axes in rows.flat:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        for axes, image in zip(rows[0], particles, strict=True):
            blurred = ndimage.gaussian_filter(image, PARTICLE_BLUR_ANGSTROM / particle_angstrom)
            axes.imshow(blurred, origin="lower", interpolation="bicubic")
        for axes, degrees in zip(rows[1], DEGREES_ABOUT_Y, strict=True):
            axes.imshow(surface.shaded(about_y(degrees), size), origin="lower", interpolation="bicubic")
        turned = surface.seen(about_y(0), size, order=3)
        for axes, offset_angstrom in zip(rows[2], (-60, -20, 20, 60), strict=True):
            density = turned[size // 2 - round(offset_angstrom / fine)]
            limits = {"vmin": float(turned.min()), "vmax": float(turned.max())}
            axes.imshow(density, origin="lower", interpolation="bicubic", **limits)
            axes.set_title(f"z = {offset_angstrom} Å", fontsize=10)
        for axes, label in zip(rows[:, 0], ("particles, blurred", "map", "slices of the map"), strict=True):
            axes.set_ylabel(label)
        bar(rows[0, 0], particle_angstrom, "white")
        bar(rows[1, 0], fine, "black")
        bar(rows[2, 0], fine, "white")
    Image.open(picture).convert("RGB").quantize(256).save(picture, optimize=True)
    return surface.kilodaltons()


def bar(axes: Axes, pixel_size_angstrom: float, colour: str) -> None:
    """A bar of 100 Angstrom in the lower left corner."""
    side = axes.get_xlim()[1] - axes.get_xlim()[0]
    left, low = 0.05 * side, 0.06 * side
    axes.plot([left, left + 100 / pixel_size_angstrom], [low, low], color=colour, linewidth=3)
    axes.annotate("100 Å", (left, low), (0, 4), textcoords="offset points", color=colour, fontsize=9)


def on_grid_of(volume: Volume, reference: Volume) -> Volume:
    """A map on the grid of another, linear between its voxels after a blur to the coarser pixel."""
    n, ratio = reference.box_size_px, reference.pixel_size_angstrom / volume.pixel_size_angstrom
    blurred = ndimage.gaussian_filter(volume.values.numpy(), 0.5 * max(ratio, 1.0))
    line = (np.arange(n) - n // 2) * ratio + volume.box_size_px // 2
    values = ndimage.map_coordinates(blurred, np.meshgrid(line, line, line, indexing="ij"), order=1)
    return Volume(torch.from_numpy(values.astype(np.float32)), reference.pixel_size_angstrom)


def cryoeq(work: Path, *words: str) -> Cost:
    """Run one command of cryoeq on one thread, or raise with its log."""
    print("cryoeq", shlex.join(words), flush=True)
    log = work / f"{words[0]}.txt"
    cost = measure([CRYOEQ, *words], log=log, environment={"OMP_NUM_THREADS": "1"})
    if cost.exit_code:
        raise SystemExit(log.read_text(encoding="utf-8"))
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs; a finished one is used again")
    parser.add_argument("--reference", type=Path, help="map of a like particle, for its hand")
    parser.add_argument("--picture", type=Path, default=Path("data_samples/ribosome.png"))
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    results = read_json(RESULTS) if RESULTS.is_file() else {}
    run = work / "map"
    if not (run / "run_class001.mrc").is_file():
        cost = cryoeq(work, "reconstruct", str(options.particles), "-o", str(run), "--both-hands")
        job = read_json(run / "job.json")
        results = {"commit": job["commit"], "cpu_s": cost.cpu_s, "peak_rss_mib": cost.peak_rss_mib}
    name = "run_class001.mrc"
    halves = read_json_of_fsc(work, "halves", str(run / "run_half1_class001_unfil.mrc"))
    results["half_maps_0.143_angstrom"] = {
        key: round(halves["resolution_angstrom"][key], 2) for key in ("unmasked", "corrected")
    }
    if options.reference:
        reference = read_map(options.reference)
        write_map(work / "on_its_grid.mrc", on_grid_of(read_map(run / name), reference))
        write_map(work / "reference.mrc", reference)
        against = read_json_of_fsc(
            work, "against", str(work / "on_its_grid.mrc"), str(work / "reference.mrc"), "--align"
        )
        mirrored = against["alignment"]["is_mirrored"]
        name = "run_class001_mirrored.mrc" if mirrored else name
        results["against_reference"] = {
            "file": options.reference.name,
            "mean_fsc": round(against["alignment"]["mean_fsc"], 3),
            "fsc": [round(value, 3) for value in against["fsc"]["unmasked"]],
            "is_mirrored": mirrored,
        }
    stack = read_particles(options.particles)
    images = stack.images.read(torch.tensor(PARTICLES)).numpy()
    mass = draw(options.picture, images, stack.table.pixel_size_angstrom, read_map(run / name))
    results["mass_within_surface_kda"] = round(mass)
    write_json(RESULTS, results)
    print(results)


def read_json_of_fsc(work: Path, name: str, *words: str) -> dict[str, dict[str, float]]:
    """The figures of ``cryoeq fsc``."""
    cryoeq(work, "fsc", *words, "--json", str(work / f"{name}.json"))
    return read_json(work / f"{name}.json")


if __name__ == "__main__":
    main()
