"""``cryoeq fsc --directional``: resolution in every direction."""

import math
from collections.abc import Generator
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.events import Event, Note, Report
from cryoeq.domain.volume import Volume
from cryoeq.evaluation.directional import (
    ANISOTROPIC_CFAR,
    CONE_HALF_ANGLE_DEG,
    DirectionalFsc,
    directional_fsc,
    fsc_volume,
)
from cryoeq.io.euler import view_angles_deg
from cryoeq.io.mrc import write_map
from cryoeq.outputs.directional_plots import plot_directional_curves, plot_directional_resolution

_FEW_SHELLS = 10


def directional_resolution(
    first: Volume, second: Volume, mask: Volume | None = None, folder: Path | None = None
) -> Generator[Event, None, dict[str, object]]:
    """Compare two maps by direction and write the pictures and the 3DFSC.

    Args:
        first: a half map.
        second: the other half map.
        mask: mask of both.
        folder: folder of directional_fsc.png, directional_resolution.png and 3dfsc.mrc; None writes none.

    Yields:
        A report, and warnings.

    Returns:
        The metrics, for JSON.

    Raises:
        MapFileError: maps that do not fit each other.
        OutputError: a file cannot be written.
    """
    directional = directional_fsc(first, second, mask)
    yield Report("Resolution by direction", _rows(directional))
    yield from _warnings(directional, is_masked=mask is not None)
    if folder is not None:
        plot_directional_curves(folder / "directional_fsc.png", directional)
        plot_directional_resolution(folder / "directional_resolution.png", directional)
        write_map(folder / "3dfsc.mrc", fsc_volume(directional), label="3DFSC, zero frequency in the middle")
        yield Note(f"Written to {folder}: directional_fsc.png, directional_resolution.png, 3dfsc.mrc")
    return _as_json(directional)


def _rows(directional: DirectionalFsc) -> dict[str, str]:
    resolutions = directional.resolutions_angstrom
    return {
        "Cones": f"half-angle {CONE_HALF_ANGLE_DEG:g}° about {len(resolutions) // 2} axes",
        "Best direction": f"{_angstrom(float(resolutions.min()))}, along {_direction(directional.best_axis)}",
        "Median direction": _angstrom(float(resolutions.median())),
        "Worst direction": f"{_angstrom(float(resolutions.max()))}, along {_direction(directional.worst_axis)}",
        "cFAR (area of the worst curve / best)": f"{directional.area_ratio:.3f}",
        "Sphericity at 0.5 (3DFSC)": f"{directional.sphericity:.3f}",
    }


def _angstrom(resolution: float) -> str:
    return f"{resolution:.2f} Å" if math.isfinite(resolution) else "none: below 0.143 in the first shell"


def _direction(axis: Float[Tensor, " 3"]) -> str:
    rot_deg, tilt_deg = view_angles_deg(axis[None])[0].tolist()
    return f"rot {rot_deg:.0f}°, tilt {tilt_deg:.0f}°"


def _warnings(directional: DirectionalFsc, *, is_masked: bool) -> Generator[Note, None, None]:
    if directional.area_ratio < ANISOTROPIC_CFAR:
        yield Note(
            f"cFAR {directional.area_ratio:.3f} is below {ANISOTROPIC_CFAR:g}: the resolution is anisotropic, and worst"
            f" along {_direction(directional.worst_axis)}. Too many views lie along that axis, or others are missing:"
            " see cryoeq orientations and cryoeq screen."
            + ("" if is_masked else " Noise lowers cFAR too: repeat with a mask."),
            "warning",
        )
    middle = float(directional.resolutions_angstrom.median())
    if directional.box_size_px * directional.pixel_size_angstrom / middle < _FEW_SHELLS:
        yield Note(
            f"In half of the directions fewer than {_FEW_SHELLS} shells are above 0.143, too few to compare them.",
            "warning",
        )


def _as_json(directional: DirectionalFsc) -> dict[str, object]:
    resolutions, curves = directional.resolutions_angstrom, directional.curves
    numbers = {"best": resolutions.min(), "median": resolutions.median(), "worst": resolutions.max()}
    return {
        "cone_half_angle_deg": CONE_HALF_ANGLE_DEG,
        "n_axes": len(resolutions) // 2,
        "cfar": directional.area_ratio,
        "sphericity": directional.sphericity,
        "worst_axis": directional.worst_axis.tolist(),
        "is_anisotropic": directional.area_ratio < ANISOTROPIC_CFAR,
        "resolution_angstrom": {
            name: float(value) if math.isfinite(value) else None for name, value in numbers.items()
        },
        "fsc": {
            "mean": curves.mean(0).tolist(),
            "standard_deviation": curves.std(0).tolist(),
            "lowest": curves.min(0).values.tolist(),
            "highest": curves.max(0).values.tolist(),
        },
    }
