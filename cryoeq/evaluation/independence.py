"""Checks of half maps for independence, as far as their FSC and their spectra can show it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError
from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD, FscCurves

_SAME = 0.9999
# Where there is only noise, one half and the average of both correlate by sqrt(1/2).
_MIN_WITH_AVERAGE = 0.6
_MAX_WITH_AVERAGE = 0.85
_TOLERANCE = 0.1
_MIN_SHELLS = 3  # in fewer, with a few dozen coefficients, noise correlates by chance
_MIN_ANTICORRELATION = 0.5  # mean over the shells; noise of three shells in a row that lie below -0.143 has half of it
_PASSED, _STOPPED = 0.5, 1e-4  # power of a filtered map over that of the other, relative to the shell of most
_MASKED = 0.1  # fraction of the voxels within the sphere


@dataclass(frozen=True)
class Dependence:
    """A sign that two half maps are not independent, so that their FSC says nothing on their resolution.

    Args:
        found: what was found, one clause.
        advice: what to do.
    """

    found: str
    advice: str


def are_the_same(curves: FscCurves) -> bool:
    """Whether two maps differ by no more than a factor for each shell and rounding."""
    return bool((curves.unmasked[1:] > _SAME).all())


def find_dependence(curves: FscCurves) -> Dependence | None:
    """The first sign that two half maps are not independent; None where the curves show none.

    Told apart are one map given twice, a map and its filtered copy, one half and the average or sum of both halves, and
    halves of opposite contrast.

    The average Y of two halves holds half of the noise of either half X. The noise of the other half does not correlate
    with X, so in every shell the cross power of X and Y is the power of Y (or half of it, if Y is the sum), while their
    FSC does not fall below sqrt(1/2). A full map that is filtered or sharpened escapes this check.

    Args:
        curves: unmasked curve with its spectra.

    Returns:
        The sign, or None.
    """
    return _same(curves) or _filtered_copy(curves) or _average_of_both(curves) or find_inverted_contrast(curves)


def require_independent(curves: FscCurves, *, names: str = "") -> None:
    """Refuse half maps that are not independent.

    Args:
        curves: unmasked curve with its spectra.
        names: names of both maps, for the message; empty for none.

    Raises:
        MapFileError: ``find_dependence`` found a sign of it.
    """
    if dependence := find_dependence(curves):
        expected = "Expected two maps from independent halves of the particles"
        found = f"{names}: {dependence.found}" if names else dependence.found
        raise MapFileError(found, expected, dependence.advice)


def find_inverted_contrast(curves: FscCurves) -> Dependence | None:
    """Whether two maps anticorrelate at low resolution, as they do where the contrast of one is inverted.

    Args:
        curves: unmasked curve.

    Returns:
        The sign, with the shells concerned; None where the maps do not anticorrelate.
    """
    below = curves.unmasked[1:] <= -HALF_MAP_THRESHOLD
    first = 1 if bool(below[0]) else 2  # the first shell also holds what masks and backgrounds differ by
    is_above = (~below[first - 1 :]).nonzero()
    last = first - 1 + (int(is_above[0]) if len(is_above) else len(below) - first + 1)
    mean = float(curves.unmasked[first : last + 1].mean()) if last - first + 1 >= _MIN_SHELLS else 0.0
    if mean > -_MIN_ANTICORRELATION:
        return None
    side = curves.box_size_px * curves.pixel_size_angstrom
    return Dependence(
        f"the maps anticorrelate: their FSC is {mean:.2f} on average from {side / first:.1f} to {side / last:.1f} Å, "
        "as where the contrast of one is inverted",
        "Multiply one of them by -1, for example with relion_image_handler --multiply_constant -1, and check how both "
        "were made",
    )


def reaches_nyquist(curves: FscCurves) -> bool:
    """Whether the correlation stays above 0.143 in every shell, so that noise does not limit the resolution."""
    return float(curves.unmasked[1:].min()) >= HALF_MAP_THRESHOLD


def is_masked(volume: Volume) -> bool:
    """Whether a map was multiplied by a mask: more than a tenth of the voxels within the box's sphere are exactly 0.

    Args:
        volume: a map.

    Returns:
        True where it was. What a program leaves in the corners of the box does not count.
    """
    n = volume.box_size_px
    squared = (torch.arange(n, device=volume.values.device) - n // 2).square()
    limit = (0.45 * n) ** 2
    zeros = inside = 0
    for plane, height in zip(volume.values, squared.tolist(), strict=True):
        disk = squared[:, None] + squared + height < limit
        inside, zeros = inside + int(disk.sum()), zeros + int((disk & (plane == 0)).sum())
    return zeros > _MASKED * inside


def _same(curves: FscCurves) -> Dependence | None:
    if not are_the_same(curves):
        return None
    lowest = float(curves.unmasked[1:].min())
    found = f"the two maps are the same map: their FSC is at least {lowest:.6f} in every shell"
    return Dependence(found, "Check which files were given")


def _filtered_copy(curves: FscCurves) -> Dependence | None:
    """One map is the other after a low-pass filter: they agree in every shell that the filter let pass."""
    if curves.spectra is None:
        return None
    is_same = curves.unmasked[1:] > _SAME
    first, second = curves.spectra.power_first[1:], curves.spectra.power_second[1:]
    for number, power, other in (("first", first, second), ("second", second, first)):
        passed = power / other.clamp(min=torch.finfo(other.dtype).tiny)
        passed /= passed.max()
        shells = (passed > _PASSED).nonzero().squeeze(1)[:-1]  # the filter's edge may lie in the last
        if len(shells) >= _MIN_SHELLS and bool(is_same[shells].all()) and float(passed[-1]) < _STOPPED:
            limit = curves.box_size_px * curves.pixel_size_angstrom / (int(shells[-1]) + 1)
            found = (
                f"the {number} map is a filtered copy of the other: their FSC is 1 up to {limit:.1f} Å, beyond which "
            )
            return Dependence(f"{found}it has no power", "Give the half maps as they were reconstructed")
    return None


def _average_of_both(curves: FscCurves) -> Dependence | None:
    lowest = float(curves.unmasked[1:].min())
    if curves.spectra is None or not _MIN_WITH_AVERAGE < lowest < _MAX_WITH_AVERAGE:
        return None
    powers = (curves.spectra.power_first, curves.spectra.power_second)
    for number, power in zip(("second", "first"), reversed(powers), strict=True):
        if _is_contained(curves.spectra.cross[1:], power[1:]):
            return Dependence(
                f"the {number} map is the average or sum of both halves, the other is one of them: the FSC falls to "
                f"{lowest:.2f} and no further, and their cross power is the power of the {number} map",
                "Give the other half map instead",
            )
    return None


def _is_contained(cross: Float[Tensor, " shells"], power: Float[Tensor, " shells"]) -> bool:
    ratio = cross / power.clamp(min=torch.finfo(power.dtype).tiny)
    return any(bool(((ratio / expected - 1).abs() < _TOLERANCE).all()) for expected in (1.0, 0.5))
