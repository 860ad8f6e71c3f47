"""``cryoeq screen``."""

from pathlib import Path
from typing import Annotated

import typer


def screen(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Folder of a reconstruction; or a star file with poses, for views alone."),
    ],
    *,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for all files [RUN/screening].")] = None,
    scorer: Annotated[str | None, typer.Option(help="Particle scores: error, knn, graph, sheaf, none [knn].")] = None,
    sym: Annotated[str | None, typer.Option(help="Point group of the particle [that of the run].")] = None,
    hole_deg: Annotated[
        float | None,
        typer.Option(help="Radius of a gap that is a hole, degrees [15, or what chance leaves with few particles]."),
    ] = None,
    mirrored: Annotated[
        bool | None, typer.Option("--mirrored", help="Take a view and its mirror image for one.")
    ] = None,
    datadir: Annotated[Path | None, typer.Option(help="Folder that image names are relative to.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the junk that scorers learn from [0].")] = None,
) -> None:
    """Tell which views are missing and which particles are none."""
    from cryoeq.cli.drawing import draw
    from cryoeq.config.loading import load_config
    from cryoeq.config.screen import ScreenConfig
    from cryoeq.pipelines.screening import screen as pipeline

    explicit = {
        "run": run, "output": output, "scorer": scorer, "symmetry": sym,
        "hole_deg": hole_deg, "mirrored": mirrored, "datadir": datadir, "seed": seed,
    }  # fmt: skip
    draw(pipeline.screen(load_config(ScreenConfig, explicit=explicit)))
