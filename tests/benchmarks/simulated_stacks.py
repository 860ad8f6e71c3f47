"""Pictures of what ``cryoeq simulate`` makes, kind by kind, beside real particles.

    python tests/benchmarks/simulated_stacks.py MODEL --work DIR -o FILE.png
    python tests/benchmarks/simulated_stacks.py MODEL --work DIR -o FILE.png --real a.star --real b.star

Each row holds examples of one kind, low-passed as real particles have to be to be seen. Real particles are read where
they are and drawn below; a picture with them belongs to whoever owns them.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from recorded_runs import CRYOEQ, measure
from torch import Tensor

from cryoeq.geometry.fourier import fft_image, ifft_image
from cryoeq.io.labels import HAS_NEIGHBOUR, JUNK_KIND
from cryoeq.io.particles import read_particles
from cryoeq.outputs.figure import png_figure

COLUMNS, COUNT = 8, 400
_STACK = ("--junk", "0.4", "--neighbours", "0.2", "--scale-sd", "0.15", "--bfactor", "80", "--normalise")
KINDS: Mapping[str, tuple[str, str]] = {  # row: noise, kind of junk or neighbour
    "white noise": ("white", "none"),
    "coloured": ("coloured", "none"),
    "ice": ("ice", "none"),
    "neighbour": ("ice", "neighbour"),
    "empty": ("ice", "empty"),
    "edge": ("ice", "edge"),
    "edge ": ("coloured", "edge"),
    "overlap": ("ice", "overlap"),
    "broken": ("ice", "broken"),
}


def low_pass(images: Float[Tensor, "batch n n"], pixel_size: float, resolution: float) -> Float[Tensor, "batch n n"]:
    """Images times a Gaussian that falls to exp(-1) at a resolution.

    Args:
        images: to filter.
        pixel_size: in Angstrom.
        resolution: in Angstrom.
    """
    n = images.shape[-1]
    k = torch.arange(n) - n // 2
    squared = (k[:, None].square() + k.square()) / (n * pixel_size) ** 2
    return ifft_image(fft_image(images) * torch.exp(-squared * resolution**2))


def simulated(model: Path, work: Path, noise: str, options: Sequence[str]) -> Path:
    """A stack of all kinds, made unless it is there.

    Args:
        model: molecule.
        work: folder of the stacks.
        noise: its kind.
        options: more of ``cryoeq simulate``.
    """
    folder = work / noise
    if not (folder / "particles.star").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        words = [CRYOEQ, "simulate", str(model), "-o", str(folder), "-n", str(COUNT), "--noise", noise, *_STACK]
        if measure([*words, *options], log=work / f"{noise}.log").exit_code:
            raise RuntimeError(f"the simulation failed; see {work / noise}.log")
    return folder / "truth.star"


def examples(star: Path, kind: str | None, resolution: float) -> Float[Tensor, "batch n n"]:
    """Low-passed images of a kind.

    Args:
        star: of the stack.
        kind: of junk, ``none`` for particles without neighbours, ``neighbour``; None for any.
        resolution: of the low pass in Angstrom.
    """
    stack = read_particles(star)
    if kind is None:
        rows = torch.randperm(len(stack.table), generator=torch.Generator().manual_seed(0))[:COLUMNS]
    else:
        kinds, beside = (stack.star.particles[name].tolist() for name in (JUNK_KIND, HAS_NEIGHBOUR))
        wanted = ("none", "1") if kind == "neighbour" else (kind, "0")
        found = [row for row, pair in enumerate(zip(kinds, beside, strict=True)) if pair == wanted]
        rows = torch.tensor(found[:COLUMNS])
    return low_pass(stack.images.read(rows), stack.table.pixel_size_angstrom, resolution)


def draw(path: Path, rows: Mapping[str, Float[Tensor, "batch n n"]]) -> None:
    """One row of images for each kind, in grey from -2.5 to 3.5 of the median deviation of all.

    Args:
        path: PNG file.
        rows: images by the name of their row.
    """
    margins = {"left": 0.11, "right": 0.995, "top": 0.995, "bottom": 0.005}
    size = (0.85 * (COLUMNS + 1.2), 0.85 * len(rows))
    with png_figure(path, size_inches=size, dpi=75, margins=margins) as figure:
        grid = figure.subplots(len(rows), COLUMNS, squeeze=False)
        figure.subplots_adjust(wspace=0.03, hspace=0.03)
        for line, (name, images) in zip(grid, rows.items(), strict=True):
            deviation = float(images.flatten(1).std(1).median())
            for axes, image in zip(line, images, strict=False):
                axes.imshow(image.numpy(), vmin=-2.5 * deviation, vmax=3.5 * deviation)
            for axes in line:
                axes.set_axis_off()
            line[0].text(-0.1, 0.5, name.strip(), transform=line[0].transAxes, ha="right", va="center", fontsize=10)


def main() -> None:
    """Simulate and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="PDB, mmCIF or map")
    parser.add_argument("--work", type=Path, required=True, help="folder for the stacks")
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG file")
    parser.add_argument(
        "--real", type=Path, action="append", default=[], help="star file of real particles, repeatable"
    )
    parser.add_argument("--low-pass", type=float, default=25.0, help="in Angstrom (default 25)")
    parser.add_argument("--options", default="--box 64 --snr 0.1 --shift-sigma 8", help="of cryoeq simulate, quoted")
    given = parser.parse_args()
    rows = {
        name: examples(simulated(given.model, given.work, noise, given.options.split()), kind, given.low_pass)
        for name, (noise, kind) in KINDS.items()
    }
    rows |= {f"real {number}": examples(star, None, given.low_pass) for number, star in enumerate(given.real, 1)}
    draw(given.output, rows)


if __name__ == "__main__":
    main()
