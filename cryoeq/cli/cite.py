"""``cryoeq cite``."""

from pathlib import Path
from typing import Annotated

import typer

from cryoeq.cli.options import INPUT, OUTPUT


def cite(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN",
            help="Folder of a reconstruction or refinement; all methods without.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    *,
    bibtex: Annotated[bool, typer.Option("--bibtex", help="Print BibTeX.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """Print how to cite cryoeq and the methods that a run used.

    Examples:
      cryoeq cite map
      cryoeq cite map --bibtex > cryoeq.bib
    """
    from cryoeq.pipelines.cite import cite as text

    typer.echo(text(run, as_bibtex=bibtex), nl=False)
