"""``cryoeq report``."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a reconstruction, finished or not.")],
    *,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="HTML file [RUN/report.html].")] = None,
    datadir: Annotated[Path | None, typer.Option(help="Folder where the stacks lie now, if they were moved.")] = None,
) -> None:
    """Write report.html: verdict, map, resolution, orientations, particles, settings, in one file without network."""
    from cryoeq.cli.drawing import draw
    from cryoeq.config.loading import load_config
    from cryoeq.config.report import ReportConfig
    from cryoeq.pipelines import report as pipeline

    explicit = {"run": run, "output": output, "datadir": datadir}
    draw(pipeline.report(load_config(ReportConfig, explicit=explicit)))
