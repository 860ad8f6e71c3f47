"""Changes of a command line, and of settings in YAML."""

import inspect
import random
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import BaseModel

from faults.fuzzing.cases import Change, May, Mutant, Scenario, mutation, worse

_NUMBERS = (
    "0",
    "-1",
    "1",
    "2",
    "3",
    "7",
    "0.5",
    "1e-30",
    "1e30",
    "nan",
    "inf",
    "-inf",
    "x",
    "",
    "1,5",
    "99999",
    "1e9",
    "١",
)
_COUNTS = ("0", "-1", "1", "2", "3", "7", "24", "1.5", "x", "", "nan", "-5", str(2**63), str(10**30), "0x10")
_TEXTS = (
    "C0",
    "C1",
    "C2",
    "D2",
    "D0",
    "T",
    "O",
    "I",
    "I2",
    "C-1",
    "C1.5",
    "c3",
    "Z",
    "",
    "C999999999",
    "C1000000",
    "nan",
    "\udcff",
)
_PATHS = (
    "",
    ".",
    "/",
    "/dev/null",
    "nowhere/x",
    "nowhere.mrc",
    "/root/x",
    "ü.mrc",
    "-",
    "a\nb",
    "x" * 300,
    "out",
    "\udcff",
)
# Values that make no sense whatever the input is.
_IMPOSSIBLE = {
    "--angpix": ("0", "-1", "nan", "inf", "1e9", "1e-9"), "--kv": ("0", "-300", "nan", "300000"),
    "--cs": ("nan", "inf", "-2.7e6"), "--amplitude-contrast": ("nan", "-1", "7"), "--snr": ("nan", "-1"),
    "--shift-sigma": ("nan", "-1", "inf", "9999", "1e30"), "--mask-diameter": ("nan", "-5", "0"),
    "--threads": ("0", "-1"),
    "--box": ("0", "-2", "7", "3"), "--gap-threshold": ("nan", "-5", "400"), "--mtf-angpix": ("nan", "0", "-1"),
    "--defocus-min": ("nan", "inf", "20000"), "--seed": ("-1", "x"), "--low-pass": ("nan",), "--bfac": ("nan", "inf"),
    "--device": ("tpu", "", "cuda:99"), "--sym": ("C0", "Z", "C-1", "D0", ""), "--mask-edge": ("nan", "-1", "inf"),
    "--keep": ("nan", "-1", "0", "7"), "--junk-below": ("nan", "-1", "0", "7"), "--half": ("0", "3", "x"),
    "--class": ("0", "x", ","), "--balance-percentile": ("nan", "-1", "101"), "--healpix-order": ("0", "9"),
}  # fmt: skip
# They start processes or take minutes, are changed elsewhere, or are older names.
_LEFT_ALONE = {
    "--gpu",
    "--wrong-beyond",
    "--hole-deg",
    "--in-plane-symmetry",
    "--crystal",
    "--micrograph",
    "--pose-inference",
    "--output",
    "--set",
    "--config",
}
# More of these is more work, which is no fault.
_WORK = (
    "iterations",
    "epochs",
    "steps",
    "max_particles",
    "batch_size",
    "channels",
    "heads",
    "width",
    "shells",
    "seconds",
)


def change_command(chance: random.Random, mutant: Mutant) -> Mutant | None:
    """A mutant with one option more, less or of another value."""
    way = chance.choice((_option, _option, _option, _impossible, _setting, _words))
    found = way(chance, mutant)
    if found is None:
        return None
    command, kind, may, subjects = found
    return replace(
        mutant, command=command, kinds=(*mutant.kinds, f"options: {kind}"), may=worse(mutant.may, may),
        what=f"{mutant.what}; " * bool(mutant.kinds) + f"{kind} {subjects}", subjects=(*mutant.subjects, *subjects),
    )  # fmt: skip


Found = tuple[tuple[str, ...], str, May, tuple[str, ...]] | None


@dataclass(frozen=True)
class _Option:
    """An option of a command: its names, and the type of its value."""

    names: tuple[str, ...]
    kind: Any


@cache
def _options_of(command: tuple[str, ...]) -> tuple[_Option, ...]:
    import typer

    from cryoeq.cli.main import app

    program: Any = typer.main.get_command(app)
    for word in command:
        program = getattr(program, "commands", {}).get(word)
        if program is None:
            return ()
    hints = get_type_hints(inspect.unwrap(program.callback))
    options = ((each, (*each.opts, *each.secondary_opts)) for each in program.params if each.name in hints)
    return tuple(
        _Option(names, hints[each.name]) for each, names in options
        if names[0].startswith("-") and not set(names) & _LEFT_ALONE
    )  # fmt: skip


def _command_of(mutant: Mutant) -> tuple[str, ...]:
    return mutant.command[: 2 if mutant.command[0] == "lattice" else 1]


def _value(chance: random.Random, kind: Any, mutant: Mutant) -> list[str]:
    kinds = {kind, *get_args(kind)}
    if bool in kinds:
        return []
    if float in kinds or int in kinds:
        return [chance.choice(_NUMBERS if float in kinds else _COUNTS)]
    if Path in kinds:
        return [chance.choice((*_PATHS, *mutant.files))]
    literals = [word for each in (kind, *get_args(kind)) for word in get_args(each) if isinstance(word, str)]
    return [chance.choice((*literals, "x", "", "None") if literals else _TEXTS)]


