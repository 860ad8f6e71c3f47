"""``cryoeq doctor``."""

from typing import Annotated

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show device, versions and memory, what is missing and how to get it."""
    import json

    from cryoeq.cli.drawing import draw
    from cryoeq.pipelines.doctor import diagnose, report_diagnosis, require_usable

    diagnosis = diagnose()
    if as_json:
        typer.echo(json.dumps(diagnosis.as_dict(), indent=2))
    else:
        draw(report_diagnosis(diagnosis))
    require_usable(diagnosis)
