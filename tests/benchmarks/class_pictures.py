"""Pictures of the classes that runs of ``classes.py`` found, beside the true maps.

    python tests/benchmarks/class_pictures.py --work DIR --show molecules:0:2,conformations_50:0:2   classes.png
    python tests/benchmarks/class_pictures.py --work DIR --show ribosome:0:2 -o ribosome.png

Each run is a row: central slices of the true maps, and of the found ones in the frame and the hand of the true map that
they show; without a truth the found maps alone, each in its own frame.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ab_initio import listed
from benchmark_sets import DATA
from classes import RESULTS, SETS, Bench
from recorded_runs import Record, find_record, read_records
from scoring import soft_sphere, with_power_of

from cryoeq.domain.volume import Volume
from cryoeq.io.mrc import read_map
from cryoeq.maps.alignment import align_map
from cryoeq.outputs.figure import png_figure

PICTURE = RESULTS.with_suffix(".png")
_INCHES, _DPI = 1.25, 80


def panels_of(bench: Bench, record: Record) -> list[tuple[str, Volume]]:
    """Titles and maps of a run, in the order in which they are drawn.

    Args:
        bench: where.
        record: of the run.
    """
    name, seed, classes = record["set"], record["seed"], record["options"][1]
    output = bench.output(name, seed, classes)
    if not record["reported"]:
        return [("one structure", read_map(output / "run_class001.mrc"))]
    found = {
        number: read_map(output / f"run_class{number:03d}.mrc") for number in range(1, len(record["reported"]) + 1)
    }
    scores = record.get("scores")
    if not scores:
        return [
            (f"class {number}: {100 * record['reported'][number - 1]['share']:.0f} %", volume)
            for number, volume in found.items()
        ]
    structures = bench.structures(name, bench.prepare(name, seed))
    panels = []
    for each in sorted(scores["classes"], key=lambda one: one["true_class"]):
        true = structures[each["true_class"] - 1].volume
        moving = found[each["class"]]
        moving = replace(moving, values=with_power_of(moving.values, true.values))
        aligned = align_map(moving, true, with_hand=True).apply(moving)
        panels += [(f"true {each['true_class']}", true), (f"class {each['class']}", aligned)]
    return panels


def slices(volume: Volume) -> np.ndarray:
    """The central slices across z and across y, one above the other, within the sphere of a search."""
    n = volume.box_size_px
    values = volume.values * soft_sphere(n)
    return torch.cat([values[n // 2], values[:, n // 2]]).numpy()


def draw(rows: list[tuple[str, list[tuple[str, Volume]]]], path: Path) -> None:
    """A row of panels for each run.

    Args:
        rows: name of each run, and its panels.
        path: PNG file.
    """
    width = max(len(panels) for _, panels in rows)
    size = (_INCHES * width, 2.3 * _INCHES * len(rows))
    with png_figure(path, size_inches=size, dpi=_DPI) as figure:
        grid = figure.subplots(len(rows), width, squeeze=False)
        for axes, (name, panels) in zip(grid, rows, strict=True):
            for axis in axes:
                axis.set_axis_off()
            for axis, (title, volume) in zip(axes, panels, strict=False):
                picture = slices(volume)
                low, high = np.quantile(picture, (0.02, 0.998))
                axis.imshow(picture, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
                axis.set_title(title, fontsize=7)
            axes[0].set_title(f"{name}\n{panels[0][0]}", fontsize=7)


def main() -> None:
    """Read, align, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for stacks and runs")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with models, mixtures and real_spa")
    parser.add_argument("--show", type=listed, required=True, help=f"SET:SEED:CLASSES, SET of {', '.join(SETS)}")
    parser.add_argument("--records", type=Path, default=RESULTS, help=f"JSON file [{RESULTS.name}]")
    parser.add_argument("-o", "--output", type=Path, default=PICTURE, help=f"PNG file [{PICTURE.name}]")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bench, rows = Bench(given.data.resolve(), given.work.resolve(), given.records), []
    for word in given.show:
        name, seed, classes = word.split(":")
        key = {"set": name, "mode": "search", "seed": int(seed), "options": ["--classes", classes]}
        record = find_record(read_records(given.records), key)
        if record is None:
            parser.error(f"{word} is not recorded in {given.records}")
        rows.append((name, panels_of(bench, record)))
    draw(rows, given.output)


if __name__ == "__main__":
    main()
