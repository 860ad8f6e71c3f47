"""What follows from the diameter of the particle: the mask of a search and its offsets.

The circle outside of which an image is background follows from it in ``data.preprocessing``.
"""

from collections.abc import Iterator

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.events import Note

_DEFAULT_SHIFT, _SHIFT_OF_DIAMETER = 0.05, 0.06  # of the box, of the particle's diameter
_MASKED = {"search", "hybrid", "refine"}  # modes that mask their references
_CUT = 0.97  # diameter of the map over that of the mask, above which the mask may have cut it


def mask_radius(config: ReconstructConfig, side_angstrom: float) -> float:
    """Radius of the spherical mask of a search, as a fraction of the box.

    Args:
        config: the settings.
        side_angstrom: side of the box.
    """
    diameter = config.input.particle_diameter_angstrom
    return config.search.mask_radius if diameter is None else diameter / 2 / side_angstrom


def shift_sigma_px(config: ReconstructConfig, box_size_px: int, pixel_size_angstrom: float) -> float:
    """Standard deviation of the offsets per axis, in pixels of the working box; 0 for centred particles.

    Args:
        config: the settings.
        box_size_px: side of the working box.
        pixel_size_angstrom: size of its pixels.
    """
    sigma_angstrom, diameter = config.input.shift_sigma_angstrom, config.input.particle_diameter_angstrom
    if sigma_angstrom is not None:
        return sigma_angstrom / pixel_size_angstrom
    return _DEFAULT_SHIFT * box_size_px if diameter is None else _SHIFT_OF_DIAMETER * diameter / pixel_size_angstrom


def diameter_notes(config: ReconstructConfig, side_angstrom: float) -> Iterator[Note]:
    """The diameter that a search assumes, and where it is from.

    Args:
        config: the settings.
        side_angstrom: side of the box.
    """
    diameter = config.input.particle_diameter_angstrom
    if diameter is not None:
        yield Note(f"Particle diameter: {diameter:g} Å, as given.")
    elif config.pose_inference in _MASKED:
        radius = mask_radius(config, side_angstrom)
        yield Note(
            f"Particle diameter: {2 * radius * side_angstrom:.0f} Å at most, {2 * radius:g} of the box; "
            "give it with --particle-diameter."
        )


def cut_notes(config: ReconstructConfig, diameter_angstrom: float | None, side_angstrom: float) -> Iterator[Note]:
    """A warning where the mask of the search may have cut the particle.

    Args:
        config: the settings.
        diameter_angstrom: diameter of the map; None where it is unknown.
        side_angstrom: side of the box.
    """
    if diameter_angstrom is None or config.pose_inference not in _MASKED:
        return
    of_mask = 2 * mask_radius(config, side_angstrom) * side_angstrom
    if diameter_angstrom > _CUT * of_mask:
        yield Note(
            f"The map is {diameter_angstrom:.0f} Å wide, as wide as the mask of the search, {of_mask:.0f} Å, which may "
            "have cut the particle. Run again with a larger --particle-diameter, or extract the particles in a larger "
            "box.",
            "warning",
        )
