"""``cryoeq lattice find``."""

from pathlib import Path
from typing import Annotated

import typer

from cryoeq.cli.options import IMAGING, INPUT, OUTPUT, SEARCH, Device, Seed
from cryoeq.config.choices import PlaneReducer


def find(
    micrograph: Annotated[
        Path,
        typer.Argument(metavar="MICROGRAPH", help="MRC file of one image of a 2D crystal.", rich_help_panel=INPUT),
    ],
    *,
    angpix: Annotated[
        float | None, typer.Option(help="Pixel size in Å [that of the header].", rich_help_panel=IMAGING)
    ] = None,
    min_cell: Annotated[
        float | None, typer.Option(help="Shortest cell vector in Å [20].", rich_help_panel=SEARCH)
    ] = None,
    max_cell: Annotated[
        float | None, typer.Option(help="Longest cell vector in Å [400].", rich_help_panel=SEARCH)
    ] = None,
    finest: Annotated[
        float | None,
        typer.Option(help="Resolution in Å beyond which spots are not used [Nyquist].", rich_help_panel=SEARCH),
    ] = None,
    reducer: Annotated[
        PlaneReducer | None,
        typer.Option(help="Algorithm that reduces the lattice [lagrange-gauss].", rich_help_panel=SEARCH),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder; files of an earlier call are replaced [cryoeq_lattice].",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    subtract: Annotated[
        bool,
        typer.Option("--subtract", help="Write the image with the lattice taken out too.", rich_help_panel=OUTPUT),
    ] = False,
    device: Device = None,
    seed: Seed = None,
) -> None:
    """Find the unit cell of a 2D crystal in a micrograph.

    Indexes the spots of its power spectrum.

    Examples:
      cryoeq lattice find crystal.mrc -o cell
      cryoeq lattice find crystal.mrc --angpix 1.2 --max-cell 200 --subtract
    """
    from cryoeq.cli.drawing import draw
    from cryoeq.config.lattice import FindConfig
    from cryoeq.config.loading import load_config
    from cryoeq.outputs.run_folder import free_folder
    from cryoeq.pipelines.lattice import find as pipeline

    explicit = {
        "micrograph": micrograph, "output": output or free_folder("cryoeq_lattice"), "pixel_size_angstrom": angpix,
        "smallest_cell_angstrom": min_cell, "largest_cell_angstrom": max_cell, "finest_angstrom": finest,
        "reducer": reducer, "subtract": subtract or None, "device": device, "seed": seed,
    }  # fmt: skip
    draw(pipeline.find(load_config(FindConfig, explicit=explicit)))
