"""Fourier shell correlation and the resolution read off it, as RELION counts and corrects them.

Shells are ROUND(|k|) over the stored half transform (x >= 0), each stored coefficient counted once. The masked curve is
corrected for the correlation that the mask itself adds: phases are randomised beyond a shell, and what still correlates
is the mask's doing. Corrected curve: Chen et al. 2013, Ultramicroscopy 135, 24-35.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError
from cryoeq.geometry.shells import fourier_shell_correlation, slabs, squared_radii

HALF_MAP_THRESHOLD: Final = 0.143
TRUTH_THRESHOLD: Final = 0.5
_RANDOMISE_BELOW = 0.8


@dataclass(frozen=True)
class FscCurves:
    """Correlation of two maps per shell; index 0 is the mean density, the last is Nyquist.

    Args:
        box_size_px: side of the maps.
        pixel_size_angstrom: of the maps.
        unmasked: of the maps as they are.
        masked: of the maps times the mask; None without a mask.
        randomised: of the masked maps after their phases were randomised from ``randomised_from_shell`` on.
        corrected: masked, less what the mask adds; None without a mask, or where no phases could be randomised.
        randomised_from_shell: first shell with an unmasked correlation below 0.8; None where there is none.
    """

    box_size_px: int
    pixel_size_angstrom: float
    unmasked: Float[Tensor, " shells"]
    masked: Float[Tensor, " shells"] | None = None
    randomised: Float[Tensor, " shells"] | None = None
    corrected: Float[Tensor, " shells"] | None = None
    randomised_from_shell: int | None = None

    def resolutions_angstrom(self, threshold: float) -> dict[str, float | None]:
        """Resolution of the unmasked, masked and corrected curves; None for a curve that is missing.

        Args:
            threshold: correlation, 0.143 between half maps, 0.5 against a truth.
        """
        curves = {"unmasked": self.unmasked, "masked": self.masked, "corrected": self.corrected}
        return {
            name: None
            if curve is None
            else resolution_angstrom(curve, threshold, self.box_size_px, self.pixel_size_angstrom)
            for name, curve in curves.items()
        }


def resolution_angstrom(
    fsc: Float[Tensor, " shells"], threshold: float, box_size_px: int, pixel_size_angstrom: float
) -> float:
    """Resolution of the last shell before the curve first drops below the threshold; infinite if shell 1 is below it.

    Args:
        fsc: one value per shell from 0; shell 0, the mean density, is not looked at.
        threshold: 0.143 between half maps, 0.5 against a truth.
        box_size_px: side of the maps.
        pixel_size_angstrom: of the maps.
    """
    below = (fsc[1:] < threshold).nonzero()
    last = int(below[0]) if len(below) else len(fsc) - 1
    return box_size_px * pixel_size_angstrom / last if last else math.inf


def compare_maps(
    first: Volume, second: Volume, mask: Volume | None = None, *, generator: torch.Generator | None = None
) -> FscCurves:
    """All curves of two maps: unmasked and, with a mask, masked and corrected.

    Args:
        first: a map.
        second: another in the same frame.
        mask: values between 0 and 1; a soft edge of 6 pixels or more keeps the correction small.
        generator: draws the random phases, needed with a mask.

    Raises:
        MapFileError: boxes or pixel sizes that differ, or a mask that does not fit.
    """
    require_same_frame(first, second)
    n, pixel_size = first.box_size_px, first.pixel_size_angstrom
    unmasked = fourier_shell_correlation(first.values, second.values)
    if mask is None:
        return FscCurves(n, pixel_size, unmasked)
    _require_mask(mask, first)
    masked = fourier_shell_correlation(first.values, second.values, mask.values)
    from_shell = _first_below(unmasked, _RANDOMISE_BELOW)
    if from_shell is None or generator is None:
        return FscCurves(n, pixel_size, unmasked, masked)
    noise = [randomise_phases(volume.values, from_shell, generator) for volume in (first, second)]
    randomised = fourier_shell_correlation(noise[0], noise[1], mask.values)
    corrected = corrected_correlation(masked, randomised, from_shell)
    return FscCurves(n, pixel_size, unmasked, masked, randomised, corrected, from_shell)


def corrected_correlation(
    masked: Float[Tensor, " shells"], randomised: Float[Tensor, " shells"], from_shell: int
) -> Float[Tensor, " shells"]:
    """The masked curve less what the mask adds: (masked - randomised) / (1 - randomised) from ``from_shell`` + 2 on.

    Two shells are left out because the mask smears signal that was not randomised into them.

    Args:
        masked: correlation of the masked maps.
        randomised: the same after phase randomisation.
        from_shell: first randomised shell.
    """
    shells = torch.arange(len(masked), device=masked.device)
    room = (1 - randomised).clamp(min=torch.finfo(masked.dtype).eps)
    return torch.where(shells >= from_shell + 2, (masked - randomised) / room, masked)


def randomise_phases(
    values: Float[Tensor, "n n n"], from_shell: int, generator: torch.Generator
) -> Float[Tensor, "n n n"]:
    """The map with random phases at |k| >= ``from_shell`` (the true radius, not the rounded one), amplitudes kept.

    Args:
        values: densities.
        from_shell: first shell to randomise, in cycles per box.
        generator: draws the phases, uniform over the circle.
    """
    n = values.shape[-1]
    transform = torch.fft.rfftn(values)
    randomised = torch.empty_like(transform)
    for start, stop in slabs(n):
        slab = transform[start:stop]
        phases = torch.rand(slab.shape, generator=generator, device=generator.device).to(values.device) * (2 * math.pi)
        far = squared_radii(n, start, stop, values.device) >= from_shell**2
        randomised[start:stop] = torch.where(far, torch.polar(slab.abs(), phases.to(slab.real.dtype)), slab)
    restored: Tensor = torch.fft.irfftn(randomised, s=values.shape)
    return restored


def require_same_frame(first: Volume, second: Volume) -> None:
    """Refuse two maps that have no common grid.

    Raises:
        MapFileError: boxes or pixel sizes that differ; both values are named.
    """
    if first.box_size_px != second.box_size_px:
        raise MapFileError(
            f"the maps have boxes of {first.box_size_px} and {second.box_size_px} pixels",
            "two maps of one box",
            "Crop, pad or resample one of them",
        )
    ours, theirs = first.pixel_size_angstrom, second.pixel_size_angstrom
    if not math.isclose(ours, theirs, rel_tol=1e-3):
        raise MapFileError(
            f"the maps have pixel sizes of {ours:.6g} and {theirs:.6g} Angstrom",
            "two maps of one pixel size",
            "Give the true one for both with --angpix, or resample one of them",
        )


def _require_mask(mask: Volume, volume: Volume) -> None:
    if mask.box_size_px != volume.box_size_px:
        raise MapFileError(
            f"the mask has a box of {mask.box_size_px} pixels, the maps have {volume.box_size_px}",
            "a mask on the grid of the maps",
            "Make the mask from one of these maps",
        )
    low, high = float(mask.values.min()), float(mask.values.max())
    if low < -1e-4 or high > 1 + 1e-4 or high <= 0:
        raise MapFileError(
            f"the mask has values from {low:.4g} to {high:.4g}",
            "values between 0 and 1, some above 0",
            "Make the mask again",
        )


def _first_below(fsc: Float[Tensor, " shells"], level: float) -> int | None:
    below = (fsc[1:] < level).nonzero()
    return int(below[0]) + 1 if len(below) else None
