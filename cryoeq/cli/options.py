"""Panels of the help pages, and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

INPUT, IMAGING, SEARCH, OUTPUT, COMPUTE, EXPERT = "Input", "Imaging", "Search", "Output", "Compute", "Expert"
SPECIMEN, CRYSTAL, MASK, SHARPENING, ANALYSIS = "Specimen", "2D crystal", "Mask", "Sharpening", "Analysis"
PANELS = (INPUT, SPECIMEN, CRYSTAL, IMAGING, SEARCH, MASK, SHARPENING, ANALYSIS, OUTPUT, COMPUTE, EXPERT)

Device = Annotated[
    str | None,
    typer.Option(metavar="[auto|cpu|cuda:N]", help="Device [auto: a GPU where there is one].", rich_help_panel=COMPUTE),
]
Seed = Annotated[int | None, typer.Option(help="Random seed [0].", rich_help_panel=EXPERT)]
Datadir = Annotated[
    Path | None,
    typer.Option(help="Folder that image names are relative to [that of the star file].", rich_help_panel=INPUT),
]
ClassNumber = Annotated[
    int | None,
    typer.Option("--class", help="Class, of a run of several, counted from 1 [all particles].", rich_help_panel=INPUT),
]
InvertData = Annotated[
    bool | None,
    typer.Option(
        "--invert-data/--uninvert-data",
        help="Invert the contrast, or keep it [decided from the images].",
        rich_help_panel=IMAGING,
    ),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="JSON file for all numbers [none].", rich_help_panel=OUTPUT)
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", help="YAML file of settings, for example config.yaml of another run.", rich_help_panel=EXPERT
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Setting without an option of its own, repeatable; `cryoeq settings` lists them.",
        rich_help_panel=EXPERT,
    ),
]


def contrast_of(invert_data: bool | None) -> str | None:
    """The setting behind ``--invert-data``; None where neither it nor ``--uninvert-data`` is given."""
    if invert_data is None:
        return None
    return "invert" if invert_data else "keep"
