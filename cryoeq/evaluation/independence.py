"""Check of half maps for independence, as far as their FSC can show it."""

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.errors import MapFileError
from cryoeq.evaluation.resolution import FscCurves

_SAME = 0.9999
# Where there is only noise, one half and the average of both correlate by sqrt(1/2).
_MIN_WITH_AVERAGE = 0.6
_MAX_WITH_AVERAGE = 0.85
_TOLERANCE = 0.1


def are_the_same(curves: FscCurves) -> bool:
    """Whether two maps differ by no more than a factor and rounding."""
    return bool((curves.unmasked[1:] > _SAME).all())


def require_independent(curves: FscCurves) -> None:
    """Refuse one map given twice, and a half map given with the average or the sum of both halves.

    The average Y of two halves holds half of the noise of either half X. The noise of the other half does not correlate
    with X, so in every shell the cross power of X and Y is the power of Y (or half of it, if Y is the sum), while their
    FSC does not fall below sqrt(1/2). A full map that is filtered or sharpened escapes this check.

    Args:
        curves: unmasked curve with its spectra.

    Raises:
        MapFileError: the maps are not independent.
    """
    fsc = curves.unmasked[1:]
    if are_the_same(curves):
        raise MapFileError(
            f"the two maps are the same map: their FSC is at least {float(fsc.min()):.6f} in every shell",
            "Expected two maps from independent halves of the particles",
            "Check which files were given",
        )
    if curves.spectra is None or not _MIN_WITH_AVERAGE < float(fsc.min()) < _MAX_WITH_AVERAGE:
        return
    powers = (curves.spectra.power_first, curves.spectra.power_second)
    for number, power in zip(("second", "first"), reversed(powers), strict=True):
        if _is_contained(curves.spectra.cross[1:], power[1:]):
            raise MapFileError(
                f"the {number} map is the average or sum of both halves, the other is one of them: the FSC falls to "
                f"{float(fsc.min()):.2f} and no further, and their cross power is the power of the {number} map",
                "Expected two maps from independent halves of the particles",
                "Give the other half map instead",
            )


def _is_contained(cross: Float[Tensor, " shells"], power: Float[Tensor, " shells"]) -> bool:
    ratio = cross / power.clamp(min=torch.finfo(power.dtype).tiny)
    return any(bool(((ratio / expected - 1).abs() < _TOLERANCE).all()) for expected in (1.0, 0.5))
