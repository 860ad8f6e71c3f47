"""``cryoeq settings``."""

from typing import Annotated, Any

import typer

from cryoeq.cli.options import SEARCH
from cryoeq.errors import ConfigError


def settings(
    word: Annotated[
        str | None,
        typer.Argument(
            metavar="WORD",
            help="Part of a key, an option or a description: only such settings [all].",
            rich_help_panel=SEARCH,
        ),
    ] = None,
) -> None:
    """List settings with their meaning, default and range.

    They are those of reconstruct and simulate: set them by --set KEY=VALUE, or by lines of a YAML file for --config.

    Examples:
      cryoeq settings
      cryoeq settings half_sets
    """
    from cryoeq.cli.main import app  # not above: it imports this module
    from cryoeq.cli.settings_text import older_settings_text, settings_text
    from cryoeq.config.frozen import FrozenConfig
    from cryoeq.config.reconstruct import ReconstructConfig
    from cryoeq.config.simulate import SimulateConfig

    program: Any = typer.main.get_command(app)
    lines: list[str] = []
    kinds: dict[str, type[FrozenConfig]] = {"reconstruct": ReconstructConfig, "simulate": SimulateConfig}
    for name, kind in kinds.items():
        options = {option for parameter in program.commands[name].params for option in parameter.opts}
        if listed := list(settings_text(kind, options, word or "")):
            lines += ["", f"cryoeq {name} --set KEY=VALUE, the defaults shown:", *listed]
    lines += [line for kind in kinds.values() for line in older_settings_text(kind, word or "")]
    if not lines:
        raise ConfigError(f"No setting has {word!r} in its name or description", "", "`cryoeq settings` lists all")
    typer.echo("\n".join(lines).lstrip("\n"))
