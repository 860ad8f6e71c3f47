"""``cryoeq screen``."""

from itertools import chain
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
    gap_threshold: Annotated[
        float | None,
        typer.Option(help="Radius in degrees of a gap in angular coverage [15; larger for few particles]."),
    ] = None,
    hole_deg: Annotated[float | None, typer.Option(hidden=True, help="Name of --gap-threshold in version 0.1.")] = None,
    mirrored: Annotated[
        bool | None, typer.Option("--mirrored", help="Take a view and its mirror image for one.")
    ] = None,
    datadir: Annotated[Path | None, typer.Option(help="Folder that image names are relative to.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of synthetic outliers [0].")] = None,
) -> None:
    """Find missing views and junk particles."""
    from cryoeq.cli.drawing import draw
    from cryoeq.config.loading import load_config
    from cryoeq.config.screen import ScreenConfig
    from cryoeq.domain.events import Note
    from cryoeq.pipelines.screening import screen as pipeline

    explicit = {
        "run": run, "output": output, "scorer": scorer, "symmetry": sym,
        "gap_threshold_deg": gap_threshold, "hole_deg": hole_deg, "mirrored": mirrored, "datadir": datadir,
        "seed": seed,
    }  # fmt: skip
    notes: list[str] = []
    config = load_config(ScreenConfig, explicit=explicit, notes=notes)
    draw(chain(map(Note, notes), pipeline.screen(config)))
