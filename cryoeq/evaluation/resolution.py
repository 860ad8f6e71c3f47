"""Fourier shell correlation and resolution, with RELION's shells and correction.

Shells are ROUND(|k|) over the stored half transform (x >= 0), each stored coefficient counted once. The masked curve is
corrected for the correlation of the mask itself, which is measured after phases are randomised beyond a shell: Chen et
al. 2013, Ultramicroscopy 135, 24-35.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoeq.domain.volume import Volume, require_same_frame
from cryoeq.errors import MapFileError
from cryoeq.geometry.map_filter import Change, filter_and_mask, filter_map
from cryoeq.geometry.shells import ShellSpectra, fourier_shell_correlation, shell_spectra, transform_planes

HALF_MAP_THRESHOLD: Final = 0.143
TRUTH_THRESHOLD: Final = 0.5
_RANDOMISE_BELOW = 0.8
_SPHERE_IN_BOX = 0.476  # RELION's value for the fraction of the box in a sphere


@dataclass(frozen=True)
class FscCurves:
    """Correlation of two maps per shell; index 0 is the mean density, the last is Nyquist.

    Args:
        box_size_px: side of the maps.
        pixel_size_angstrom: pixel size of the maps.
        unmasked: correlation without a mask.
        masked: correlation under the mask; None without a mask.
        randomised: correlation under the mask after phases are randomised from ``randomised_from_shell`` on.
        corrected: masked correlation, corrected for the mask; None without a mask, or without randomised phases.
        randomised_from_shell: first shell with an unmasked correlation below 0.8; None where there is none.
        solvent_fraction: volume of the sphere inscribed in the box over that of the mask; None without a mask.
        spectra: sums of the unmasked curve.
    """

    box_size_px: int
    pixel_size_angstrom: float
    unmasked: Float[Tensor, " shells"]
    masked: Float[Tensor, " shells"] | None = None
    randomised: Float[Tensor, " shells"] | None = None
    corrected: Float[Tensor, " shells"] | None = None
    randomised_from_shell: int | None = None
    solvent_fraction: float | None = None
    spectra: ShellSpectra | None = None

    @property
    def final(self) -> Float[Tensor, " shells"]:
        """The corrected curve, but the unmasked one where its resolution is better.

        A mask that makes the resolution worse does not fit; RELION leaves it out, too.
        """
        corrected = self.masked if self.corrected is None else self.corrected
        if corrected is None or _last_shell(self.unmasked) > _last_shell(corrected):
            return self.unmasked
        return corrected

    @property
    def final_resolution_angstrom(self) -> float:
        """Resolution of the final curve at 0.143; infinite where its first shell is below."""
        return resolution_angstrom(self.final, HALF_MAP_THRESHOLD, self.box_size_px, self.pixel_size_angstrom)

    @property
    def particle_fraction(self) -> Float[Tensor, " shells"] | None:
        """Unmasked curve F corrected for the solvent in the box: f F / (1 + (f - 1) F), f the solvent fraction.

        RELION's ``rlnFourierShellCorrelationParticleMaskFraction``, after cisTEM: Grant et al. 2018, eLife 7, e35383.
        """
        if self.solvent_fraction is None:
            return None
        return self.solvent_fraction * self.unmasked / (1 + (self.solvent_fraction - 1) * self.unmasked)

    def resolutions_angstrom(self, threshold: float) -> dict[str, float | None]:
        """Resolution of the unmasked, masked and corrected curves; None for a missing curve.

        Args:
            threshold: correlation: 0.143 between half maps, 0.5 between whole maps.
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
        fsc: correlation per shell; shell 0, the mean density, is ignored.
        threshold: correlation: 0.143 between half maps, 0.5 between whole maps.
        box_size_px: side of the maps.
        pixel_size_angstrom: pixel size of the maps.
    """
    last = _last_shell(fsc, threshold)
    return box_size_px * pixel_size_angstrom / last if last else math.inf


def compare_maps(
    first: Volume, second: Volume, mask: Volume | None = None, *, generator: torch.Generator | None = None
) -> FscCurves:
    """All curves of two maps: unmasked and, with a mask, masked and corrected.

    Args:
        first: a map.
        second: another map in the same frame.
        mask: mask with values between 0 and 1; a soft edge of 6 pixels or more keeps the correction small.
        generator: random number generator of the phases, needed with a mask.

    Raises:
        MapFileError: boxes or pixel sizes that differ, or a mask that does not fit.
    """
    require_same_frame(first, second)
    spectra = shell_spectra(transform_planes(first.values), transform_planes(second.values))
    curves = FscCurves(first.box_size_px, first.pixel_size_angstrom, spectra.correlation, spectra=spectra)
    return curves if mask is None else add_mask(curves, first, second, mask, generator)


def add_mask(
    curves: FscCurves, first: Volume, second: Volume, mask: Volume, generator: torch.Generator | None
) -> FscCurves:
    """The curves of two maps, with those under a mask.

    Args:
        curves: unmasked curve of these maps.
        first: a map.
        second: another map in the same frame.
        mask: mask with values between 0 and 1.
        generator: random number generator of the phases; None for no correction.

    Raises:
        MapFileError: a mask that does not fit.
    """
    require_mask(mask, first)
    curves = replace(
        curves,
        masked=fourier_shell_correlation(first.values, second.values, mask.values),
        solvent_fraction=_SPHERE_IN_BOX / float((mask.values > 0.5).double().mean()),
    )
    from_shell = _first_below(curves.unmasked, _RANDOMISE_BELOW)
    if curves.masked is None or from_shell is None or generator is None:
        return curves
    change = _random_phases(from_shell, generator)
    planes = [filter_and_mask(volume.values, change, mask.values) for volume in (first, second)]
    randomised = shell_spectra(*planes).correlation
    corrected = corrected_correlation(curves.masked, randomised, from_shell)
    return replace(curves, randomised=randomised, corrected=corrected, randomised_from_shell=from_shell)


def corrected_correlation(
    masked: Float[Tensor, " shells"], randomised: Float[Tensor, " shells"], from_shell: int
) -> Float[Tensor, " shells"]:
    """Masked curve, corrected for the mask from ``from_shell`` + 2 on: (masked - randomised) / (1 - randomised).

    Two shells are left out because the mask smears signal that is not randomised into them.

    Args:
        masked: correlation of the masked maps.
        randomised: correlation of the masked maps after phase randomisation.
        from_shell: first randomised shell.
    """
    shells = torch.arange(len(masked), device=masked.device)
    remainder = (1 - randomised).clamp(min=torch.finfo(masked.dtype).eps)
    return torch.where(shells >= from_shell + 2, (masked - randomised) / remainder, masked)


def randomise_phases(
    values: Float[Tensor, "n n n"], from_shell: int, generator: torch.Generator
) -> Float[Tensor, "n n n"]:
    """Map with random phases at |k| >= ``from_shell`` (the true radius, not the rounded one), amplitudes kept.

    Args:
        values: the map.
        from_shell: first shell to randomise, in cycles per box.
        generator: random number generator of the phases, uniform over the circle.
    """
    return filter_map(values, _random_phases(from_shell, generator))


def require_mask(mask: Volume, volume: Volume, *, name: str = "the mask") -> None:
    """Refuse a mask that does not fit a map.

    Args:
        mask: the mask.
        volume: map that the mask is laid over.
        name: name of the mask, for messages.

    Raises:
        MapFileError: a box of another size, values outside 0 to 1, or nothing but zeros.
    """
    if mask.box_size_px != volume.box_size_px:
        raise MapFileError(
            f"{name} has a box of {mask.box_size_px} pixels, the maps have {volume.box_size_px}",
            "Expected a mask on the grid of the maps",
            "Make the mask from one of these maps",
        )
    low, high = float(mask.values.min()), float(mask.values.max())
    if high <= 0.5 and low >= -1e-4:
        raise MapFileError(
            f"{name} is empty: its largest value is {high:.4g}",
            "Expected values up to 1 in the particle",
            "Make the mask again",
        )
    if low < -1e-4 or high > 1 + 1e-4:
        raise MapFileError(
            f"{name} has values from {low:.4g} to {high:.4g}",
            "Expected values between 0 and 1",
            "Make the mask again",
        )


def _random_phases(from_shell: int, generator: torch.Generator) -> Change:
    def change(rows: Complex[Tensor, "n rows half"], squared: Int[Tensor, "n rows half"]) -> Tensor:
        uniform = torch.rand(rows.shape, generator=generator, device=generator.device).to(rows.real)
        angles = uniform.mul_(2 * math.pi).mul_(squared >= from_shell**2)
        return rows * torch.polar(angles.new_ones(()), angles)

    return change


def _first_below(fsc: Float[Tensor, " shells"], level: float) -> int | None:
    below = (fsc[1:] < level).nonzero()
    return int(below[0]) + 1 if len(below) else None


def _last_shell(fsc: Float[Tensor, " shells"], threshold: float = HALF_MAP_THRESHOLD) -> int:
    """The last shell before the first drop below the threshold; 0 if shell 1 is below it."""
    first_below = _first_below(fsc, threshold)
    return len(fsc) - 1 if first_below is None else first_below - 1


def crossing_shells(curves: Float[Tensor, "curves shells"], threshold: float) -> Float[Tensor, " curves"]:
    """Shell at which each curve first drops below a threshold, interpolated linearly.

    Args:
        curves: correlation per shell; shell 0, the mean density, is ignored.
        threshold: correlation.

    Returns:
        The crossing in shells; 0 where shell 1 is below, the last shell where none is.
    """
    is_below, last = curves[:, 1:] < threshold, curves.shape[1] - 1
    below = torch.where(is_below.any(1), is_below.int().argmax(1) + 1, last)
    after, before = (curves.gather(1, shell[:, None]).squeeze(1) for shell in (below, below - 1))
    fraction = ((before - threshold) / (before - after).clamp(min=1e-9)).clamp(0, 1)
    crossing = torch.where(below > 1, below - 1 + fraction, 0.0)
    return torch.where(is_below.any(1), crossing, float(last))
