"""Settings as lines for a terminal: key and default, then meaning, range and option."""

import shutil
import textwrap
from collections.abc import Iterator, Set

from cryoeq.config.frozen import FrozenConfig
from cryoeq.config.listing import Setting, list_settings

_WIDTH = 80


def settings_text(kind: type[FrozenConfig], options: Set[str], word: str) -> Iterator[str]:
    """Lines on the settings that a word appears in.

    Args:
        kind: the settings of a command.
        options: those of the command.
        word: part of a key, a section's title, a description or an option, in any case; empty for all.
    """
    for section in list_settings(kind):
        described = [(setting, _notes(setting, kind, options)) for setting in section.settings]
        shown = [
            (setting, notes)
            for setting, notes in described
            if word.lower() in f"{setting.key} {section.title} {notes}".lower()
        ]
        if shown:
            yield from ("", *_wrapped(section.title, ""))
        for setting, notes in shown:
            yield f"  {setting.key}={setting.default}"
            yield from _wrapped(notes, "      ")


def older_settings_text(kind: type[FrozenConfig], word: str) -> Iterator[str]:
    """Lines on settings of the version before whose name holds a word: today's name, or why they are gone.

    Args:
        kind: the settings of a command.
        word: part of a key; nothing is listed for an empty one.
    """
    if word:
        for old, new in kind.renamed.items():
            if word.lower() in old:
                yield f"{old} is now called {new}; the old name is read for one more version."
        for old, gone in kind.removed.items():
            if word.lower() in old:
                yield f"{old} is no longer a setting: {gone.reason}."


def _notes(setting: Setting, kind: type[FrozenConfig], options: Set[str]) -> str:
    option = kind.option_of(setting.key)
    names = f"; option {option}" if options & set(option.split("/")) else ""
    return f"{setting.description} [{setting.values}{names}]"


def _wrapped(text: str, indent: str) -> list[str]:
    width = min(_WIDTH, shutil.get_terminal_size().columns)
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
