"""Non-uniform filter: the low-pass of a bank that explains the other half map best, chosen voxel by voxel.

A map is better resolved at its core than at its flexible rim and in the solvent. Each half map is low-passed at every
cutoff of a bank; around each voxel the cutoff is best at which the filtered half maps differ least from the unfiltered
ones of the other half set::

    e(x, c) = sum_{x'} w(x - x') [(L_c A - B)^2 + (L_c B - A)^2](x')

Too low a cutoff takes signal away, too high a one keeps noise, which the other half set does not share. The chosen
cutoffs are smoothed over the same window, and between two cutoffs of the bank the filtered maps are interpolated.

Both half maps get the same cutoffs. They are told by agreement, which noise has by chance: where the correlation of
half maps of nothing but noise were to gain more than ``MAX_GAIN``, they are not used (``noise_gain``).

Punjani, Zhang and Fleet 2020, Nature Methods 17, 1214-1221 (cross-validated regularisation).
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.geometry.map_filter import filter_radially
from cryoeq.geometry.shells import fourier_shell_correlation, radius_of, shell_power

MAX_GAIN = 0.02  # of the correlation of noise
_ORDER = 8  # of the Butterworth filters
_COARSEST_ANGSTROM = 25.0  # cutoff of the solvent
_RATIO = 1.2  # of cutoffs that are neighbours in the bank
_WINDOW_WAVELENGTHS = 2.0  # standard deviation of the window, in wavelengths of the resolution
_SEED = 0


@dataclass(frozen=True)
class NonuniformHalves:
    """Half maps after the non-uniform filter.

    Args:
        halves: filtered half maps.
        cutoff_angstrom: cutoff at each voxel.
    """

    halves: HalfMaps
    cutoff_angstrom: Float[Tensor, "n n n"]


def filter_nonuniformly(halves: HalfMaps, resolution_angstrom: float) -> NonuniformHalves:
    """Low-pass half maps voxel by voxel, by cross-validation.

    Args:
        halves: unfiltered half maps.
        resolution_angstrom: resolution of the half maps, whose wavelength scales the window.
    """
    first, second = halves.first.values, halves.second.values
    n, pixel = len(first), halves.first.pixel_size_angstrom
    shells = _bank(n, pixel)
    window = _gaussian(n, _WINDOW_WAVELENGTHS * resolution_angstrom / pixel, first.device)
    choice = filter_radially(_choose(first, second, shells, window), window).clamp(0, len(shells) - 1)
    unfiltered = (first, second)
    filtered = [torch.zeros_like(half) for half in unfiltered]
    for number, shell in enumerate(shells):
        weight = (1 - (choice - number).abs()).clamp(min=0)
        gains = _butterworth(n, shell, first.device)
        passed = [weight * filter_radially(half, gains) for half in unfiltered]
        filtered = [sums + each for sums, each in zip(filtered, passed, strict=True)]
    logs = torch.tensor([math.log(shell) for shell in shells], device=first.device)
    low = choice.floor().long().clamp(max=len(shells) - 2)
    cutoff = torch.lerp(logs[low], logs[low + 1], choice - low).exp()
    halves = HalfMaps(replace(halves.first, values=filtered[0]), replace(halves.second, values=filtered[1]))
    return NonuniformHalves(halves, n * pixel / cutoff)


def noise_gain(halves: HalfMaps, resolution_angstrom: float) -> float:
    """Largest mean gain of the correlation of noise by the filter, of octaves of shells.

    The noise is white within each shell and of the power that the half maps' difference has there.

    Args:
        halves: unfiltered half maps.
        resolution_angstrom: resolution of the half maps.
    """
    first, second = halves.first.values, halves.second.values
    power = shell_power(first - second)
    generator = torch.Generator(device=first.device).manual_seed(_SEED)
    noise = []
    for half in (halves.first, halves.second):
        white = torch.randn(first.shape, generator=generator, device=first.device)
        radii = radius_of(torch.arange(3 * (len(first) // 2) ** 2 + 1, device=first.device))
        shells = radii.round().long().clamp(max=len(power) - 1)
        gains = (power / shell_power(white).clamp(min=torch.finfo(power.dtype).tiny)).sqrt()[shells]
        noise.append(Volume(filter_radially(white, gains), half.pixel_size_angstrom))
    before = fourier_shell_correlation(noise[0].values, noise[1].values)
    filtered = filter_nonuniformly(HalfMaps(*noise), resolution_angstrom).halves
    gain = fourier_shell_correlation(filtered.first.values, filtered.second.values) - before
    octaves = [gain[first : 2 * first] for first in (2**power for power in range(2, 16)) if first < len(gain)]
    return max(float(octave.mean()) for octave in octaves)


def _bank(n: int, pixel_size_angstrom: float) -> list[float]:
    """Cutoffs in cycles per box, up to Nyquist."""
    first = min(max(1.0, n * pixel_size_angstrom / _COARSEST_ANGSTROM), n / 4)
    count = 1 + math.ceil(math.log(n / 2 / first) / math.log(_RATIO))
    return [min(first * _RATIO**number, n / 2) for number in range(count)]


def _choose(
    first: Float[Tensor, "n n n"],
    second: Float[Tensor, "n n n"],
    shells: list[float],
    window: Float[Tensor, " radii"],
) -> Float[Tensor, "n n n"]:
    """Number of the best cutoff around each voxel."""
    best, least = torch.zeros_like(first), torch.full_like(first, math.inf)
    for number, shell in enumerate(shells):
        gains = _butterworth(len(first), shell, first.device)
        error = (filter_radially(first, gains) - second).square() + (filter_radially(second, gains) - first).square()
        error = filter_radially(error, window)
        best = torch.where(error < least, float(number), best)
        least = torch.minimum(error, least)
    return best


def _butterworth(n: int, shell: float, device: torch.device) -> Float[Tensor, " radii"]:
    """Gain at each squared radius: 1 / sqrt(2) at the shell."""
    radii = radius_of(torch.arange(3 * (n // 2) ** 2 + 1, device=device))
    return (1 + (radii / shell) ** (2 * _ORDER)).rsqrt()


def _gaussian(n: int, sigma_px: float, device: torch.device) -> Float[Tensor, " radii"]:
    """Transform of a normalised Gaussian window at each squared radius."""
    squared = torch.arange(3 * (n // 2) ** 2 + 1, device=device, dtype=torch.float64)
    return (-2 * squared * (math.pi * sigma_px / n) ** 2).exp()
