"""``cryoeq lattice find``."""

from pathlib import Path
from typing import Annotated

import typer


def find(
    micrograph: Annotated[Path, typer.Argument(help="MRC file of one image of a 2D crystal.")],
    *,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder to write [cryoeq_lattice].")] = None,
    angpix: Annotated[float | None, typer.Option(help="Pixel size in Angstrom [that of the header].")] = None,
    min_cell: Annotated[float | None, typer.Option(help="Shortest cell vector, Angstrom [20].")] = None,
    max_cell: Annotated[float | None, typer.Option(help="Longest cell vector, Angstrom [400].")] = None,
    finest: Annotated[
        float | None, typer.Option(help="Use no spots beyond this resolution, Angstrom [Nyquist].")
    ] = None,
    reducer: Annotated[str | None, typer.Option(help="lagrange-gauss, lll or neural [lagrange-gauss].")] = None,
    subtract: Annotated[
        bool, typer.Option("--subtract", help="Also write the image with the lattice taken out.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Of the noise that replaces the spots [0].")] = None,
) -> None:
    """Find the unit cell of a 2D crystal in the power spectrum of a micrograph, and index its spots."""
    from cryoeq.cli.drawing import draw
    from cryoeq.config.lattice import FindConfig
    from cryoeq.config.loading import load_config
    from cryoeq.outputs.run_folder import free_folder
    from cryoeq.pipelines.lattice import find as pipeline

    explicit = {
        "micrograph": micrograph, "output": output or free_folder("cryoeq_lattice"), "pixel_size_angstrom": angpix,
        "smallest_cell_angstrom": min_cell, "largest_cell_angstrom": max_cell, "finest_angstrom": finest,
        "reducer": reducer, "subtract": subtract or None, "seed": seed,
    }  # fmt: skip
    draw(pipeline.find(load_config(FindConfig, explicit=explicit)))
