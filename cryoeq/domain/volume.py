"""3D density maps and half maps."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from cryoeq.errors import MapFileError


@dataclass(frozen=True)
class Volume:
    """A cubic map.

    Args:
        values: densities, axes (z, y, x), centre at voxel n // 2.
        pixel_size_angstrom: side of a voxel.
    """

    values: Float[Tensor, "n n n"]
    pixel_size_angstrom: float

    @property
    def box_size_px(self) -> int:
        """Side of the cube in voxels."""
        return self.values.shape[-1]


@dataclass(frozen=True)
class HalfMaps:
    """Two maps from disjoint halves of the particles, unfiltered and unmasked."""

    first: Volume
    second: Volume


def require_same_frame(first: Volume, second: Volume) -> None:
    """Refuse two maps that have no common grid.

    Raises:
        MapFileError: boxes or pixel sizes that differ; both values are named.
    """
    if first.box_size_px != second.box_size_px:
        raise MapFileError(
            f"the maps have boxes of {first.box_size_px} and {second.box_size_px} pixels",
            "Expected two maps of one box",
            "Crop, pad or resample one of them",
        )
    ours, theirs = first.pixel_size_angstrom, second.pixel_size_angstrom
    if not math.isclose(ours, theirs, rel_tol=1e-3):
        raise MapFileError(
            f"the maps have pixel sizes of {ours:.6g} and {theirs:.6g} Å",
            "Expected two maps of one pixel size",
            "Give the true one for both with --angpix, or resample one of them",
        )
