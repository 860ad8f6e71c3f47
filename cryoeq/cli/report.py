"""``cryoeq report``."""

from pathlib import Path
from typing import Annotated

import typer

from cryoeq.cli.options import INPUT, OUTPUT


def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Folder of a reconstruction, finished or not.", rich_help_panel=INPUT),
    ],
    *,
    datadir: Annotated[
        Path | None,
        typer.Option(help="Folder where the stacks are now, if they were moved.", rich_help_panel=INPUT),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="HTML file; that of an earlier call is replaced [RUN/report.html].",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Write the report of a run as one offline page.

    Every reconstruction ends with one; this writes it again.

    Examples:
      cryoeq report map
      cryoeq report map --datadir /data/particles -o report.html
    """
    from cryoeq.cli.drawing import draw
    from cryoeq.config.loading import load_config
    from cryoeq.config.report import ReportConfig
    from cryoeq.pipelines import report as pipeline

    explicit = {"run": run, "output": output, "datadir": datadir}
    draw(pipeline.report(load_config(ReportConfig, explicit=explicit)))
