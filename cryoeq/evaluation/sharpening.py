"""Post-processing of the average of two half maps: weighting by the FSC, sharpening by a B-factor, low-pass filter.

RELION's recipe: divide by the MTF, weight by sqrt(2 FSC / (1 + FSC)), fit the B-factor to the Guinier plot or take the
one given, and filter. All of these are factors of |k|, so the map is transformed once and multiplied once; the Guinier
plots follow from sums over radii. Rosenthal and Henderson 2003, J. Mol. Biol. 333, 721-745.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.mtf import MtfCurve
from cryoeq.domain.volume import Volume
from cryoeq.geometry.map_filter import filter_radially, low_pass_gains
from cryoeq.geometry.shells import amplitudes_by_radius, fold_into_shells, radius_of, transform_planes

LOG_OF_NOTHING = -99.0
"""RELION's value for the logarithm of an amplitude of zero."""
_MIN_POINTS = 3
_MIN_FSC = 1e-4


@dataclass(frozen=True)
class Sharpening:
    """Settings of the sharpening.

    Args:
        bfactor_angstrom2: B-factor, negative to sharpen, 0 for none; None fits it.
        fit_from_angstrom: lowest resolution of the fit.
        fit_to_angstrom: highest resolution of the fit; 0 for all shells with a positive weight.
        with_fsc_weighting: whether to multiply by sqrt(2 FSC / (1 + FSC)).
        low_pass_angstrom: resolution of a low-pass filter; None for none.
        mtf: MTF of the detector, to divide by.
        mtf_pixel_size_angstrom: pixel size of the micrographs; None for that of the map.
    """

    bfactor_angstrom2: float | None = None
    fit_from_angstrom: float = 10.0
    fit_to_angstrom: float = 0.0
    with_fsc_weighting: bool = True
    low_pass_angstrom: float | None = None
    mtf: MtfCurve | None = None
    mtf_pixel_size_angstrom: float | None = None


@dataclass(frozen=True)
class GuinierFit:
    """Straight line through ln(amplitude) against 1 / resolution^2.

    Args:
        slope_angstrom2: a quarter of the B-factor.
        intercept: ln(amplitude) at 1 / resolution^2 = 0.
        correlation: square of the correlation coefficient, as RELION reports it.
        n_points: number of shells.
    """

    slope_angstrom2: float
    intercept: float
    correlation: float
    n_points: int


@dataclass(frozen=True)
class GuinierPlot:
    """ln of the mean amplitude of each shell up to Nyquist, after each step.

    Args:
        inverse_square_resolution: 1 / resolution^2 of each shell, in 1/Å^2.
        original: amplitudes of the average of the half maps.
        mtf_corrected: amplitudes after division by the MTF; None without one.
        weighted: amplitudes after weighting by the FSC; None without weighting.
        sharpened: amplitudes after the B-factor; None without one.
        fit: line whose slope gave the B-factor; None where none was fitted.
        bfactor_angstrom2: B-factor that was applied; 0 for none.
    """

    inverse_square_resolution: Float[Tensor, " shells"]
    original: Float[Tensor, " shells"]
    mtf_corrected: Float[Tensor, " shells"] | None
    weighted: Float[Tensor, " shells"] | None
    sharpened: Float[Tensor, " shells"] | None
    fit: GuinierFit | None
    bfactor_angstrom2: float


