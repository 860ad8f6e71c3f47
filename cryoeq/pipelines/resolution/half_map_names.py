"""The pair of maps to compare, and whether their names are those of half maps."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryoeq.config.fsc import FscConfig
from cryoeq.errors import ConfigError, MapFileError
from cryoeq.io.compressed import COMPRESSION_SUFFIXES, without_compression_suffix

# RELION's run_half1_class001_unfil.mrc, EMDB's emd_1234_half_map_1.map, cryoSPARC's J1_map_half_A.mrc, and short forms.
_NAMES = (
    re.compile(r"(half[-_]?(?:map)?[-_]?)([12AB])(?![0-9A-Za-z])", re.IGNORECASE),
    re.compile(r"([-_])([AB])(?=[-_.]|$)"),
    re.compile(r"([-_]h)([12])(?=[-_.]|$)"),
)
_WHOLE = re.compile(r"(.+)_(class\d+)\.")  # RELION's run_class001.mrc
_MOST_NAMED = 8
_OTHER = str.maketrans("12ABab", "21BAba")


@dataclass(frozen=True)
class MapPair:
    """Two maps to compare.

    Args:
        first: file of one map.
        second: file of the other.
        are_halves: whether their names are those of the two half maps of one reconstruction.
    """

    first: Path
    second: Path
    are_halves: bool


def find_pair(config: FscConfig) -> MapPair:
    """The two maps, the second guessed from the name of the first where it is not given.

    Raises:
        ConfigError: it cannot be guessed.
        MapFileError: there is no such file.
    """
    require_file(config.first)
    guessed = other_half(config.first)
    if config.second is not None:
        are_halves = guessed is not None and _plain_name(guessed) == _plain_name(config.second)
        return MapPair(config.first, config.second, are_halves)
    if config.with_alignment:
        raise ConfigError("--align with one map", "It moves the first map onto the second", "Give the second map")
    if guessed is None:
        raise ConfigError(
            f"{config.first.name}: the name of the other half map cannot be derived from it",
            "Names with half1, half_map_1, half_A, _A or _h1 can",
            "Give the other half map as the second argument",
        )
    found = plain_or_packed(guessed)
    if found is None:
        raise MapFileError(
            f"{guessed} does not exist",
            f"It was expected as the other half of {config.first.name}",
            "Give the other half map as the second argument",
        )
    return MapPair(config.first, found, are_halves=True)


def require_file(path: Path) -> None:
    """Refuse a folder in place of a map; of a run, its maps are named.

    Raises:
        ConfigError: it is a folder.
    """
    if not path.is_dir():
        return
    maps = sorted(path.glob("run_half1_class*_unfil.mrc*")) or sorted(path.glob("*.mrc"))
    found = f"{path} is a folder"
    raise ConfigError(found, "Expected a map", f"Give {' or '.join(map(str, maps[:_MOST_NAMED]))}" if maps else "")


def _plain_name(path: Path) -> str:
    return without_compression_suffix(path.name)


def halves_beside(path: Path) -> tuple[Path, Path] | None:
    """The half maps of a map, found by name: its own and the other, or RELION's beside ``run_class001.mrc``.

    Args:
        path: a half map, or a map of all particles.

    Returns:
        Their files; None where the name tells none that exist.
    """
    other = other_half(path)
    if other is not None:
        found = plain_or_packed(other)
        return None if found is None else (path, found)
    whole = _WHOLE.match(path.name)
    if whole is None:
        return None
    names = (f"{whole[1]}_half{half}_{whole[2]}_unfil.mrc" for half in (1, 2))
    first, second = (plain_or_packed(path.with_name(name)) for name in names)
    return None if first is None or second is None else (first, second)


def plain_or_packed(path: Path) -> Path | None:
    """The file itself where it exists, else the same unpacked, or packed by gzip or bzip2; else None."""
    return next((each for each in _plain_and_packed(path) if each.is_file()), None)


def _plain_and_packed(path: Path) -> Iterator[Path]:
    """The file itself, then the same unpacked, or packed by gzip or bzip2."""
    yield path
    yield from (path.with_name(_plain_name(path) + suffix) for suffix in ("", *COMPRESSION_SUFFIXES))


def other_half(path: Path) -> Path | None:
    """Path of the other half map: 1 for 2, A for B; None where the name is not that of a half map."""
    for pattern in _NAMES:
        if found := list(pattern.finditer(path.name)):
            start, end = found[-1].span(2)
            return path.with_name(path.name[:start] + path.name[start:end].translate(_OTHER) + path.name[end:])
    return None
