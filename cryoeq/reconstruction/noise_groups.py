"""Noise of groups of particles, relative to that of all: one spectrum per optics group and per micrograph.

The search knows one noise spectrum, sigma^2. A group g whose noise is sigma^2 / w_g, with w_g a function of the shell,
enters it with its images and their squared CTF both times w_g. Its likelihood and its part in the sums of the M-step
are then exact, and so is the noise that is left of all images: with images z = w C y, and power S of the projections,

    sum |z|^2 / sum w C^2 = sigma^2 + S sum (w C^2)^2 / sum w C^2

The spectra are those of the background around the particles (outside of the circle of its normalisation), of which only
the ratio between groups is used: tails of particles, neighbours and the window are in all of them. On simulated sets
(1WCM, 32 px, 25 micrographs of 80 particles in three optics groups, coloured noise) the ratios are within 2 to 5 %
(shells 1 to 3) and 1 to 2 % (beyond 7) of the true ones, at SNR 0.1 as at SNR 1; what the true map leaves of the
images' variance is no better: 7 and 2 %.
A group has a spectrum of its own as far as the scatter of its images allows: the logarithm of the ratio is shrunk
towards 0, by the variance of such ratios among the groups over that variance and the ratio's own (empirical Bayes:
Efron and Morris 1973, J. Am. Stat. Assoc. 68, 117-130). Micrographs are compared with their optics group, and only
those of 20 particles and more: with fewer, one image with a piece of ice in its corner would decide.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoeq.domain.particles import ParticleTable

MIN_PARTICLES = 20  # of a micrograph that has a spectrum of its own
_LEAST = 1e-3  # least variance of a shell, over the mean of the group's shells
_NO_FREEDOM = 1e-9  # of the scatter in a group: rounding of 0
_LARGEST = 10.0  # of a ratio: beyond it one background was masked, and tells nothing of the noise


@dataclass(frozen=True)
class NoiseGroups:
    """Groups of particles that share their noise spectrum.

    Args:
        of_particle: group of each particle, from 0.
        optics: optics group that each group belongs to.
        is_whole: whether a group has its optics group's spectrum: it holds what is left of many small micrographs.
    """

    of_particle: Int[Tensor, " particles"]
    optics: Int[Tensor, " groups"]
    is_whole: Bool[Tensor, " groups"]

    @classmethod
    def of_table(cls, table: ParticleTable, rows: Int[Tensor, " rows"]) -> "NoiseGroups":
        """Groups of some particles: optics groups, and micrographs of enough of these particles.

        Args:
            table: all particles.
            rows: the particles.
        """
        optics = table.optics_index[rows]
        micrograph = torch.zeros_like(optics) if table.micrograph_index is None else table.micrograph_index[rows] + 1
        pairs = torch.stack([optics, micrograph], 1)
        _, number, counts = pairs.unique(dim=0, return_inverse=True, return_counts=True)
        micrograph = torch.where(counts[number] < MIN_PARTICLES, 0, micrograph)
        groups, number = torch.stack([optics, micrograph], 1).unique(dim=0, return_inverse=True)
        return cls(number, groups[:, 0], groups[:, 1] == 0)

    def __len__(self) -> int:
        return len(self.optics)


@dataclass(frozen=True)
class BackgroundSums:
    """Sums over the images of each group, from which its spectrum and the error of it follow.

    With m the power of an image's background in a shell, and t the factor of its noise power (the squared CTF of
    premultiplied images, else 1), these are the sums of m, t, m^2, m t and t^2.

    Args:
        sums: the five.
    """

    sums: Float[Tensor, "5 groups shells"]

    @classmethod
    def empty(cls, n_groups: int, n_shells: int, device: torch.device) -> "BackgroundSums":
        """The sums over no image."""
        return cls(torch.zeros(5, n_groups, n_shells, device=device, dtype=torch.float64))

    def adding(
        self,
        power: Float[Tensor, "images shells"],
        transfer: Float[Tensor, "images shells"],
        group: Int[Tensor, " images"],
    ) -> "BackgroundSums":
        """The sums with more images.

        Args:
            power: power of each image's background.
            transfer: factor of its noise power.
            group: its group.
        """
        m, t = power.double(), transfer.double()
        return BackgroundSums(self.sums.index_add(1, group, torch.stack([m, t, m.square(), m * t, t.square()])))

    @property
    def variance(self) -> Float[Tensor, " shells"]:
        """Variance of the background of all images, before any premultiplication by the CTF."""
        return _variance(self.sums.sum(1, keepdim=True))[0]

    def relative_precision(self, groups: NoiseGroups) -> Float[Tensor, "groups shells"]:
        """Inverse noise variance of each group over that of all particles.

        Args:
            groups: the groups, of which each has an image at least.
        """
        optics_sums = torch.zeros_like(self.sums[:, : int(groups.optics.max()) + 1])
        optics_sums = optics_sums.index_add(1, groups.optics, self.sums)
        used = groups.optics.unique()
        whole = self.sums.sum(1, keepdim=True)
        of_optics = torch.zeros_like(optics_sums[0])
        of_optics[used] = _log_ratios(optics_sums[:, used], whole.expand(-1, len(used), -1))
        ratios = of_optics[groups.optics]
        own = (~groups.is_whole).nonzero().squeeze(1)
        if len(own):
            ratios[own] += _log_ratios(self.sums[:, own], optics_sums[:, groups.optics[own]])
        ratios[:, 0] = ratios[:, 1]  # normalisation has taken the mean of each background
        return (-ratios).exp()


def _log_ratios(
    sums: Float[Tensor, "5 groups shells"], parents: Float[Tensor, "5 groups shells"]
) -> Float[Tensor, "groups shells"]:
    """Logarithm of each group's variance over its parent's, shrunk towards 0 as far as it is uncertain."""
    variance = _variance(sums)
    ratio = (variance / _variance(parents)).log()
    ratio = torch.where(ratio.abs() > math.log(_LARGEST), torch.zeros_like(ratio), ratio)
    _, transfer, power2, crossed, transfer2 = sums
    scatter = power2 - 2 * variance * crossed + variance.square() * transfer2
    # The images of a group scatter less about their own mean than about the true one, and one image alone not at all.
    freedom = 1 - transfer2 / transfer.square().clamp(min=1e-300)
    freedom = torch.where(freedom > _NO_FREEDOM, freedom, torch.zeros_like(freedom))
    expected = (variance.square() * transfer2 * freedom).sum(0)
    scatter = torch.where(freedom > 0, scatter.clamp(min=0), torch.zeros_like(scatter)).sum(0)
    of_image = torch.where(expected > 0, scatter / expected, torch.full_like(expected, math.inf))
    error = of_image * transfer2 / transfer.square().clamp(min=1e-300)
    between = ((ratio.square() - error) * transfer).sum(0) / transfer.sum(0).clamp(min=1e-300)
    between = between.clamp(min=0)
    return ratio * between / (between + error).clamp(min=1e-300)


def _variance(sums: Float[Tensor, "5 groups shells"]) -> Float[Tensor, "groups shells"]:
    """Variance of the noise before any premultiplication, per shell; a background without noise has the same in all."""
    power, transfer = sums[:2]
    variance = power / transfer.clamp(min=_LEAST * transfer.mean(1, keepdim=True)).clamp(min=1e-300)
    floor = _LEAST * variance.mean(1, keepdim=True)
    return torch.where(floor > 0, variance.maximum(floor), torch.ones_like(variance))


def at_radii(shells: Float[Tensor, "groups shells"], radii: Float[Tensor, " points"]) -> Float[Tensor, "groups points"]:
    """Values between shells, linear in the radius; beyond the last shell, its own.

    Args:
        shells: a value of each shell.
        radii: in cycles per box.
    """
    last = shells.shape[1] - 1
    below = radii.long().clamp(max=last)
    above = (below + 1).clamp(max=last)
    return torch.lerp(shells[:, below], shells[:, above], (radii - below).clamp(max=1.0).to(shells))
