"""Commands, and their help as plain text: options in panels, whole summaries, examples to be pasted."""

import re
from typing import Any

from typer.core import TyperCommand, TyperGroup

from cryoeq.errors import OutputClosed

_EXAMPLES = "\n\nExamples:\n"
_CHOICES = re.compile(r"<([^<>|]+(?:\|[^<>|]+)+)>")
_NAMES_WIDTH = 24


class Command(TyperCommand):
    """A command whose docstring ends in a section of examples."""

    def __init__(self, name: str | None, **attributes: Any) -> None:
        super().__init__(name, **_with_examples(attributes))

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            OutputClosed: its output was closed while it wrote.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise OutputClosed from error
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):  # rich leaves the program in its own way
                raise OutputClosed from end
            raise

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the panels in the order in which the command first names them."""
        _write_panels(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, unwrapped."""
        _write_examples(self.epilog or "", formatter)


class Group(TyperGroup):
    """Commands with their summaries uncut, in panels."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**_with_examples(attributes))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, then the options."""
        self.format_commands(ctx, formatter)
        _write_panels(self, ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the panels of commands."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            summary = (command.help or "").partition("\n\n")[0]
            panels.setdefault(command.rich_help_panel or "Commands", []).append((name, " ".join(summary.split())))
        width = max(len(name) for rows in panels.values() for name, _ in rows)
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl([(f"{name:<{width}}", summary) for name, summary in rows])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, unwrapped."""
        _write_examples(self.epilog or "", formatter)


def _with_examples(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes of a command, with the examples of its docstring as the end of the page."""
    help_text, _, examples = (attributes.get("help") or "").partition(_EXAMPLES)
    return attributes | {"help": help_text, "epilog": examples}


def _write_panels(command: Any, ctx: Any, formatter: Any) -> None:
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None:
            last = next(reversed(panels), "Options")  # --help, which click adds, stands last
            panel = getattr(parameter, "rich_help_panel", None) or last
            panels.setdefault(panel, []).append((_CHOICES.sub(r"[\1]", record[0]), record[1]))
    width = min(_NAMES_WIDTH, max(len(name) for rows in panels.values() for name, _ in rows))
    for panel, rows in panels.items():
        with formatter.section(panel):
            formatter.write_dl([(f"{name:<{width}}", text) for name, text in rows], col_max=width)


def _write_examples(examples: str, formatter: Any) -> None:
    if examples:
        with formatter.section("Examples"):
            for line in examples.splitlines():
                formatter.write(f"  {line.strip()}\n" if line.strip() else "\n")
