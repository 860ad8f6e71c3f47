"""Help pages: whole, in panels, on 80 columns, with choices and with examples that parse."""

import re
import shlex
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import typer

from cryoeq.cli.main import app, normalise, run
from cryoeq.cli.options import PANELS
from cryoeq.config import loading
from cryoeq.config.demo import DemoConfig
from cryoeq.config.evaluate import EvaluateConfig
from cryoeq.config.frozen import FrozenConfig
from cryoeq.config.fsc import FscConfig
from cryoeq.config.infer import InferConfig
from cryoeq.config.lattice import FindConfig, ReduceConfig
from cryoeq.config.map_symmetry import SymmetryConfig
from cryoeq.config.orientations import OrientationsConfig
from cryoeq.config.reconstruct import ReconstructConfig, RefinementConfig
from cryoeq.config.report import ReportConfig
from cryoeq.config.screen import ScreenConfig
from cryoeq.config.select import SelectConfig
from cryoeq.config.simulate import SimulateConfig

KINDS: dict[str, type[FrozenConfig]] = {
    "demo": DemoConfig, "evaluate x y": EvaluateConfig, "fsc x": FscConfig, "infer x y": InferConfig,
    "lattice find x": FindConfig, "lattice reduce": ReduceConfig, "orientations x": OrientationsConfig,
    "reconstruct x": ReconstructConfig, "refine x": RefinementConfig, "report x": ReportConfig,
    "screen x": ScreenConfig, "select x": SelectConfig, "simulate x": SimulateConfig, "symmetry x": SymmetryConfig,
}  # fmt: skip
WIDTH = 80


def commands(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """All commands by their full names, groups included."""
    for name, command in group.commands.items():
        yield above + name, command
        if hasattr(command, "commands"):
            yield from commands(command, f"{above}{name} ")


PROGRAM: Any = typer.main.get_command(app)
COMMANDS = dict(commands(PROGRAM))
each_command = pytest.mark.parametrize("name", COMMANDS)
each_kind = pytest.mark.parametrize("words", KINDS)


def command_of(words: str) -> Any:
    return next(COMMANDS[name] for name in sorted(COMMANDS, key=len, reverse=True) if words.startswith(name))


def names_of(command: Any) -> set[str]:
    """What can be typed for its parameters: options, and the names of arguments as the usage shows them."""
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return options | {parameter.metavar for parameter in command.params if parameter.param_type_name == "argument"}


@pytest.fixture
def page(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("COLUMNS", str(WIDTH))

    def show(name: str) -> str:
        assert run([*name.split(), "--help"]) == 0
        return capsys.readouterr().out

    return show


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_a_page_is_whole_on_80_columns(page: Any, name: str) -> None:
    text = page(name)
    assert [line for line in text.splitlines() if len(line) > WIDTH] == []
    body = text.partition("\n")[2].replace("N[,N...]", "")  # the usage has click's own dots
    assert "..." not in body
    assert "\nOptions:\n" not in text or name in {"", "lattice"}


def test_every_summary_is_one_line(page: Any) -> None:
    for group, above in (("", ""), ("lattice", "lattice ")):
        lines = {line.split()[0]: line for line in page(group).splitlines() if line.startswith("  ") and line.split()}
        for name, command in PROGRAM.commands.items() if not group else COMMANDS[group].commands.items():
            summary = command.help.partition("\n\n")[0]
            assert lines[name].endswith(summary), above + name


@each_command
def test_every_option_stands_in_a_panel(page: Any, name: str) -> None:
    command = COMMANDS[name]
    if hasattr(command, "commands"):
        return
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    assert {parameter.rich_help_panel for parameter in shown} <= set(PANELS)
    text = page(name)
    for parameter in shown:
        panel = text.partition(f"\n{parameter.rich_help_panel}:\n")[2].partition("\n\n")[0]
        typed = parameter.metavar if parameter.param_type_name == "argument" else parameter.opts[0]
        assert re.search(rf"(^|\s){re.escape(typed)}\b", panel), (typed, parameter.rich_help_panel)
        assert parameter.help[:1].isupper() or parameter.help.startswith(("auto:", "sphere:", "search:"))
        assert parameter.help.endswith(".")


@each_kind
def test_defaults_that_are_named_are_those_of_the_settings(words: str) -> None:
    fields = KINDS[words].model_fields
    for parameter in command_of(words).params:
        named = [float(number) for number in re.findall(r"\[([\d.]+)\]", getattr(parameter, "help", None) or "")]
        if named and parameter.name in fields:
            assert fields[parameter.name].default in named, parameter.name


@each_command
def test_two_examples_parse(page: Any, name: str) -> None:
    """Those of a group are of its commands."""
    examples = [line.strip() for line in page(name).partition("\nExamples:\n")[2].splitlines()]
    assert len(examples) >= 2
    for example in examples:
        words = shlex.split(example.partition(" >")[0])
        assert words[0] == "cryoeq"
        assert " ".join(words[1:]).startswith(name)
        parse(normalise(words[1:]))


def parse(words: list[str]) -> None:
    """Hand the words to their command, as the program would, without running it."""
    command, above = PROGRAM, None
    while hasattr(command, "commands"):
        above = command.context_class(command, info_name=command.name, parent=above)
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, list(words), parent=above)


def test_an_example_that_is_wrong_is_found() -> None:
    with pytest.raises(typer.BadParameter.__mro__[1]):
        parse(["reconstruct", "x.star", "--no-such-option"])


def fields(kind: type[FrozenConfig], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in kind.model_fields.items():
        yield above + name, field
        if isinstance(field.annotation, type) and issubclass(field.annotation, FrozenConfig):
            yield from fields(field.annotation, f"{above}{name}.")


def choices(annotation: object) -> list[str]:
    """Of a Literal, or of one that may be None; none where numbers are among them."""
    if any(part is int or get_origin(part) is Annotated for part in get_args(annotation)):
        return []
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in choices(part)]


@each_kind
def test_choices_of_settings_are_those_of_options(page: Any, words: str) -> None:
    command, text = command_of(words), page(words.replace(" x", "").replace(" y", ""))
    for key, field in fields(KINDS[words]):
        option = KINDS[words].option_of(key)
        if choices(field.annotation) and option in names_of(command):
            assert f"{option} [{'|'.join(choices(field.annotation))}]" in " ".join(text.split())


@each_kind
def test_messages_name_what_was_typed(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting that an option sets is named by an option of that command; what it sets by itself is the default."""
    kind, known, given = KINDS[words], names_of(command_of(words)), dict[str, object]()

    def record(kind: type[FrozenConfig], *, explicit: dict[str, object], **_: object) -> FrozenConfig:
        given.update(explicit)
        raise KeyboardInterrupt  # nothing is run

    monkeypatch.setattr(loading, "load_config", record)
    assert run(words.split()) == 130
    assert given
    assert given.keys() <= dict(fields(kind)).keys() | kind.renamed.keys()
    for key, value in given.items():
        is_its_own = value is not None and value == dict(fields(kind))[key].default
        assert is_its_own or set(kind.option_of(key).split("/")) <= known, key
    assert kind.options.keys() <= given.keys()


def test_every_command_with_settings_is_tried() -> None:
    without = {"cite", "doctor", "help", "settings", "lattice"}
    assert {command_of(words).name for words in KINDS} == {command.name for command in COMMANDS.values()} - without


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_choices(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "cryoeq reconstruct --pose-inference "
    monkeypatch.setenv("_CRYOEQ_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", "3")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    assert run([]) == 0
    shown = capsys.readouterr().out
    for choice in ("search", "hybrid", "amortized", "known"):
        assert choice in shown
