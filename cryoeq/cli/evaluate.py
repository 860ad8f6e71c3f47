"""``cryoeq evaluate``."""

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    predicted: Annotated[Path | None, typer.Argument(metavar="PRED.star", help="Poses to judge.")] = None,
    truth: Annotated[
        Path | None, typer.Argument(metavar="TRUTH.star", help="True poses of the same images, in any order.")
    ] = None,
    *,
    bound: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Bound the error of a hybrid run's encoder on new images; needs no star file."
        ),
    ] = None,
    error_threshold: Annotated[
        float | None, typer.Option(help="With --bound: rotation error in degrees above which a pose is wrong [30].")
    ] = None,
    wrong_beyond: Annotated[
        float | None, typer.Option(hidden=True, help="Name of --error-threshold in version 0.1.")
    ] = None,
    sym: Annotated[str | None, typer.Option(help="Point group of the particle: C4, D2, T, O, I [C1].")] = None,
    angpix: Annotated[float | None, typer.Option(help="Pixel size in Angstrom [that of the star files].")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Write the histogram of errors to this PNG.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for pose_errors.json, pose_errors.png, bound.json [none]."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the random halves and of the search [0].")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:N [auto].")] = None,
) -> None:
    """Compare poses with a truth, up to the rotation, hand and shift that images cannot tell; or bound an encoder."""
    from cryoeq.cli.drawing import draw
    from cryoeq.config.evaluate import EvaluateConfig
    from cryoeq.config.loading import load_config
    from cryoeq.domain.events import Note
    from cryoeq.pipelines import evaluate as pipeline

    explicit = {
        "predicted": predicted, "truth": truth, "bound": bound, "error_threshold_deg": error_threshold,
        "wrong_deg": wrong_beyond,
        "symmetry": sym, "pixel_size_angstrom": angpix,
        "json_file": json_file, "plot_file": plot_file, "output": output, "seed": seed, "device": device,
    }  # fmt: skip
    notes: list[str] = []
    config = load_config(EvaluateConfig, explicit=explicit, notes=notes)
    draw(chain(map(Note, notes), pipeline.evaluate(config)))
