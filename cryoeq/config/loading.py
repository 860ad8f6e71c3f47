"""From a file, ``--set`` and options to one checked configuration; and the files packed into the wheel."""

import difflib
import importlib.resources
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cryoeq.config.frozen import FrozenConfig
from cryoeq.config.wording import in_words
from cryoeq.errors import ConfigError

C = TypeVar("C", bound=FrozenConfig)

Settings = dict[str, Any]


@dataclass(frozen=True)
class _Source:
    """One layer of settings and the name under which an error message speaks of it."""

    name: str
    settings: Settings
    are_options: bool = False


def load_config(
    kind: type[C],
    *,
    record: Path | None = None,
    file: Path | None = None,
    overrides: Sequence[str] = (),
    explicit: Mapping[str, object] | None = None,
    notes: list[str] | None = None,
) -> C:
    """Build a configuration; where two layers set the same key, the later one wins.

    Args:
        kind: the configuration's class.
        record: ``job.json`` of a run that is resumed; ignored where it is none.
        file: YAML file (``--config``).
        overrides: ``key=value`` (``--set``), the key dotted, the value in YAML; win over the file.
        explicit: options that the user gave on the command line, keys dotted or nested; None means not given. They win
            over all.
        notes: gets a line for each key of the version before that was read as today's, and one for settings that were
            given and have no effect.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: an unknown key, a value out of range, a missing one, or a file that cannot be read.
    """
    sources = []
    if record is not None:
        recorded = with_current_keys(kind, recorded_settings(record) or {}, str(record))  # without notes: none typed it
        sources.append(_Source(str(record), recorded))
    if file is not None:
        sources.append(_Source(str(file), _read_yaml(file)))
    sources.extend(_Source("--set", _parse_override(override)) for override in overrides)
    sources.append(_Source("the command line", _given(explicit or {}), are_options=True))
    sources = [replace(source, settings=_with_current_keys(kind, source, notes)) for source in sources]
    merged: Settings = {}
    for source in sources:
        merged = _merge(merged, source.settings)
    try:
        config = kind.model_validate(merged)
    except ValidationError as error:
        # An unknown key may be the missing one with a letter changed, so it is told first.
        first = min(error.errors(), key=lambda details: details["type"] == "missing")
        raise _explain(first, kind, merged, sources) from error
    if notes is not None:
        notes.extend(_notes_on_unused(config, sources[1:] if record is not None else sources))
    return config


def _notes_on_unused(config: FrozenConfig, sources: Sequence[_Source]) -> Iterator[str]:
    """What was given and has no effect; of a file, which may hold all settings, what is not the default."""
    unused, given = config.unused(), dict[str, list[str]]()
    for source in sources:
        for key, value in _leaves(source.settings):
            fitting = [prefix for prefix in unused if f"{key}.".startswith(f"{prefix}.")]
            why = unused[max(fitting, key=len)] if fitting else None
            if why is not None and (source.are_options or source.name == "--set" or _differs(config, key, value)):
                name = config.option_of(key) if source.are_options else key
                given.setdefault(why, []).append(name)
    for why, names in given.items():
        yield f"Without effect, because of {why}: {', '.join(dict.fromkeys(names))}."


