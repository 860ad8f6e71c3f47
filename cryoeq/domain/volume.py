"""Maps."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


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
