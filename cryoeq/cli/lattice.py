"""``cryoeq lattice reduce``; ``find`` is in a module of its own."""

from pathlib import Path
from typing import Annotated

import typer

from cryoeq.cli.options import ANALYSIS, INPUT, JsonFile
from cryoeq.config.choices import Reducer


def reduce(
    *,
    cell: Annotated[
        str | None,
        typer.Option(
            metavar="CELL",
            help="Unit cell, 'a b gamma' or 'a b c alpha beta gamma', in Å and degrees.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    basis: Annotated[
        Path | None, typer.Option(help="Text file with one basis vector a line, 2 to n.", rich_help_panel=INPUT)
    ] = None,
    tiles: Annotated[
        str | None,
        typer.Option(
            metavar="ROWS,COLUMNS",
            help="Grid whose bases --basis holds, row by row, to be reduced jointly.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    reducer: Annotated[
        Reducer | None,
        typer.Option(
            help="Algorithm: lagrange-gauss for 2D, niggli for 3D, lll for any dimension, neural for 2D and 3D "
            "[lagrange-gauss, niggli, beyond 3D lll].",
            rich_help_panel=ANALYSIS,
        ),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Reduce a lattice, given by its cell or by basis vectors.

    Examples:
      cryoeq lattice reduce --cell "100 60 17"
      cryoeq lattice reduce --cell "60 70 80 75 80 85" --reducer niggli
    """
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
