"""``cryoeq screen``."""

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from cryoeq.cli.options import ANALYSIS, INPUT, OUTPUT, ClassNumber, Datadir, Device, Seed
from cryoeq.config.choices import Scorer


def screen(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Folder of a reconstruction; or a star file with poses, for views alone.",
            rich_help_panel=INPUT,
        ),
    ],
    *,
    datadir: Datadir = None,
    class_number: ClassNumber = None,
    scorer: Annotated[
        Scorer | None,
        typer.Option(
            help="Particle scores: reconstruction error, nearest neighbours, a network on the graph of views or on its "
            "sheaf [knn].",
            rich_help_panel=ANALYSIS,
        ),
    ] = None,
    sym: Annotated[
        str | None,
        typer.Option(help="Point group of the particle: Cn, Dn, T, O, I [that of the run].", rich_help_panel=ANALYSIS),
    ] = None,
    gap_threshold: Annotated[
        float | None,
        typer.Option(
            help="Radius in degrees of a gap in angular coverage [15; larger for few particles].",
            rich_help_panel=ANALYSIS,
        ),
    ] = None,
    hole_deg: Annotated[float | None, typer.Option(hidden=True, help="Name of --gap-threshold in version 0.1.")] = None,
    mirrored: Annotated[
        bool | None,
        typer.Option("--mirrored", help="Count a view and its mirror image as one.", rich_help_panel=ANALYSIS),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder; files of an earlier call are replaced [RUN/screening, or screening_class00N].",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    device: Device = None,
    seed: Seed = None,
) -> None:
    """Find missing views and junk particles.

    Examples:
      cryoeq screen map
      cryoeq screen run_data.star --sym C4 -o screening
    """
    from cryoeq.cli.drawing import draw
    from cryoeq.config.loading import load_config
    from cryoeq.config.screen import ScreenConfig
    from cryoeq.domain.events import Note
    from cryoeq.pipelines.screening import screen as pipeline

    explicit = {
        "run": run, "class_number": class_number, "output": output, "scorer": scorer, "symmetry": sym,
        "gap_threshold_deg": gap_threshold, "hole_deg": hole_deg, "mirrored": mirrored, "datadir": datadir,
        "device": device, "seed": seed,
    }  # fmt: skip
    notes: list[str] = []
    config = load_config(ScreenConfig, explicit=explicit, notes=notes)
    draw(chain((Note(note, "warning") for note in notes), pipeline.screen(config)))
