"""``cryoeq orientations``."""

from pathlib import Path
from typing import Annotated

import typer

from cryoeq.cli.options import ANALYSIS, INPUT, OUTPUT, ClassNumber, Device, JsonFile, Seed


def orientations(
    particles: Annotated[
        Path,
        typer.Argument(
            metavar="STAR|RUN",
            help="Particles with poses, RELION 3.0 or later; or the folder of a run.",
            rich_help_panel=INPUT,
        ),
    ],
    *,
    class_number: ClassNumber = None,
    sym: Annotated[
        str | None,
        typer.Option(
            help="Point group of the particle: Cn, Dn, T, O, I [that of RUN, else C1].", rich_help_panel=ANALYSIS
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for orientations.json, pictures and orientations.bild; files of an earlier call are replaced "
            "[none].",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    json_file: JsonFile = None,
    device: Device = None,
    seed: Seed = None,
) -> None:
    """Measure how evenly particles are oriented.

    Efficiency E_od, Fourier sampling SCF*, in-plane angles.

    Examples:
      cryoeq orientations map/run_data.star -o map/orientations
      cryoeq orientations run_data.star --sym D7 --json orientations.json
    """
    from cryoeq.cli.drawing import draw
    from cryoeq.config.loading import load_config
    from cryoeq.config.orientations import OrientationsConfig
    from cryoeq.pipelines import orientations as pipeline

    explicit = {
        "particles": particles, "class_number": class_number, "symmetry": sym, "json_file": json_file,
        "output": output, "device": device, "seed": seed,
    }  # fmt: skip
    draw(pipeline.orientations(load_config(OrientationsConfig, explicit=explicit)))
