"""``cryoeq help``."""

import pydoc
import sys
from difflib import get_close_matches
from typing import Annotated, Any

import typer

from cryoeq.cli.options import INPUT
from cryoeq.errors import ConfigError


def help_(
    topic: Annotated[
        str | None,
        typer.Argument(metavar="TOPIC", help="Topic or command; without one they are listed.", rich_help_panel=INPUT),
    ] = None,
) -> None:
    """Show a page: conventions, files, exit codes, clusters.

    The same texts as the README files of the packages, for machines without a browser.

    Examples:
      cryoeq help
      cryoeq help conventions
    """
    from cryoeq.cli.help_topics import TOPICS, topic_text, topics_text
    from cryoeq.cli.main import app  # not above: it imports this module

    program: Any = typer.main.get_command(app)
    if topic is None:
        text = topics_text()
    elif topic in TOPICS:
        text = topic_text(topic)
    elif topic in program.commands:
        with typer.Context(program, info_name="cryoeq") as parent:
            command = program.commands[topic]
            context = typer.Context(command, info_name=topic, parent=parent, help_option_names=["-h", "--help"])
            text = command.get_help(context) + "\n"
    else:
        near = get_close_matches(topic, [*TOPICS, *program.commands], n=1)
        raise ConfigError(
            f"There is no topic {topic!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
            "",
            "`cryoeq help` lists all",
        )
    if sys.stdout.isatty():
        pydoc.pager(text)
    else:
        typer.echo(text, nl=False)
