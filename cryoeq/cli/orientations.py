"""``cryoeq orientations``."""

from pathlib import Path
from typing import Annotated

import typer


def orientations(
    particles: Annotated[Path, typer.Argument(metavar="STAR", help="Particles with poses, RELION 3.0 or later.")],
    *,
    sym: Annotated[str | None, typer.Option(help="Point group of the particle: C4, D2, T, O, I [C1].")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for orientations.json, pictures and orientations.bild [none]."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the choice of 10,000 views for SCF* [0].")] = None,
) -> None:
    """Tell how evenly particles are oriented: efficiency E_od, Fourier sampling SCF*, in-plane angles."""
    from cryoeq.cli.drawing import draw
    from cryoeq.config.loading import load_config
    from cryoeq.config.orientations import OrientationsConfig
    from cryoeq.pipelines import orientations as pipeline

    explicit = {"particles": particles, "symmetry": sym, "json_file": json_file, "output": output, "seed": seed}
    draw(pipeline.orientations(load_config(OrientationsConfig, explicit=explicit)))
