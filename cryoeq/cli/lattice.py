"""``cryoeq lattice reduce``."""

from pathlib import Path
from typing import Annotated

import typer

REDUCERS = "lagrange-gauss (2D), niggli (3D), lll, or neural (2D, 3D)"


def reduce(
    *,
    cell: Annotated[
        str | None, typer.Option(help="'a b gamma' or 'a b c alpha beta gamma', Angstrom and degrees.")
    ] = None,
    basis: Annotated[Path | None, typer.Option(help="Text file with one basis vector per line, 2 to n.")] = None,
    reducer: Annotated[
        str | None, typer.Option(help=f"{REDUCERS} [lagrange-gauss in 2D, niggli in 3D, else lll].")
    ] = None,
    tiles: Annotated[
        str | None,
        typer.Option(
            metavar="ROWS,COLUMNS", help="The file holds the bases of a grid, row by row: reduce them jointly."
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
) -> None:
    """Find a short basis of a lattice that is given by its cell or by its basis vectors."""
    from cryoeq.cli.drawing import draw
    from cryoeq.config.lattice import ReduceConfig
    from cryoeq.config.loading import load_config
    from cryoeq.pipelines.lattice.reduce import reduce_lattice
    from cryoeq.pipelines.lattice.reduce_tiles import reduce_tiles

    explicit = {
        "cell": None if cell is None else cell.replace(",", " ").split(), "basis": basis, "reducer": reducer,
        "tiles": None if tiles is None else tiles.replace(",", " ").split(), "json_file": json_file,
    }  # fmt: skip
    config = load_config(ReduceConfig, explicit=explicit)
    draw(reduce_lattice(config) if config.tiles is None else reduce_tiles(config, config.tiles))
