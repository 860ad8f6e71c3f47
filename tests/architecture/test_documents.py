"""The documents stay short, lead somewhere, and show commands that exist."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from cryoeq.cli.main import app, normalise
from cryoeq.config.reconstruct import ReconstructConfig

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "tests" / "benchmarks"
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(path for top in ("cryoeq", "configs", "data_samples", "tests") for path in (ROOT / top).rglob("*.md")),
    ]
)
MANUALS = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]  # commands there are those of their version
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_WRONG: Any = (typer.BadParameter.__mro__[1], LookupError, ValueError)  # click's UsageError, wherever typer keeps it
_SECTIONS = "input|search|hybrid|encoder|decoder|loss|training"
_SETTING = re.compile(rf"(?:--set )?((?:{_SECTIONS})\.(?!pt$|png$)[\w.]+)(?:=.*)?")  # encoder.pt is a file

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
each_manual = pytest.mark.parametrize("path", MANUALS, ids=lambda path: str(path.relative_to(ROOT)))


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_the_readme_is_one_screen_and_a_half() -> None:
    assert len(lines_of(ROOT / "README.md")) <= 150
    assert [line for line in lines_of(ROOT / "README.md") if len(line) > 100] == []


def test_the_index_of_figures_is_an_index() -> None:
    lines = lines_of(FIGURES / "README.md")
    pages = {page.name for page in FIGURES.glob("*.md")} - {"README.md"}
    assert len(lines) <= 100
    assert pages <= set(_LINK.findall("\n".join(lines))), "every page of figures stands in the index"


@each_manual
def test_prose_is_wrapped(path: Path) -> None:
    prose = _FENCE.sub(lambda block: "\n" * block[0].count("\n"), path.read_text(encoding="utf-8"))
    long = [number for number, line in enumerate(prose.splitlines(), 1) if len(line) > 100 and not line.startswith("|")]
    assert long == [], "lines longer than 100 characters"


@each_document
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in _LINK.findall(_FENCE.sub("", path.read_text(encoding="utf-8"))):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        name, _, heading = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), target
        assert not heading or heading in _anchors(there), target


@each_manual
def test_every_test_that_is_named_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert {name for name in re.findall(r"\btests/[\w/]+\.(?:py|json)\b", text) if not (ROOT / name).exists()} == set()


def _anchors(path: Path) -> set[str]:
    """Names that GitHub gives to headings."""
    headings = (line.lstrip("#").strip().lower() for line in lines_of(path) if line.startswith("#"))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


@each_manual
def test_every_command_parses(path: Path) -> None:
    problems = []
    for number, words, is_whole in _commands(path):
        try:
            _parse(words, is_whole=is_whole)
        except _WRONG as error:
            message = error.format_message() if hasattr(error, "format_message") else str(error)
            problems.append(f"{path.name}:{number}: cryoeq {shlex.join(words)}: {message}")
    assert problems == []


@pytest.mark.parametrize(
    "path", [path for path in MANUALS if path.parent != FIGURES], ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_setting_exists(path: Path) -> None:
    """Pages of figures are left out: they name the settings of their time as well."""
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    named = {match[1] for span in _INLINE.findall(text) if (match := _SETTING.fullmatch(" ".join(span.split())))}
    assert named <= _settings(ReconstructConfig), named - _settings(ReconstructConfig)


@pytest.mark.parametrize(
    "command",
    ["recontsruct a.star", "reconstruct a.star --no-such-option", "reconstruct a.star --set nothing.here=1",
     "reconstruct a.star --seed x", "fsc a.mrc --angpix", "infer a b c", "simulate"],
)  # fmt: skip
def test_a_wrong_command_is_found(command: str) -> None:
    with pytest.raises(_WRONG):
        _parse(command.split(), is_whole=True)


def _commands(path: Path) -> Iterator[tuple[int, list[str], bool]]:
    """Line number, words after ``cryoeq``, and whether they are whole, in a block, or mentioned in a text."""
    text = path.read_text(encoding="utf-8")
    for block in _FENCE.finditer(text):
        first = text[: block.start(2)].count("\n") + 1
        body = block[2].replace("\\\n", " \x00")  # lines that continue count as lines
        for line in body.splitlines():
            for command in re.split(r"&&|;", line.replace("\x00", "")):
                words = shlex.split(command, comments=True)
                if (words := _of_cryoeq(words)) is not None:
                    yield first, words, True
            first += 1 + line.count("\x00")
    prose = _FENCE.sub(lambda block: "\n" * block[0].count("\n"), text)
    for span in _INLINE.finditer(prose):
        mention = " ".join(span[1].replace("\\|", "|").split())
        for command in re.split(r"&&|;", re.sub(r"[\[\]]|\s…", "", mention)):  # what may be left out counts too
            if (words := _of_cryoeq(shlex.split(command))) is not None:
                yield prose[: span.start()].count("\n") + 1, words, False


def _of_cryoeq(words: list[str]) -> list[str] | None:
    """What follows the program's name, also where torchrun starts it."""
    if words[:1] == ["torchrun"] and "cryoeq" in words:
        words = words[words.index("cryoeq") :]
    return words[1:] if words[:1] == ["cryoeq"] and len(words) > 1 else None


def _parse(words: list[str], *, is_whole: bool) -> None:
    """Find the command and hand it the options, as the program would, without running it."""
    command, above, words = _program(), None, normalise(words)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        above = command.context_class(command, info_name=command.name, parent=above)
        name, *words = words
        if name not in command.commands:
            raise LookupError(f"no command {name!r}")
        command = command.commands[name]
    if is_whole:
        with command.make_context(command.name, list(words), parent=above) as context:
            values = context.params
    else:
        values, rest, _ = command.make_parser(command.context_class(command, parent=above)).parse_args(list(words))
        if rest:
            raise LookupError(f"too many arguments: {rest}")
    if command.name == "reconstruct":
        name = next(parameter.name for parameter in command.params if "--set" in parameter.opts)
        unknown = {setting.partition("=")[0] for setting in values.get(name) or []} - _settings(ReconstructConfig)
        if unknown:
            raise LookupError(f"no setting {', '.join(sorted(unknown))}")


@cache
def _program() -> Any:
    return typer.main.get_command(app)


@cache
def _settings(model: type[BaseModel], above: str = "") -> set[str]:
    """Every key of the settings, sections and what they hold, with dots."""
    found = set()
    for name, field in model.model_fields.items():
        found.add(above + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= _settings(field.annotation, f"{above}{name}.")
    return found
