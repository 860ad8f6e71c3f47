"""Box and pixel size for a molecule: what the user gave, and the rest chosen so that it fits."""

import math
from dataclasses import dataclass

from cryoeq.errors import ConfigError

DEFAULT_BOX_PX = 64
DEFAULT_FILL = 0.8  # diameter of the molecule over the side of the box


@dataclass(frozen=True)
class FieldOfView:
    """The box of the images.

    Args:
        box_size_px: side in pixels, even.
        pixel_size_angstrom: side of a pixel.
    """

    box_size_px: int
    pixel_size_angstrom: float

    @property
    def side_angstrom(self) -> float:
        """Side of the box."""
        return self.box_size_px * self.pixel_size_angstrom

    @classmethod
    def around_molecule(
        cls,
        diameter_angstrom: float,
        box_size_px: int | None,
        pixel_size_angstrom: float | None,
        *,
        name: str = "the molecule",
    ) -> "FieldOfView":
        """A box that the molecule fills to 0.8, as far as box and pixel size are not given.

        Args:
            diameter_angstrom: diameter of the smallest sphere about the centre of mass that holds all atoms.
            box_size_px: side of the box; None derives it from the diameter.
            pixel_size_angstrom: pixel size; None derives it from box and diameter.
            name: what the molecule is called in messages.

        Raises:
            ConfigError: the molecule is larger than the box that was given.
        """
        if pixel_size_angstrom is None:
            box_size_px = box_size_px or DEFAULT_BOX_PX
            pixel_size_angstrom = max(0.1, math.ceil(diameter_angstrom / DEFAULT_FILL / box_size_px * 100) / 100)
        elif box_size_px is None:
            box_size_px = max(16, 2 * math.ceil(diameter_angstrom / DEFAULT_FILL / pixel_size_angstrom / 2))
        field = cls(box_size_px, pixel_size_angstrom)
        if diameter_angstrom > field.side_angstrom:
            needed = 2 * math.ceil(diameter_angstrom / DEFAULT_FILL / pixel_size_angstrom / 2)
            raise ConfigError(
                f"{name} is {diameter_angstrom:.0f} Å across, the box {field.side_angstrom:.0f} Å "
                f"({box_size_px} px of {pixel_size_angstrom:g} Å)",
                "the molecule must fit into the box",
                f"Use --box {needed}, or a larger --angpix",
            )
        return field

    @classmethod
    def from_map(cls, old: "FieldOfView", box_size_px: int | None, pixel_size_angstrom: float | None) -> "FieldOfView":
        """The box of a map, resampled over the same field of view where one of both is given.

        Args:
            old: field of view of the map.
            box_size_px: side of the new box; None derives it from the pixel size.
            pixel_size_angstrom: new pixel size; None derives it from the box.
        """
        if pixel_size_angstrom is None:
            box_size_px = box_size_px or 2 * math.ceil(old.box_size_px / 2)
            is_same_grid = box_size_px - old.box_size_px in {0, 1}
            return cls(box_size_px, old.pixel_size_angstrom if is_same_grid else old.side_angstrom / box_size_px)
        if box_size_px is None:
            box_size_px = max(16, 2 * math.ceil(old.side_angstrom / pixel_size_angstrom / 2 - 1e-6))
        return cls(box_size_px, pixel_size_angstrom)
