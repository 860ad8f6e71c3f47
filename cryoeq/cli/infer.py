"""``cryoeq infer``."""

from pathlib import Path
from typing import Annotated

import typer

from cryoeq.cli.options import COMPUTE, IMAGING, INPUT, OUTPUT, SEARCH, Datadir, Device, InvertData, contrast_of
from cryoeq.config.choices import InferencePrecision


def infer(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Folder of a finished reconstruction, or an encoder.pt.", rich_help_panel=INPUT
        ),
    ],
    particles: Annotated[
        Path,
        typer.Argument(
            metavar="NEW.star", help="Particles to pose: .star, .cs, or .mrcs with --angpix.", rich_help_panel=INPUT
        ),
    ],
    *,
    datadir: Datadir = None,
    angpix: Annotated[
        float | None, typer.Option(help="Pixel size in Å; overrides that of the file.", rich_help_panel=IMAGING)
    ] = None,
    invert_data: InvertData = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Star file for the poses; that of an earlier call is replaced [poses.star].",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    refine: Annotated[
        bool | None,
        typer.Option(
            "--refine/--no-refine",
            help="Refine poses, search those of low confidence, tell junk; or the encoder's pass alone [--refine].",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(
            help="Confidence below which a particle is searched over all poses; 0 for none [0.9].",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    device: Device = None,
    batch_size: Annotated[
        int | None,
        typer.Option("-b", "--batch-size", help="Particles in memory at a time [1024].", rich_help_panel=COMPUTE),
    ] = None,
    precision: Annotated[
        InferencePrecision | None,
        typer.Option(help="Number format; int8 is for CPUs [fp32].", rich_help_panel=COMPUTE),
    ] = None,
) -> None:
    """Pose new particles by the encoder of a run.

    A run that has none learns it first, from its half maps. Particles that
    the encoder is not sure of are searched; beside the poses are a record
    (.json) and a picture (.png) of confidence and fit.

    Examples:
      cryoeq infer map new_particles.star -o poses.star
      cryoeq infer map new_particles.cs --no-refine
      cryoeq infer map/encoder.pt new_particles.mrcs --angpix 3.2
    """
    from cryoeq.cli.drawing import draw
    from cryoeq.config.infer import InferConfig
    from cryoeq.config.loading import load_config
    from cryoeq.pipelines import infer as pipeline

    explicit = {
        "run": run, "particles": particles, "output": output, "angpix": angpix, "datadir": datadir,
        "contrast": contrast_of(invert_data), "batch_size": batch_size, "device": device,
        "precision": precision, "refine": refine, "min_confidence": min_confidence,
    }  # fmt: skip
    draw(pipeline.infer(load_config(InferConfig, explicit=explicit)))
