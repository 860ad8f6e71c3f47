"""Typer's errors of usage, in the form of all other errors."""

import difflib
from typing import Any

from cryoeq.cli.option_names import ALIASES
from cryoeq.config.wording import in_words
from cryoeq.errors import CryoEqError

_LEAST_LIKENESS = 0.8  # of names, from which one may have been meant by the other


def explain_wrong_use(error: Any) -> str:
    """What was wrong, which option was probably meant, and where all are listed; a call for help is the help alone.

    Args:
        error: typer's error, which has the context of the command.
    """
    if type(error).__name__ == "NoArgsIsHelpError":
        return str(error.format_message())
    context = getattr(error, "ctx", None)
    command = "cryoeq" if context is None else context.command_path
    listing = f"`{command} --help` lists the {'commands' if command == 'cryoeq' else 'options'}"
    unknown = getattr(error, "option_name", "") if hasattr(error, "possibilities") else ""
    if unknown and context is not None:
        meant = _meant(unknown, {name for parameter in context.command.params for name in parameter.opts})
        advice = f"Did you mean {meant}? {listing}" if meant else listing
        return str(CryoEqError(f"No such option: {unknown}", "", advice))
    head, colon, expected = error.format_message().partition(": ")
    said = f"{head}{colon}{_small(in_words(expected))}"
    return str(CryoEqError(" ".join(said.split()), "", listing))


def _meant(unknown: str, options: set[str]) -> str | None:
    """The option whose name, here or in another program, is closest."""
    names = {name: name for name in options} | {name: ours for name, ours in ALIASES.items() if ours in options}
    close = difflib.get_close_matches(unknown, names, 1, _LEAST_LIKENESS)
    return names[close[0]] if close else None


def _small(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:] if sentence.startswith("Expected") else sentence
