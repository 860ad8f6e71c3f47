"""From noise to a first map: stochastic expectation-maximisation at low resolution.

A random map, a coarse grid of poses that is turned at random in every iteration, small random batches, all poses of
each image weighted by an annealed posterior, sums that forget, and a radius that grows. At the few shells in use the
likelihood has few other maxima, and annealing passes most of those.

Stochastic starts: Punjani et al. 2017, Nature Methods 14, 290-296. Annealed likelihood: Ueda and Nakano 1998, Neural
Networks 11, 271-282.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.events import Progress
from cryoeq.domain.processes import of_first, over_all, share_of
from cryoeq.domain.randomness import Stream, stream_generator
from cryoeq.geometry.disk_harmonics import DiskHarmonics, disk_harmonics
from cryoeq.geometry.fourier import fft_map, ifft_map
from cryoeq.geometry.shells import shell_power
from cryoeq.geometry.so3 import random_rotations
from cryoeq.physics.backprojection import WienerBackprojection
from cryoeq.training.centring import centre_images
from cryoeq.training.expectation import Expectation, expect, hexagonal_trials
from cryoeq.training.observed_images import ObservedImages, shell_precision
from cryoeq.training.view_scores import PoseGrid, ViewScores

_FIRST_TEMPERATURE = 2.0  # of the posterior; falls to 1 over the first half
_HEALPIX_ORDER, _N_INPLANE = 1, 24  # views 29 degrees apart: turned at random, they need not be closer
_MARCHED = 2 / 3  # of the iterations, after which the last shell is reached
_FORGETTING = 0.8  # of the iterations, in which batches are drawn and older sums fade
_MEMORY = 0.7  # what is kept of the sums from one iteration to the next
_PRIOR = 0.1  # of the mean weight: how little data a coefficient may have before it is damped
_FIRST_SIGNAL = 0.02  # power of the random map, over the variance of the images
_CENTRING_SHELL = 3
_RECENTRING = 0.3  # of the iterations, after which the posterior of the shifts is believed
_SHIFT_SPACING = 1.5  # of the spread of the shifts that centring leaves: how far apart trial shifts are at most
_SHIFT_FADING = 2.7  # trial shifts are this many cycles' fraction apart: the box over this and the radius


@dataclass(frozen=True)
class BasinSettings:
    """How to start.

    Args:
        iterations: of expectation and maximisation.
        batch_size: images per iteration; the last fifth of the iterations takes up to four times as many.
        first_shell: radius at the start, in cycles per box.
        last_shell: radius at the end.
        n_shifts: trial shifts of each image in each iteration.
        shift_sigma_px: spread of the shifts per axis, in pixels of the images; 0 for centred particles.
        particle_radius: of the mask, as a fraction of the box.
    """

    iterations: int
    batch_size: int
    first_shell: int
    last_shell: int
    n_shifts: int
    shift_sigma_px: float
    particle_radius: float


@dataclass(frozen=True)
class Basin:
    """A first map.

    Args:
        volume: at a small box that just holds the last shell.
        shifts_px: of the images so far, in pixels of the full box.
        log_evidence: mean over the images of the last iteration; compares starts on the same images.
    """

    volume: Float[Tensor, "m m m"]
    shifts_px: Float[Tensor, "particles 2"]
    log_evidence: float


def find_basin(images: ObservedImages, settings: BasinSettings, *, seed: int, start: int) -> Iterator[Progress | Basin]:
    """Progress for each iteration, then the map.

    Args:
        images: all of them.
        settings: how.
        seed: of the run.
        start: number of this random start; others with the same seed see the same images at the end.
    """
    full, n = images.plane.box_size_px, _small_box(settings.last_shell)
    small = images.within(settings.last_shell, n)
    mask = soft_sphere(n, settings.particle_radius * n, 2.0, small.matched.device)
    generator = stream_generator(seed, Stream.BASIN, start)
    total = small.total_variance
    volume = _random_map(total, settings.first_shell, mask, generator)
    sums = WienerBackprojection.empty(n, device=volume.device)
    centring = centre_images(small.within(_CENTRING_SHELL, n), settings.shift_sigma_px * n / full)
    shifts = centring.shifts_px
    for iteration in range(settings.iterations):
        fraction = iteration / max(1, settings.iterations - 1)
        forgets = fraction < _FORGETTING
        rows = _draw(len(images), settings, seed, iteration if forgets else None, start)
        rows = rows.to(volume.device)
        radius = _radius(settings, fraction)
        own = share_of(torch.arange(len(rows), device=rows.device))
        part = small.rows(rows[own]).within(radius, n)
        harmonics = disk_harmonics(n, radius, support_radius(settings.particle_radius, n), volume.device)
        scores = _scores(volume, harmonics, shell_precision(total), generator)
        spacing = min(n / (_SHIFT_FADING * radius), _SHIFT_SPACING * centring.sigma_px)
        trials = hexagonal_trials(shifts[rows], spacing, settings.n_shifts, generator)
        result = _run(part, scores, trials[own], settings, n / full, max(1.0, _FIRST_TEMPERATURE * (1 - 2 * fraction)))
        posterior = result.posterior.gathered(own, len(rows))
        if fraction >= _RECENTRING:
            shifts = shifts.index_copy(0, rows, posterior.mean_shifts_px)
        fresh = over_all(scores.insert(result.sums, sums.sums.shape[-1]))
        sums = WienerBackprojection(n, sums.padding, (_MEMORY if forgets else 0.0) * sums.sums + fresh)
        weights = sums.shell_weights
        prior = _PRIOR * weights[: radius + 1].mean()
        volume = of_first(low_pass(sums.most_probable(prior.expand(len(weights))) * mask, radius))
        evidence = float(posterior.log_evidence.mean())
        yield Progress("searching", iteration + 1, settings.iterations, {"log evidence": evidence})
    yield Basin(volume, shifts * (full / n), evidence)


def soft_sphere(
    box_size_px: int, radius_px: float, edge_px: float, device: torch.device | None = None
) -> Float[Tensor, "n n n"]:
    """A mask: 1 within a radius, 0 from ``edge_px`` further on, a cosine between."""
    x = torch.arange(box_size_px, device=device) - box_size_px // 2
    radius = (x[:, None, None].square() + x[:, None].square() + x.square()).sqrt()
    return 0.5 + 0.5 * torch.cos(math.pi * ((radius - radius_px) / edge_px).clamp(0, 1))


def support_radius(particle_radius: float, box_size_px: int) -> float:
    """Radius in pixels of the disk that projections of a masked map lie in."""
    return min((particle_radius + 0.05) * box_size_px, box_size_px / 2 - 0.5)


def low_pass(volume: Float[Tensor, "n n n"], radius: float) -> Float[Tensor, "n n n"]:
    """The map without what lies beyond a radius in Fourier space."""
    n = volume.shape[-1]
    k = torch.arange(n, device=volume.device) - n // 2
    squared = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2
    return ifft_map(fft_map(volume) * (squared <= (radius + 0.5) ** 2))


def _small_box(last_shell: int) -> int:
    return 2 * (last_shell + 1)


def _radius(settings: BasinSettings, fraction: float) -> int:
    marched = min(1.0, fraction / _MARCHED)
    return int(settings.first_shell + (settings.last_shell - settings.first_shell) * marched)


def _random_map(
    total_variance: Float[Tensor, " shells"],
    first_shell: int,
    mask: Float[Tensor, "n n n"],
    generator: torch.Generator,
) -> Float[Tensor, "n n n"]:
    n = mask.shape[-1]
    noise = torch.randn(n, n, n, generator=generator).to(mask.device)
    volume = low_pass(noise * mask, first_shell) * mask
    power = shell_power(volume)[1 : first_shell + 1].mean()
    return volume * (_FIRST_SIGNAL * total_variance.mean() / power).sqrt()


def _draw(count: int, settings: BasinSettings, seed: int, iteration: int | None, start: int) -> Tensor:
    """A random batch; without an iteration, the larger one of the last iterations, which all starts share."""
    if iteration is None:
        order = torch.randperm(count, generator=stream_generator(seed, Stream.BASIN_IMAGES))
        return order[: 4 * settings.batch_size]
    # Half of the 63 bits number the iterations, half the starts.
    generator = stream_generator(seed, Stream.EPOCH, (start << 31) + iteration)
    return torch.randperm(count, generator=generator)[: settings.batch_size]


def _scores(
    volume: Float[Tensor, "n n n"],
    harmonics: DiskHarmonics,
    precision: Float[Tensor, " shells"],
    generator: torch.Generator,
) -> ViewScores:
    frame = random_rotations(1, generator, volume.device)[0]
    offset = 2 * math.pi * float(torch.rand(1, generator=generator))
    grid = PoseGrid.build(_HEALPIX_ORDER, _N_INPLANE, frame, offset)
    return ViewScores.build(volume, grid, harmonics, precision[harmonics.plane.shells])


def _run(
    images: ObservedImages,
    scores: ViewScores,
    trials: Float[Tensor, "particles trials 2"],
    settings: BasinSettings,
    pixel_ratio: float,
    temperature: float,
) -> Expectation:
    sigma = settings.shift_sigma_px * pixel_ratio
    *_, (_, result) = expect(images, scores, trials, shift_sigma_px=sigma, temperature=temperature)
    if result is None:
        raise ValueError("there are no images")
    return result
