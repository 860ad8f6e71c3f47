"""``cryoeq doctor``."""

from typing import Annotated

import typer

from cryoeq.cli.options import OUTPUT


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of tables.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Show devices, versions and memory, and what is missing.

    Examples:
      cryoeq doctor
      cryoeq doctor --json > doctor.json
    """
    import json

    from cryoeq.cli.drawing import draw
    from cryoeq.pipelines.doctor import diagnose, report_diagnosis, require_usable

    diagnosis = diagnose()
    if as_json:
        typer.echo(json.dumps(diagnosis.as_dict(), indent=2))
    else:
        draw(report_diagnosis(diagnosis))
    require_usable(diagnosis)
