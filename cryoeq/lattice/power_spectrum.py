"""Background-corrected power spectrum of a micrograph, and its peaks."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

SMALLEST_SIDE_PX = 32  # of a micrograph: less than the background is averaged over
_BACKGROUND_PX = 31  # side of the square over which the background is averaged
_CLIP = 4.0  # power over the background above which a pixel does not count towards the background
_ITERATIONS = 3
_NEIGHBOURHOOD = 5
_AXIS_PX = 1  # detectors and edges leave streaks along the axes of Fourier space


@dataclass(frozen=True)
class Spectrum:
    """Power over its local background, in which noise is exponential with mean 1.

    Args:
        excess: power over the background, zero frequency at pixel (ny // 2, nx // 2).
        usable: pixels where spots may lie: within the range of resolution, off the axes.
        pixel_size_angstrom: pixel size of the image.
    """

    excess: Float[Tensor, "ny nx"]
    usable: Bool[Tensor, "ny nx"]
    pixel_size_angstrom: float

    def cpu(self) -> "Spectrum":
        """The same on the CPU, where its few peaks are indexed."""
        return Spectrum(self.excess.cpu(), self.usable.cpu(), self.pixel_size_angstrom)

    @property
    def size_px(self) -> Float[Tensor, " 2"]:
        """(nx, ny), the factors from cycles per pixel to pixels of the transform."""
        return torch.tensor([self.excess.shape[1], self.excess.shape[0]], dtype=torch.float64)

    def pixels(self, frequencies: Float[Tensor, "*points 2"]) -> Int[Tensor, "*points 2"]:
        """Nearest (column, row) of frequencies in cycles per pixel; beyond the edge they wrap around."""
        size = self.size_px.long()
        return ((frequencies * self.size_px).round().long() + size // 2) % size

    def frequencies(self, pixels: Float[Tensor, "*points 2"]) -> Float[Tensor, "*points 2"]:
        """Frequencies in cycles per pixel at (column, row)."""
        return (pixels - (self.size_px // 2)) / self.size_px


def whiten_spectrum(
    image: Float[Tensor, "ny nx"], pixel_size_angstrom: float, *, coarsest_angstrom: float, finest_angstrom: float
) -> Spectrum:
    """Power spectrum of the image, multiplied by a Hann window, over its local background.

    Args:
        image: grey values.
        pixel_size_angstrom: pixel size of the image.
        coarsest_angstrom: low-resolution limit of usable spots.
        finest_angstrom: high-resolution limit of usable spots.
    """
    ny, nx = image.shape
    across, along = (torch.hann_window(size, device=image.device) for size in (nx, ny))
    power = _power((image - image.mean()) * (along[:, None] * across))
    x, y = centred_axes(power)
    radii = ((x / nx).square() + (y / ny).square()[:, None]).sqrt() / pixel_size_angstrom
    excess = power / local_background(power, radii)
    off_axes = (x.abs() > _AXIS_PX) & (y.abs() > _AXIS_PX)[:, None]
    in_range = (radii >= 1 / coarsest_angstrom) & (radii <= 1 / finest_angstrom)
    return Spectrum(excess, off_axes & in_range, pixel_size_angstrom)


def centred_axes(power: Float[Tensor, "ny nx"]) -> tuple[Int[Tensor, " nx"], Int[Tensor, " ny"]]:
    """Distances of columns and of rows from the zero frequency, in pixels."""
    ny, nx = power.shape
    x, y = (torch.arange(size, device=power.device) - size // 2 for size in (nx, ny))
    return x, y


def _power(image: Float[Tensor, "ny nx"]) -> Float[Tensor, "ny nx"]:
    return torch.fft.fftshift(torch.fft.fft2(image, norm="ortho").abs().square())


def local_background(power: Float[Tensor, "ny nx"], radii: Float[Tensor, "ny nx"]) -> Float[Tensor, "ny nx"]:
    """Mean power around each pixel without spots: over rings first, then over squares, high values clipped.

    Args:
        power: power spectrum, zero frequency at its centre.
        radii: spatial frequency of each pixel, in any unit.
    """
    rings = (radii / radii.max() * max(power.shape)).round().long().flatten()
    counts = rings.bincount().clamp(min=1)
    background = power.new_ones(power.shape)
    for _ in range(_ITERATIONS):
        clipped = torch.minimum(power / background, power.new_tensor(_CLIP)) * background
        background = (rings.bincount(clipped.flatten()) / counts)[rings].view_as(power).to(power) + 1e-30
    for _ in range(_ITERATIONS):
        ratio = (power / background).clamp(max=_CLIP)
        background = background * _box_mean(ratio)
    # The mean of an exponential that is cut off at 4 is 1 - exp(-4).
    return background / (1 - math.exp(-_CLIP))


def _box_mean(values: Float[Tensor, "ny nx"]) -> Float[Tensor, "ny nx"]:
    half = _BACKGROUND_PX // 2
    padded = functional.pad(values[None, None], (half, half, half, half), mode="circular")
    rows = functional.avg_pool2d(padded, (_BACKGROUND_PX, 1), stride=1)
    return functional.avg_pool2d(rows, (1, _BACKGROUND_PX), stride=1)[0, 0]


def neighbourhood_maximum(values: Float[Tensor, "ny nx"], side_px: int) -> Float[Tensor, "ny nx"]:
    """The largest value in a square around each pixel."""
    return functional.max_pool2d(values[None, None], side_px, stride=1, padding=side_px // 2)[0, 0]


def find_peaks(spectrum: Spectrum, min_power: float, max_count: int) -> Float[Tensor, "peaks 2"]:
    """Frequencies (x, y) of the highest peaks in cycles per pixel, one of each Friedel pair, highest first.

    Args:
        spectrum: background-corrected power spectrum.
        min_power: lowest power of a peak, over the background.
        max_count: largest number of peaks.
    """
    excess, ny = spectrum.excess, spectrum.excess.shape[0]
    is_peak = (excess >= min_power) & (excess == neighbourhood_maximum(excess, _NEIGHBOURHOOD)) & spectrum.usable
    is_peak[: ny // 2] = False
    rows, columns = is_peak.nonzero().unbind(1)
    order = excess[rows, columns].argsort(descending=True)[:max_count]
    return spectrum.frequencies(refine_peaks(spectrum, torch.stack([columns[order], rows[order]], -1)))


def refine_peaks(spectrum: Spectrum, pixels: Int[Tensor, "peaks 2"]) -> Float[Tensor, "peaks 2"]:
    """Positions (column, row) to a fraction of a pixel: a parabola through the log power along each axis."""
    ny, nx = spectrum.excess.shape
    columns, rows = pixels.unbind(-1)
    logs = (spectrum.excess + 1e-6).log()
    offsets = []
    for dx, dy in ((1, 0), (0, 1)):
        before, here, after = (logs[(rows + step * dy) % ny, (columns + step * dx) % nx] for step in (-1, 0, 1))
        curvature = (2 * here - before - after).clamp(min=1e-3)
        offsets.append(((after - before) / (2 * curvature)).clamp(-0.5, 0.5))
    return pixels.double() + torch.stack(offsets, -1).double()