def _option(chance: random.Random, mutant: Mutant) -> Found:
    if not (options := _options_of(_command_of(mutant))):
        return None
    option = chance.choice(options)
    name, value = chance.choice(option.names), _value(chance, option.kind, mutant)
    return (*mutant.command, name, *value), "an option", "any", (*option.names, *value)


def _impossible(chance: random.Random, mutant: Mutant) -> Found:
    options = _options_of(_command_of(mutant))
    known = {name: option.names for option in options for name in option.names if name in _IMPOSSIBLE}
    if not known:
        return None
    name = chance.choice(sorted(known))
    return (*mutant.command, name, chance.choice(_IMPOSSIBLE[name])), "impossible value", "broken", known[name]


def _words(chance: random.Random, mutant: Mutant) -> Found:
    words = list(mutant.command)
    at = chance.randrange(1, len(words)) if len(words) > 1 else 0
    word = words[at]
    way = chance.choice(("lost", "doubled", "spoilt", "unknown"))
    if word == "out" or word.startswith("out/") or words[at - 1] == "--set":
        return None
    if way == "lost":
        del words[at]
    elif way == "doubled":
        words.insert(at, word)
    elif way == "spoilt":
        words[at] = chance.choice((word[:-1], word + "x", word.upper(), "-", "--", ""))
    else:
        words.insert(at, chance.choice(("--no-such-option", "-Z", "--angpixx=3", "--set", "-o")))
    names = tuple(part for each in (*words, word) for part in (each, each.rpartition("/")[2]) if part)
    return tuple(words), f"a word {way}", "any", (*names, "argument", "option")


def _leaves(model: type[BaseModel], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        is_section = isinstance(kind, type) and issubclass(kind, BaseModel)
        names += _leaves(kind, f"{prefix}{name}.") if is_section else [f"{prefix}{name}"]
    return names


@cache
def _settings_of(command: str) -> tuple[str, ...]:
    from cryoeq.config.reconstruct import ReconstructConfig
    from cryoeq.config.simulate import SimulateConfig

    leaves = _leaves(ReconstructConfig if command == "reconstruct" else SimulateConfig)
    return tuple(
        name for name in leaves if name.split(".")[0] not in {"output", "pose_inference", "crystal", "micrograph"}
    )


def _yaml_value(chance: random.Random, key: str) -> Any:
    odd = (
        0,
        -1,
        1,
        2,
        3,
        7,
        1.5,
        -0.5,
        "x",
        "",
        None,
        True,
        [],
        {},
        [1],
        {"a": 1},
        "1",
        float("nan"),
        "C3",
        "auto",
        "~",
    )
    huge = () if any(word in key for word in _WORK) else (10**30, 1e30, float("inf"), 2**63, 10**6)
    return chance.choice((*odd, *huge))


def _setting(chance: random.Random, mutant: Mutant) -> Found:
    if mutant.command[0] not in {"reconstruct", "simulate"}:
        return None
    key = chance.choice(_settings_of(mutant.command[0]))
    value = _yaml_value(chance, key)
    text = yaml.safe_dump(value, default_flow_style=True).splitlines()[0].removesuffix("...")
    word = chance.choice(
        (f"{key}={text}", f"{key}={text}", key, f"{key}.x={text}", f"{key[:-1]}={text}", f"{key}==", f"{key}=[")
    )
    leaf = key.rpartition(".")[2]
    options = ("-", "--" + leaf.replace("_", "-"), key[:-1], str(value))
    return (*mutant.command, "--set", word), "a setting", "any", (word, leaf, "--set", *options)


@mutation("yaml", "any")
def node_changed(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    try:
        tree = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError):
        return None
    places = list(_places(tree))
    if not places:
        return None
    node, key = chance.choice(places)
    value = _yaml_value(chance, str(key))
    way = chance.choice(("changed", "changed", "lost", "renamed"))
    if way == "changed":
        node[key] = value
    elif isinstance(node, dict):
        old = node.pop(key)
        if way == "renamed":
            node[chance.choice((f"{key}x", 7, None, True, f"x.{key}", ""))] = old
    text = yaml.safe_dump(tree, sort_keys=False)
    return Change(text.encode(), f"{key}: {way} {value!r}", (str(key), str(key).replace("_", "-")))


@mutation("yaml", "harmless")
def settings_laid_out_otherwise(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    try:
        tree = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError):
        return None
    if not isinstance(tree, dict):
        return None
    keys = chance.sample(list(tree), len(tree))
    text = yaml.safe_dump(
        {key: tree[key] for key in keys}, sort_keys=False, default_flow_style=chance.choice((None, True))
    )
    return Change(chance.choice(("", "# settings\n", "---\n")).encode() + text.encode(), "the same in another layout")


def _places(tree: Any) -> Any:
    """Each (container, key) of a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from _places(value)


@mutation("json", "any")
def record_changed(chance: random.Random, content: bytes, scenario: Scenario) -> Change | None:
    import json

    try:
        tree = json.loads(content)
    except ValueError:
        return None
    places = list(_places(tree))
    if not places:
        return None
    node, key = chance.choice(places)
    if chance.random() < 0.3 and isinstance(node, dict):
        del node[key]
    else:
        node[key] = _yaml_value(chance, str(key))
    return Change(json.dumps(tree, default=str).encode(), f"{key} changed", (str(key),))
