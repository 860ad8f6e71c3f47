"""``cryoeq symmetry``."""

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from cryoeq.cli.options import ANALYSIS, IMAGING, INPUT, OUTPUT, Datadir, Device, JsonFile


def symmetry(
    volume: Annotated[
        Path, typer.Argument(metavar="MAP.mrc", help="A map made in C1, or a half map.", rich_help_panel=INPUT)
    ],
    *,
    half_maps: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A.mrc B.mrc", help="Its half maps [those beside it, by name].", rich_help_panel=INPUT),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Folder of its reconstruction: ask the particles too [none].", rich_help_panel=INPUT),
    ] = None,
    datadir: Datadir = None,
    angpix: Annotated[
        float | None, typer.Option(help="Pixel size in Å [that of the headers].", rich_help_panel=IMAGING)
    ] = None,
    sym: Annotated[
        str | None, typer.Option(help="Score this point group alone: Cn, Dn, T, O, I.", rich_help_panel=ANALYSIS)
    ] = None,
    max_order: Annotated[
        int | None, typer.Option(help="Largest order of an axis [8].", rich_help_panel=ANALYSIS)
    ] = None,
    resolution: Annotated[
        float | None,
        typer.Option(
            help="Resolution of the comparison in Å [that of the half maps, or Nyquist].", rich_help_panel=ANALYSIS
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for maps, scores and picture; files of an earlier call are replaced [none].",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    json_file: JsonFile = None,
    device: Device = None,
) -> None:
    """Find the point group of a map, and its axes.

    Scores of point groups: 1 where rotated copies agree as the half maps do, 0 for random rotations.

    Examples:
      cryoeq symmetry map/run_class001.mrc --run map -o map/symmetry
      cryoeq symmetry map.mrc --sym C4 --resolution 12 -o aligned
    """
    from cryoeq.cli.drawing import draw
    from cryoeq.config.loading import load_config
    from cryoeq.config.map_symmetry import SymmetryConfig
    from cryoeq.domain.events import Note
    from cryoeq.pipelines.symmetry import symmetry as pipeline

    explicit = {
        "volume": volume, "half_maps": half_maps, "symmetry": sym, "max_order": max_order,
        "resolution_angstrom": resolution, "pixel_size_angstrom": angpix, "run": run, "datadir": datadir,
        "json_file": json_file, "output": output, "device": device,
    }  # fmt: skip
    notes: list[str] = []
    config = load_config(SymmetryConfig, explicit=explicit, notes=notes)
    draw(chain((Note(note, "warning") for note in notes), pipeline.symmetry(config)))
