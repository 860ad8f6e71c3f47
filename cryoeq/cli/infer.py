"""``cryoeq infer``."""

from pathlib import Path
from typing import Annotated

import typer


def infer(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a hybrid reconstruction, or its encoder.pt.")],
    particles: Annotated[Path, typer.Argument(metavar="NEW.star", help="Particles to pose, or a .mrcs stack.")],
    *,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Star file for the poses [poses.star].")] = None,
    angpix: Annotated[
        float | None, typer.Option(help="Pixel size in Angstrom; fills in or overrides the file's.")
    ] = None,
    datadir: Annotated[Path | None, typer.Option(help="Folder that image names are relative to.")] = None,
    invert_data: Annotated[
        bool | None, typer.Option("--invert-data/--uninvert-data", help="Contrast [decided from the images].")
    ] = None,
    batch_size: Annotated[int | None, typer.Option("-b", "--batch-size", help="Particles at a time [1024].")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or int8 (CPU) [fp32].")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:N [auto].")] = None,
) -> None:
    """Pose new particles by the encoder of a run: one forward pass each, nothing is refined."""
    from cryoeq.cli.drawing import draw
    from cryoeq.config.infer import InferConfig
    from cryoeq.config.loading import load_config
    from cryoeq.pipelines import infer as pipeline

    contrast = None if invert_data is None else "invert" if invert_data else "keep"
    explicit = {
        "run": run, "particles": particles, "output": output, "angpix": angpix, "datadir": datadir,
        "contrast": contrast, "batch_size": batch_size, "device": device,
        "precision": precision,
    }  # fmt: skip
    draw(pipeline.infer(load_config(InferConfig, explicit=explicit)))