def _leaves(settings: Settings, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _differs(config: FrozenConfig, key: str, value: object) -> bool:
    """Whether a value is not the default of its setting."""
    *sections, name = key.split(".")
    kind: type[BaseModel] = type(config)
    for section in sections:
        kind = next(_sections(kind.model_fields[section].annotation))
    default = kind.model_fields[name].default
    return value != (list(default) if isinstance(default, tuple) else default)


def recorded_settings(record: Path) -> Settings | None:
    """The settings in the ``job.json`` of a run; None where it is missing or of another program."""
    try:
        settings = json.loads(record.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return settings if isinstance(settings, dict) else None


def packaged_file(name: str) -> Path:
    """A file or folder that is packed with cryoeq.

    An installed wheel holds ``configs`` and ``data_samples`` inside the package, a checkout beside it.

    Args:
        name: path with forward slashes, for example ``data_samples/1wcm_ca.pdb.gz``.

    Returns:
        Where it lies on this machine.

    Raises:
        ConfigError: the installation does not have it.
    """
    package = Path(str(importlib.resources.files("cryoeq")))
    in_wheel, in_checkout = package / name, package.parent / name
    if in_wheel.exists():
        return in_wheel
    if in_checkout.exists() and (package.parent / "pyproject.toml").is_file():
        return in_checkout
    raise ConfigError(f"{name} is missing from this installation of cryoeq ({package})", "", "Install cryoeq again")


def with_current_keys(
    kind: type[FrozenConfig], settings: Settings, origin: str, *, is_finished: bool = False
) -> Settings:
    """Recorded settings under today's keys.

    Args:
        kind: the configuration's class.
        settings: nested, as ``job.json`` and checkpoints hold them; also those of the version before.
        origin: where they were read, for messages.
        is_finished: whether the record is only read: a setting that is gone is left out, not refused.

    Raises:
        ConfigError: they ask for something that is gone.
    """
    if is_finished:
        for key in kind.removed:
            if _holds(settings, key.split(".")) and not isinstance(_value(settings, key), dict):
                settings = _without(settings, key)
    return _with_current_keys(kind, _Source(origin, settings), None)


def _with_current_keys(kind: type[FrozenConfig], source: _Source, notes: list[str] | None) -> Settings:
    settings = source.settings
    for old, new in kind.renamed.items():
        if _holds(settings, old.split(".")) and not isinstance(value := _value(settings, old), dict):
            settings = _merge(_nest({new: value}), _without(settings, old))
            if notes is not None:
                said, now = (kind.option_of(old), kind.option_of(new)) if source.are_options else (old, new)
                origin = "" if source.are_options else f"{source.name}: "
                notes.append(f"{origin}{said} is now called {now}; the old name is read for one more version.")
    for old, gone in kind.removed.items():
        if _holds(settings, old.split(".")) and not isinstance(value := _value(settings, old), dict):
            if value != gone.neutral:
                raise ConfigError(f"{source.name}: {old} is no longer a setting", gone.reason, "Leave it out")
            settings = _without(settings, old)
    return settings


def _value(settings: Settings, key: str) -> object:
    inner: object = settings
    for part in key.split("."):
        inner = inner[part] if isinstance(inner, dict) else {}
    return inner


def _without(settings: Settings, key: str) -> Settings:
    head, _, rest = key.partition(".")
    if not rest:
        return {name: value for name, value in settings.items() if name != head}
    return settings | {head: _without(settings[head], rest)}


def _read_yaml(path: Path) -> Settings:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror})", "--config needs a YAML file", "Check the path"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is not YAML: {_one_line(error)}", "", "Check the indentation and the colons"
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{path} holds {type(content).__name__}", "cryoeq expects lines of the form key: value", "")
    return _nest(content)


def _parse_override(override: str) -> Settings:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}", "cryoeq expects --set key=value", "For example --set encoder.group=so2")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML", "", "Put it in quotes") from error
    return _nest({key.strip(): parsed})


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _given(explicit: Mapping[str, object]) -> Settings:
    return _nest({key: value for key, value in explicit.items() if value is not None})


def _nest(settings: Mapping[Any, object]) -> Settings:
    """``{"encoder.group": "d4"}`` becomes ``{"encoder": {"group": "d4"}}``; dashes in keys become underscores.

    Keys of YAML may be numbers, which become text.
    """
    nested: Settings = {}
    for key, value in settings.items():
        inner: object = _nest(value) if isinstance(value, dict) else value
        for part in reversed(str(key).replace("-", "_").split(".")):
            inner = {part: inner}
        if isinstance(inner, dict):
            nested = _merge(nested, inner)
    return nested


def _merge(lower: Mapping[str, object], upper: Mapping[str, object]) -> Settings:
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            merged[key] = _merge(below, value)
        elif below is None or not isinstance(value, dict):
            merged[key] = value
        # else: a plain value where a section belongs, which stays, so that it is reported and not lost
    return merged


