"""``cryoeq lattice train`` and ``train-grid``, both hidden: how the weights that cryoeq ships are made."""

from pathlib import Path
from typing import Annotated

import typer


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
    from cryoeq.pipelines.lattice.train import train_reducer

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
    from cryoeq.pipelines.lattice.train import train_grid_reducer

    explicit = {"output": output, "steps": steps, "width": width, "rounds": rounds, "seed": seed}
    draw(train_grid_reducer(load_config(GridTrainConfig, explicit=explicit)))
