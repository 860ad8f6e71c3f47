"""Posterior of defocus errors on a grid: of each particle, about those of its micrograph.

An error is that of the micrograph, m, and that of the particle's height in the ice, d, both normal about 0::

    delta_i = m_j + d_i,    m_j ~ N(0, S^2),    d_i ~ N(0, s^2)

Both widths are those of the largest evidence, so that particles which tell nothing of their own follow their
micrograph, and micrographs which tell nothing keep what is stated.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_LEAST_WIDTH_STEPS = 0.5  # of the grid: a width below it is 0 for all that the grid tells
_WIDTHS, _RATIO = 13, 1.5  # that are tried, and between neighbours; then finer about the best
_FINER = (1 / _RATIO**0.5, 1.0, _RATIO**0.5)
_MAX_PARTICLES = 5000  # from which widths are estimated


@dataclass(frozen=True)
class DefocusPosterior:
    """Errors of the stated defocus.

    Args:
        mean_angstrom: posterior mean of each particle's error, to be added to the stated defocus.
        sigma_angstrom: posterior standard deviation of it.
        micrograph_sigma_angstrom: standard deviation of the micrographs' errors, S.
        particle_sigma_angstrom: standard deviation of the particles' errors within a micrograph, s.
    """

    mean_angstrom: Float[Tensor, " particles"]
    sigma_angstrom: Float[Tensor, " particles"]
    micrograph_sigma_angstrom: float
    particle_sigma_angstrom: float


def defocus_posterior(
    log_likelihood: Float[Tensor, "particles grid"], grid_angstrom: Float[Tensor, " grid"], group: Int[Tensor, " _"]
) -> DefocusPosterior:
    """Posterior of each particle's defocus error.

    Args:
        log_likelihood: of each particle at each error of the grid.
        grid_angstrom: errors, evenly spaced, 0 in the middle.
        group: micrograph of each particle, from 0.
    """
    log_likelihood = log_likelihood.double()
    likelihood = (log_likelihood - log_likelihood.amax(1, keepdim=True)).exp()
    grid = grid_angstrom.double()
    sample = _sample_groups(group)
    widths = _likeliest_widths(likelihood[sample], grid, group[sample].unique(return_inverse=True)[1])
    posterior = _of_particles(likelihood, grid, group.unique(return_inverse=True)[1], widths)
    mean = posterior @ grid
    sigma = (posterior @ grid.square() - mean.square()).clamp(min=0).sqrt()
    return DefocusPosterior(mean.float(), sigma.float(), *widths)


def _sample_groups(group: Int[Tensor, " particles"]) -> Int[Tensor, " rows"]:
    """Rows of the first groups, as many as are needed for the widths; each group as a whole."""
    if len(group) <= _MAX_PARTICLES:
        return torch.arange(len(group), device=group.device)
    last = group.sort().values[_MAX_PARTICLES]
    rows = (group < last).nonzero().squeeze(1)
    return rows if len(rows) else torch.arange(_MAX_PARTICLES, device=group.device)


def _likeliest_widths(
    likelihood: Float[Tensor, "particles grid"], grid: Float[Tensor, " grid"], group: Int[Tensor, " particles"]
) -> tuple[float, float]:
    """Standard deviations of micrographs and of particles within them, of the largest evidence."""
    least = _LEAST_WIDTH_STEPS * float(grid[1] - grid[0])
    coarse = [least * _RATIO**power for power in range(_WIDTHS)]
    of_group, of_particle = _best(likelihood, grid, group, (coarse, coarse))
    finer = [[max(least, width * factor) for factor in _FINER] for width in (of_group, of_particle)]
    return _best(likelihood, grid, group, (finer[0], finer[1]))


def _best(
    likelihood: Float[Tensor, "particles grid"],
    grid: Float[Tensor, " grid"],
    group: Int[Tensor, " particles"],
    widths: tuple[list[float], list[float]],
) -> tuple[float, float]:
    """Those of some widths, of micrographs and of particles, that have the largest evidence."""
    evidence = {}
    for of_particle in widths[1]:
        together = _given_micrograph(likelihood, _heights(grid, of_particle), group)
        for of_group in widths[0]:
            evidence[of_group, of_particle] = float((together + _log_prior(grid, of_group)).logsumexp(1).sum())
    return max(evidence, key=evidence.__getitem__)


def _heights(grid: Float[Tensor, " grid"], width: float) -> Float[Tensor, "grid grid"]:
    """Probability of each error (rows) of a particle in a micrograph of a given error (columns)."""
    return (-0.5 * ((grid[:, None] - grid) / width).square()).softmax(0)


def _log_prior(grid: Float[Tensor, " grid"], width: float) -> Float[Tensor, " grid"]:
    return (-0.5 * (grid / width).square()).log_softmax(0)


def _log_given(
    likelihood: Float[Tensor, "particles grid"], heights: Float[Tensor, "grid grid"]
) -> Float[Tensor, "particles grid"]:
    """Log-likelihood of each particle, given the error of its micrograph."""
    return (likelihood @ heights).clamp(min=torch.finfo(likelihood.dtype).tiny).log()


def _given_micrograph(
    likelihood: Float[Tensor, "particles grid"], heights: Float[Tensor, "grid grid"], group: Int[Tensor, " particles"]
) -> Float[Tensor, "micrographs grid"]:
    """Log-likelihood of all particles of each micrograph, given its error."""
    empty = likelihood.new_zeros(int(group.max()) + 1, likelihood.shape[1])
    return empty.index_add(0, group, _log_given(likelihood, heights))


def _of_particles(
    likelihood: Float[Tensor, "particles grid"],
    grid: Float[Tensor, " grid"],
    group: Int[Tensor, " particles"],
    widths: tuple[float, float],
) -> Float[Tensor, "particles grid"]:
    """Posterior of the error of each particle."""
    of_group, of_particle = widths
    heights = _heights(grid, of_particle)
    micrographs = _given_micrograph(likelihood, heights, group) + _log_prior(grid, of_group)
    others = (micrographs[group] - _log_given(likelihood, heights)).softmax(1)
    values = likelihood * (others @ heights.T)
    return values / values.sum(1, keepdim=True)
