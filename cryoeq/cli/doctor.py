"""``cryoeq doctor``."""

from typing import Annotated

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    advise_encoder: Annotated[
        bool, typer.Option("--advise-encoder", help="Rank encoders by group and width before any is trained.")
    ] = False,
) -> None:
    """Show device, versions and memory, what is missing and how to get it; or which encoders generalize."""
    import json

    from cryoeq.cli.drawing import draw
    from cryoeq.pipelines import advise
    from cryoeq.pipelines.doctor import diagnose, require_usable, tell

    if advise_encoder:
        if as_json:
            typer.echo(json.dumps(advise.as_records(advise.candidates()), indent=2))
        else:
            draw(advise.tell(advise.candidates()))
        return
    diagnosis = diagnose()
    if as_json:
        typer.echo(json.dumps(diagnosis.as_dict(), indent=2))
    else:
        draw(tell(diagnosis))
    require_usable(diagnosis)
