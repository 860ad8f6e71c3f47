"""The model that all settings derive from."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, model_validator

_OUTPUTS = {"output", "json_file", "plot_file"}


class Removed(NamedTuple):
    """A setting of the version before that is gone.

    Args:
        neutral: the value that asked for nothing; files that hold it are still read.
        reason: what was measured.
    """

    neutral: Any
    reason: str


class FrozenConfig(BaseModel):
    """Settings that cannot change once they are made.

    Unknown keys are errors, defaults are checked like given values, and no number may be NaN or infinite.
    ``options`` maps dotted keys to the options of the command line where these are named otherwise; ``usage`` is a
    command with what has no default. ``renamed`` maps dotted keys of the version before to today's; ``removed`` holds
    those without a successor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
    options: ClassVar[Mapping[str, str]] = {}
    usage: ClassVar[str] = ""
    renamed: ClassVar[Mapping[str, str]] = {}
    removed: ClassVar[Mapping[str, Removed]] = {}

    @model_validator(mode="before")
    @classmethod
    def _name_the_files(cls, values: Any) -> Any:
        """An empty path would be the working directory."""
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            if value == "" and field is not None and Path in (field.annotation, *get_args(field.annotation)):
                raise ValueError(f"{name} is empty; the name of a file or folder was expected")
        return values

    @model_validator(mode="after")
    def _spare_the_input(self) -> "FrozenConfig":
        """No file of results takes the place of one that the command reads."""
        written = [path for name in _OUTPUTS & type(self).model_fields.keys() for path in _files(getattr(self, name))]
        read = [
            path for name in type(self).model_fields if name not in _OUTPUTS for path in _files(getattr(self, name))
        ]
        for path in written:
            if any(path.samefile(other) for other in read):
                raise ValueError(f"{path} would be written over, which this command reads: choose another name")
        return self

    def unused(self) -> Mapping[str, str | None]:
        """What leaves a setting without effect, for example ``{"encoder": "--pose-inference search"}``.

        Keys are dotted and name settings or sections; the longest one that fits a setting decides, and None says that
        it has an effect.
        """
        return {}

    @classmethod
    def option_of(cls, key: str) -> str:
        """The option of the command line that sets this dotted key."""
        return cls.options.get(key, f"--{key.rpartition('.')[2].replace('_', '-')}")


def _files(setting: object) -> Iterator[Path]:
    """Files that are there, among a setting or the settings of a section."""
    if isinstance(setting, BaseModel):
        for name in type(setting).model_fields:
            yield from _files(getattr(setting, name))
    elif isinstance(setting, Path) and _is_file(setting):
        yield setting


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long a name, or one with a zero byte
        return False
