"""3D density maps and half maps."""

import math
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.errors import MapFileError

SAME_PIXEL_SIZE: Final = 5e-3  # relative


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

    def to(self, device: torch.device) -> "Volume":
        """The same map on another device."""
        return Volume(self.values.to(device), self.pixel_size_angstrom)


@dataclass(frozen=True)
class HalfMaps:
    """Two maps from disjoint halves of the particles, unfiltered and unmasked."""

    first: Volume
    second: Volume


@dataclass(frozen=True)
class MapFrame:
    """Place and sampling of a map, as its header states them.

    Args:
        name: name of the map, for messages.
        pixel_size_angstrom: side of a voxel; None where the header has none.
        corner_angstrom: coordinates (x, y, z) of the first voxel (ORIGIN, or NXSTART and its like).
    """

    name: str
    pixel_size_angstrom: float | None
    corner_angstrom: tuple[float, float, float] = (0.0, 0.0, 0.0)


def frame_differences(first: MapFrame, second: MapFrame) -> tuple[str, ...]:
    """What the headers of two maps say differently, while the maps are compared voxel by voxel; one sentence each.

    Origins count from 0.1 pixels on, pixel sizes from 0.5 %. These are doubts, no errors: many programs write an
    origin that means nothing, or a pixel size of 1.

    Args:
        first: map whose pixel size is used for both.
        second: map that is compared with it.
    """
    ours, theirs = first.pixel_size_angstrom, second.pixel_size_angstrom
    names, found = f"{first.name} and {second.name}", []
    if ours and theirs and not math.isclose(ours, theirs, rel_tol=SAME_PIXEL_SIZE):
        found.append(
            f"The pixel sizes of {names} differ: {ours:.6g} and {theirs:.6g} Å. They are compared voxel by voxel, as "
            f"if both had {ours:.6g} Å; resample one of them if their voxels are really of different sizes."
        )
    pairs = zip(first.corner_angstrom, second.corner_angstrom, strict=True)
    apart_px = [(there - here) / (ours or theirs or 1.0) for here, there in pairs]
    along = [f"{apart:.1f} px along {axis}" for axis, apart in zip("xyz", apart_px, strict=True) if abs(apart) > 0.1]
    if along:
        found.append(
            f"The origins of {names} differ by {', '.join(along)}: their headers (ORIGIN, NXSTART) put the first voxel "
            f"at {_place(first)} and {_place(second)} Å. They are compared voxel by voxel; if the density is moved as "
            "well, bring both onto one grid first."
        )
    return tuple(found)


def _place(frame: MapFrame) -> str:
    return "(" + ", ".join(f"{coordinate:.6g}" for coordinate in frame.corner_angstrom) + ")"


def require_same_frame(first: Volume, second: Volume, *, names: str = "the maps") -> None:
    """Refuse two maps that have no common grid.

    Args:
        first: a map.
        second: another map.
        names: what both are, for the message.

    Raises:
        MapFileError: boxes that differ, or pixel sizes by more than 0.5 %; both values are named.
    """
    if first.box_size_px != second.box_size_px:
        raise MapFileError(
            f"{names} have boxes of {first.box_size_px} and {second.box_size_px} pixels",
            "Expected two maps of one box",
            "Crop, pad or resample one of them",
        )
    ours, theirs = first.pixel_size_angstrom, second.pixel_size_angstrom
    if not math.isclose(ours, theirs, rel_tol=SAME_PIXEL_SIZE):
        raise MapFileError(
            f"{names} have pixel sizes of {ours:.6g} and {theirs:.6g} Å",
            "Expected two maps of one pixel size",
            "Resample one of them, or correct the pixel size that is wrong (--angpix, or its header)",
        )