def sharpen(full: Volume, fsc: Float[Tensor, " shells"], settings: Sharpening) -> tuple[Volume, GuinierPlot]:
    """Post-process a map.

    Args:
        full: average of the half maps.
        fsc: correlation of the half maps per shell.
        settings: settings of the sharpening.

    Returns:
        The map, and its amplitudes after each step.
    """
    n, pixel_size = full.box_size_px, full.pixel_size_angstrom
    sums, counts = amplitudes_by_radius(transform_planes(full.values))
    sums = sums / n**3
    radii = radius_of(torch.arange(len(sums), device=sums.device))
    frequencies = radii / (n * pixel_size)

    def log_amplitudes(gains: Float[Tensor, " radii"]) -> Float[Tensor, " shells"]:
        total, number = fold_into_shells(torch.stack([sums * gains, counts]), n)
        return torch.where(total > 0, (total / number).log(), LOG_OF_NOTHING)

    ones = torch.ones_like(sums)
    gains = ones if settings.mtf is None else _mtf_gains(settings, settings.mtf, frequencies, pixel_size)
    mtf_corrected = None if settings.mtf is None else log_amplitudes(gains)
    if settings.with_fsc_weighting:
        gains = gains * fsc_weights(fsc)[(radii + 0.5).long().clamp(max=len(fsc))]
    weighted = log_amplitudes(gains)
    inverse_square = (torch.arange(len(fsc), device=sums.device) / (n * pixel_size)).double().square()
    fit = fit_guinier(inverse_square, weighted, settings) if settings.bfactor_angstrom2 is None else None
    bfactor = 4 * fit.slope_angstrom2 if fit else settings.bfactor_angstrom2 or 0.0
    if bfactor:
        within = frequencies <= (1 + 1e-12) / (2 * pixel_size)
        gains = gains * torch.where(within, torch.exp(-bfactor / 4 * frequencies.square()), 0.0)
    plot = GuinierPlot(
        inverse_square, log_amplitudes(ones), mtf_corrected, weighted if settings.with_fsc_weighting else None,
        log_amplitudes(gains) if bfactor else None, fit, bfactor,
    )  # fmt: skip
    if settings.low_pass_angstrom is not None:
        shell = math.floor(n * pixel_size / settings.low_pass_angstrom + 0.5)
        gains = gains * low_pass_gains(n, shell, device=gains.device)
    return Volume(filter_radially(full.values, gains), pixel_size), plot


def fsc_weights(fsc: Float[Tensor, " shells"]) -> Float[Tensor, " shells_and_corners"]:
    """sqrt(2 FSC / (1 + FSC)) of each shell; 0 from the first shell without correlation on, and beyond Nyquist."""
    positive = (fsc >= _MIN_FSC).long().cumprod(0).bool()
    weights = torch.where(positive, (2 * fsc / (1 + fsc).clamp(min=_MIN_FSC)).clamp(min=0).sqrt(), 0.0)
    return torch.cat([weights, weights.new_zeros(1)])


def fit_guinier(
    inverse_square_resolution: Float[Tensor, " shells"], log_amplitudes: Float[Tensor, " shells"], settings: Sharpening
) -> GuinierFit | None:
    """Least squares line through the shells between the two resolutions; None where there are fewer than three.

    Args:
        inverse_square_resolution: 1 / resolution^2 of each shell, in 1/Å^2.
        log_amplitudes: ln(amplitude) of each shell; shells of zero amplitude are left out.
        settings: settings of the sharpening, with the limits of the fit.
    """
    highest = math.inf if settings.fit_to_angstrom <= 0 else settings.fit_to_angstrom**-2
    x, y = inverse_square_resolution, log_amplitudes
    used = (x >= settings.fit_from_angstrom**-2 * (1 - 1e-9)) & (x <= highest * (1 + 1e-9)) & (y > LOG_OF_NOTHING)
    if (count := int(used.sum())) < _MIN_POINTS:
        return None
    x, y = x[used] - x[used].mean(), y[used] - y[used].mean()
    slope = float((x * y).sum() / x.square().sum())
    intercept = float(log_amplitudes[used].mean()) - slope * float(inverse_square_resolution[used].mean())
    correlation = float((x * y).sum() ** 2 / (x.square().sum() * y.square().sum()))
    return GuinierFit(slope, intercept, correlation, count)


def _mtf_gains(
    settings: Sharpening, mtf: MtfCurve, frequencies: Float[Tensor, " radii"], pixel_size_angstrom: float
) -> Float[Tensor, " radii"]:
    """1 / MTF below Nyquist, 1 from there on."""
    per_px = frequencies * (settings.mtf_pixel_size_angstrom or pixel_size_angstrom)
    knots, values = mtf.frequencies_per_px.to(frequencies), mtf.values.to(frequencies)
    right = torch.searchsorted(knots, per_px).clamp(1, len(knots) - 1)
    fraction = ((per_px - knots[right - 1]) / (knots[right] - knots[right - 1])).clamp(0, 1)
    return torch.where(
        frequencies < 1 / (2 * pixel_size_angstrom), 1 / torch.lerp(values[right - 1], values[right], fraction), 1.0
    )
