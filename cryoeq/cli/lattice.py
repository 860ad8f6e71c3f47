"""``cryoeq lattice reduce``, ``train`` and ``train-grid``; ``find`` is in its own module."""

from pathlib import Path
from typing import Annotated

import typer

REDUCERS = "lagrange-gauss (2D), niggli (3D), lll, or neural (2D to 4D)"


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
    joint: Annotated[str | None, typer.Option(help="How: carried from tile to tile, or network [carried].")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
) -> None:
    """Find a short basis of a lattice that is given by its cell or by its basis vectors."""
    from cryoeq.cli.drawing import draw
    from cryoeq.config.lattice import ReduceConfig
    from cryoeq.config.loading import load_config
    from cryoeq.pipelines.lattice import reduce_lattice
    from cryoeq.pipelines.lattice_grid import reduce_tiles

    explicit = {
        "cell": None if cell is None else cell.replace(",", " ").split(), "basis": basis, "reducer": reducer,
        "tiles": None if tiles is None else tiles.replace(",", " ").split(), "joint": joint, "json_file": json_file,
    }  # fmt: skip
    config = load_config(ReduceConfig, explicit=explicit)
    draw(reduce_lattice(config) if config.tiles is None else reduce_tiles(config, config.tiles))


def train(
    n: Annotated[int, typer.Argument(help="Dimension.")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="File of the weights.")],
    steps: Annotated[int | None, typer.Option(help="Batches of 512 random lattices [600].")] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the network [16].")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of messages [2].")] = None,
    start: Annotated[
        Path | None, typer.Option(help="Begin from these weights, of any dimension, in their width and rounds.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the first batch; falls to zero [0.005].")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, lattices and moves [0].")] = None,
) -> None:
    """Train the network of --reducer neural, as those that cryoeq ships were trained."""
    from cryoeq.cli.drawing import draw
    from cryoeq.config.lattice import TrainConfig
    from cryoeq.config.loading import load_config
    from cryoeq.pipelines.lattice_training import train_reducer

    explicit = {
        "n": n, "output": output, "steps": steps, "width": width, "rounds": rounds, "start": start,
        "learning_rate": learning_rate, "seed": seed,
    }  # fmt: skip
    draw(train_reducer(load_config(TrainConfig, explicit=explicit)))


def train_grid(
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="File of the weights.")],
    steps: Annotated[int | None, typer.Option(help="Batches of four random grids [150].")] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the network [16].")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of messages [2].")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, grids and moves [0].")] = None,
) -> None:
    """Train the network of --joint network, as the one that cryoeq ships was trained."""
    from cryoeq.cli.drawing import draw
    from cryoeq.config.lattice import GridTrainConfig
    from cryoeq.config.loading import load_config
    from cryoeq.pipelines.lattice_training import train_grid_reducer

    explicit = {"output": output, "steps": steps, "width": width, "rounds": rounds, "seed": seed}
    draw(train_grid_reducer(load_config(GridTrainConfig, explicit=explicit)))
