"""The pair of maps to compare, and whether their names are those of half maps."""

import re
from dataclasses import dataclass
from pathlib import Path

from cryoeq.config.fsc import FscConfig
from cryoeq.errors import ConfigError, MapFileError

# RELION's run_half1_class001_unfil.mrc, EMDB's emd_1234_half_map_1.map, cryoSPARC's J1_map_half_A.mrc, and short forms.
_NAMES = (
    re.compile(r"(half[-_]?(?:map)?[-_]?)([12AB])(?![0-9A-Za-z])", re.IGNORECASE),
    re.compile(r"([-_])([AB])(?=[-_.]|$)"),
    re.compile(r"([-_]h)([12])(?=[-_.]|$)"),
)
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
    guessed = other_half(config.first)
    if config.second is not None:
        return MapPair(config.first, config.second, guessed is not None and guessed.name == config.second.name)
    if config.with_alignment:
        raise ConfigError("--align with one map", "It moves the first map onto the second", "Give the second map")
    if guessed is None:
        raise ConfigError(
            f"{config.first.name}: the name of the other half map cannot be derived from it",
            "Names with half1, half_map_1, half_A, _A or _h1 can",
            "Give the other half map as the second argument",
        )
    if not guessed.is_file():
        raise MapFileError(
            f"{guessed} does not exist",
            f"It was expected as the other half of {config.first.name}",
            "Give the other half map as the second argument",
        )
    return MapPair(config.first, guessed, are_halves=True)


def other_half(path: Path) -> Path | None:
    """Path of the other half map: 1 for 2, A for B; None where the name is not that of a half map."""
    for pattern in _NAMES:
        if found := list(pattern.finditer(path.name)):
            start, end = found[-1].span(2)
            return path.with_name(path.name[:start] + path.name[start:end].translate(_OTHER) + path.name[end:])
    return None
