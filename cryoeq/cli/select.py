"""``cryoeq select``."""

from pathlib import Path
from typing import Annotated

import typer

from cryoeq.cli.options import ANALYSIS, INPUT, OUTPUT, Seed
from cryoeq.config.choices import BetterEnd


def select(
    particles: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|STAR|CS",
            help="Folder of a run (its run_data.star), or particles: .star or .cs.",
            rich_help_panel=INPUT,
        ),
    ],
    *,
    classes: Annotated[
        str | None,
        typer.Option(
            "--class", metavar="N[,N...]", help="Keep these classes, counted from 1 [all].", rich_help_panel=ANALYSIS
        ),
    ] = None,
    half: Annotated[int | None, typer.Option(help="Keep half set 1 or 2 [both].", rich_help_panel=ANALYSIS)] = None,
    junk_below: Annotated[
        float | None,
        typer.Option(help="Keep particles that are junk with less than this probability.", rich_help_panel=ANALYSIS),
    ] = None,
    only: Annotated[
        Path | None, typer.Option(help="Keep images that this .star or .cs names.", rich_help_panel=ANALYSIS)
    ] = None,
    exclude: Annotated[
        Path | None, typer.Option(help="Leave out images that this .star or .cs names.", rich_help_panel=ANALYSIS)
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(
            help="Keep this share, the best of those that the conditions above leave, 0 to 1.",
            rich_help_panel=ANALYSIS,
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column or field for --keep [the score of cryoeq screen, else the probability of the pose].",
            rich_help_panel=ANALYSIS,
        ),
    ] = None,
    best: Annotated[
        BetterEnd | None, typer.Option(help="The end of --by that is good [known for most].", rich_help_panel=ANALYSIS)
    ] = None,
    balance_views: Annotated[
        bool | None,
        typer.Option(
            "--balance-views",
            help="Thin out, at random, the viewing directions that have most of the particles left.",
            rich_help_panel=ANALYSIS,
        ),
    ] = None,
    balance_percentile: Annotated[
        float | None,
        typer.Option(
            help="Directions with more particles than this percentile of directions are cut down to it [80].",
            rich_help_panel=ANALYSIS,
        ),
    ] = None,
    healpix_order: Annotated[
        int | None, typer.Option(help="Directions 29° (1) to 1.8° (5) apart [3: 7.3°].", rich_help_panel=ANALYSIS)
    ] = None,
    sym: Annotated[
        str | None,
        typer.Option(
            help="Point group of the particle, for views: Cn, Dn, T, O, I [that of the run, else C1].",
            rich_help_panel=ANALYSIS,
        ),
    ] = None,
    recenter: Annotated[
        bool | None,
        typer.Option(
            "--recenter",
            help="Move coordinates to the centres that were found, by whole pixels, to extract the particles again.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    micrograph_angpix: Annotated[
        float | None,
        typer.Option(
            help="Pixel size in Å of the micrographs that coordinates are counted in [that of the file].",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    invert: Annotated[
        bool | None,
        typer.Option("--invert", help="Keep all that would be left out, and nothing else.", rich_help_panel=ANALYSIS),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Star file, or .cs of a .cs; only an earlier selection is replaced [selected.star, numbered].",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    seed: Seed = None,
) -> None:
    """Choose particles: by class, junk, score, half set, view.

    All conditions must hold; rows, columns and their order stay.

    Examples:
      cryoeq select map --class 1,3 --junk-below 0.2 -o good.star
      cryoeq select map/screening/screened.star --keep 0.8 --balance-views
      cryoeq select particles.cs --exclude junk.cs -o good.cs
      cryoeq select map --recenter --micrograph-angpix 0.83 -o extract_again.star
    """
    from itertools import chain

    from cryoeq.cli.drawing import draw
    from cryoeq.config.loading import load_config
    from cryoeq.config.select import SelectConfig
    from cryoeq.domain.events import Note
    from cryoeq.pipelines import select as pipeline

    explicit = {
        "particles": particles, "output": output, "classes": None if classes is None else _numbers(classes),
        "half": half, "junk_below": junk_below, "only": only, "exclude": exclude, "keep": keep, "by": by, "best": best,
        "balance_views": balance_views, "balance_percentile": balance_percentile, "healpix_order": healpix_order,
        "symmetry": sym, "recenter": recenter, "micrograph_pixel_size_angstrom": micrograph_angpix, "invert": invert,
        "seed": seed,
    }  # fmt: skip
    notes: list[str] = []
    config = load_config(SelectConfig, explicit=explicit, notes=notes)
    draw(chain((Note(note, "warning") for note in notes), pipeline.select(config)))


def _numbers(classes: str) -> list[str]:
    return classes.replace(",", " ").split()
