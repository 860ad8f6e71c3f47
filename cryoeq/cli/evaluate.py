"""``cryoeq evaluate``."""

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from cryoeq.cli.options import ANALYSIS, IMAGING, INPUT, OUTPUT, Device, JsonFile, Seed


def evaluate(
    predicted: Annotated[
        Path | None,
        typer.Argument(metavar="PRED.star", help="Predicted poses, or the folder of a run.", rich_help_panel=INPUT),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Argument(
            metavar="TRUTH.star", help="True poses of the same images, in any order.", rich_help_panel=INPUT
        ),
    ] = None,
    *,
    bound: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Bound the error of a network of views (hybrid.posterior) on new images; star files are not needed.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    angpix: Annotated[
        float | None, typer.Option(help="Pixel size in Å [that of the star files].", rich_help_panel=IMAGING)
    ] = None,
    sym: Annotated[
        str | None, typer.Option(help="Point group of the particle: Cn, Dn, T, O, I [C1].", rich_help_panel=ANALYSIS)
    ] = None,
    by_class: Annotated[
        bool | None,
        typer.Option(
            "--by-class/--no-by-class",
            help="Classes of PRED.star are structures, each in its own frame [those of a run of several].",
            rich_help_panel=ANALYSIS,
        ),
    ] = None,
    junk_below: Annotated[
        float | None,
        typer.Option(
            help="By class: particles that are junk with less than this probability count as kept [0.2].",
            rich_help_panel=ANALYSIS,
        ),
    ] = None,
    error_threshold: Annotated[
        float | None,
        typer.Option(
            help="With --bound: rotation error in degrees above which a pose is wrong [30].", rich_help_panel=ANALYSIS
        ),
    ] = None,
    wrong_beyond: Annotated[
        float | None, typer.Option(hidden=True, help="Name of --error-threshold in version 0.1.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for pose_errors.json, pose_errors.png, bound.json; files of an earlier call are replaced "
            "[none].",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    json_file: JsonFile = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="PNG file for the histogram of errors [none].", rich_help_panel=OUTPUT)
    ] = None,
    device: Device = None,
    seed: Seed = None,
) -> None:
    """Compare poses with true ones; bound the error of an encoder.

    Errors are free of what images cannot tell: the frame, the hand and the origin of the map.

    Examples:
      cryoeq evaluate map/run_data.star particles/truth.star
      cryoeq evaluate --bound map -o map/bound
    """
    from cryoeq.cli.drawing import draw
    from cryoeq.config.evaluate import EvaluateConfig
    from cryoeq.config.loading import load_config
    from cryoeq.domain.events import Note
    from cryoeq.pipelines import evaluate as pipeline

    explicit = {
        "predicted": predicted, "truth": truth, "bound": bound, "error_threshold_deg": error_threshold,
        "wrong_deg": wrong_beyond,
        "by_class": by_class, "junk_below": junk_below, "symmetry": sym, "pixel_size_angstrom": angpix,
        "json_file": json_file, "plot_file": plot_file, "output": output, "seed": seed, "device": device,
    }  # fmt: skip
    notes: list[str] = []
    config = load_config(EvaluateConfig, explicit=explicit, notes=notes)
    draw(chain((Note(note, "warning") for note in notes), pipeline.evaluate(config)))
