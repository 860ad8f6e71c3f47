"""Maps that show something."""

from pathlib import Path

from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError
from cryoeq.io.mrc import LARGEST_DENSITY, read_map

_FLAT = 1e-4  # range of densities over the largest, below which rounding to single precision leaves no map
_SMALLEST = 1 / LARGEST_DENSITY


def read_density(path: Path, *, angpix: float | None = None) -> Volume:
    """Read a map, as ``read_map`` does, and refuse one that shows nothing.

    Args:
        path: an MRC file of mode 0, 1, 2, 6 or 12, plain or packed by gzip or bzip2.
        angpix: pixel size in Angstrom; overrides that of the header.

    Raises:
        MapFileError: as by ``read_map``; or all densities are equal up to rounding, or too small or too large for sums
            of their squares in single precision.
    """
    volume = read_map(path, angpix=angpix)
    low, high = (float(value) for value in volume.values.aminmax())
    largest = max(high, -low)
    if high - low <= _FLAT * largest:
        raise MapFileError(
            f"{path} is constant: its densities are from {low:.7g} to {high:.7g}",
            "cryoeq needs a density that differs from its surroundings",
            "Check how the map was made",
        )
    if largest <= _SMALLEST:
        raise MapFileError(
            f"{path}: its largest density is {largest:.3g}",
            f"cryoeq adds up squares in single precision and needs densities from {_SMALLEST:g} on",
            "Scale the map",
        )
    return volume