def _explain(
    first: ErrorDetails, kind: type[FrozenConfig], merged: Settings, sources: Sequence[_Source]
) -> ConfigError:
    """The first thing that is wrong, in the user's words."""
    location = _location(first["loc"], merged)
    path = ".".join(location) or kind.__name__
    origin = next((source for source in reversed(sources) if _holds(source.settings, location)), None)
    if first["type"] == "missing":
        return ConfigError(f"No {path} given", "", f"Usage: {kind.usage}" if kind.usage else f"Add --set {path}=...")
    if not location:
        return ConfigError(_expectation(first), "", "")
    name = origin.name if origin else "the settings"
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{name}: {path} is not a setting", *_closest(path, kind))
    if origin is not None and origin.are_options:
        return ConfigError(f"{_as_typed(kind, path)} is {_shown(first['input'])}", _expectation(first), "")
    return ConfigError(f"{name}: {path} is {first['input']!r}", _expectation(first), "")


def _as_typed(kind: type[FrozenConfig], path: str) -> str:
    """The option behind a setting, or behind the tuple that one of its values belongs to."""
    whole = path.rpartition(".")[0] if path.rpartition(".")[2].isdecimal() else path
    return kind.option_of(whole)


def _shown(value: object) -> str:
    return str(value) if isinstance(value, Path) else repr(value)


def _location(parts: Sequence[int | str], merged: Settings) -> tuple[str, ...]:
    """The path of the wrong key as the user wrote it: pydantic adds the tag of the chosen kind of section or value."""
    location: list[str] = []
    inner: object = merged
    for part in parts:
        is_tag = isinstance(inner, dict) and part not in inner and part != parts[-1]
        is_tag |= isinstance(inner, str | int | float)
        if not is_tag:
            location.append(str(part))
            inner = inner.get(part) if isinstance(inner, dict) else None
    return tuple(location)


def _expectation(details: ErrorDetails) -> str:
    return in_words(details["msg"])


def _holds(settings: Settings, location: Sequence[str]) -> bool:
    """Whether a layer set this key, or a section above it to something that is no section."""
    inner: object = settings
    for part in location:
        if not isinstance(inner, dict):
            return True
        if part not in inner:
            return False
        inner = inner[part]
    return bool(location)


def _closest(path: str, kind: type[FrozenConfig]) -> tuple[str, str]:
    """What keys there are at this level, which one was probably meant, and where all are listed."""
    keys, (section, _, leaf) = list(_dotted_keys(kind)), path.rpartition(".")
    same_leaf = [key for key in keys if key.rpartition(".")[2] == leaf]
    close = same_leaf or difflib.get_close_matches(path, keys, n=1) or _close_leaves(leaf, keys)
    above = f"{section}." if section else ""
    siblings = dict.fromkeys(_at_level(key, above) for key in keys if key.startswith(above))
    expected = f"Settings {f'of {section}' if section else 'without a section'}: {', '.join(siblings)}"
    listing = f"`cryoeq settings{f' {section}' if section and siblings else ''}` lists them"
    return expected if siblings else "", f"Did you mean {close[0]}? {listing}" if close else listing


def _at_level(key: str, above: str) -> str:
    """A key within a section; of one further down, the section there."""
    head, dot, _ = key.removeprefix(above).partition(".")
    return f"{above}{head}{'.*' if dot else ''}"


def _close_leaves(leaf: str, keys: Sequence[str]) -> list[str]:
    leaves = {key.rpartition(".")[2]: key for key in keys}
    return [leaves[match] for match in difflib.get_close_matches(leaf, list(leaves), n=1)]


def _dotted_keys(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Keys of all settings; sections themselves are none."""
    for name, field in kind.model_fields.items():
        sections = list(_sections(field.annotation))
        if not sections:
            yield f"{prefix}{name}"
        for section in sections:
            yield from _dotted_keys(section, f"{prefix}{name}.")


def _sections(annotation: object) -> Iterator[type[BaseModel]]:
    """The models in an annotation such as ``Voxels | Implicit | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)
