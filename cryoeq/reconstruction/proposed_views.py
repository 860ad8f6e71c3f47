"""E-step over proposed views: of each particle a few views of a grid, at all in-plane angles, both mirrors and offsets.

The sum over all views of a grid is estimated from those that are tried. Likely views are chosen and stand for
themselves; of the others some are drawn at random, and each stands for as many as there are for each that was drawn. So
numerator and denominator of every posterior mean are unbiased, whatever proposed the likely ones, and with all views
tried this is ``expectation_step``.

Importance sampling of EM's E-step: Wei and Tanner 1990, J. Am. Stat. Assoc. 85, 699-704. Strata of likely and of other
hypotheses: Neyman 1934, J. R. Stat. Soc. 97, 558-625.
"""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.events import Event, Progress
from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.reconstruction.expectation import BestPoses, EStepResult, Posterior
from cryoeq.reconstruction.particle_transforms import POWER_ORDERS, LikelihoodTerms, ParticleTransforms
from cryoeq.reconstruction.pose_likelihood import PoseLikelihood

_AT_A_TIME = 64  # particles: few enough for a processor's cache; the same number for any batch
_MIN_LOG_WEIGHT = -60.0  # exponentials below are as good as 0; denormal numbers take many times as long
_MIRRORS = 2


@dataclass(frozen=True)
class ProposedViews(ParticleRows):
    """Views of a grid that are tried, none of them twice for a particle.

    Args:
        views: their indices.
        log_weight: logarithm of the number of views that each stands for.
    """

    views: Int[Tensor, "particles tried"]
    log_weight: Float[Tensor, "particles tried"]

    @classmethod
    def draw(
        cls, logits: Float[Tensor, "particles views"], n_likely: int, n_random: int, generator: torch.Generator
    ) -> "ProposedViews":
        """The most likely views of each particle, and some of the others at random.

        Args:
            logits: of all views of the grid; infinite for a view to be tried in any case.
            n_likely: views with the highest logits.
            n_random: views drawn among the others.
            generator: random number generator.
        """
        count, n_views = logits.shape
        n_likely = min(n_likely, n_views)
        n_random = min(n_random, n_views - n_likely)
        likely = logits.topk(n_likely, dim=1).indices
        keys = torch.rand(count, n_views, generator=generator).to(logits.device).scatter(1, likely, -1.0)
        drawn = keys.topk(n_random, dim=1).indices
        stands_for = math.log((n_views - n_likely) / n_random) if n_random else 0.0
        weights = [logits.new_zeros(count, n_likely), logits.new_full((count, n_random), stands_for)]
        return cls(torch.cat([likely, drawn], 1), torch.cat(weights, 1))


@dataclass(frozen=True)
class ProposalResult:
    """An E-step over proposed views.

    Args:
        expectation: sums over the views, and summary for each particle.
        by_view: posterior probability of each view that was tried, with all that it stands for.
    """

    expectation: EStepResult
    by_view: Float[Tensor, "particles tried"]


def expectation_over_views(
    particles: ParticleTransforms,
    likelihood: PoseLikelihood,
    offsets_px: Float[Tensor, "rows offsets 2"],
    proposed: ProposedViews,
    *,
    shift_sigma_px: float,
    rows: Int[Tensor, " rows"] | None = None,
    temperature: float | Float[Tensor, ""] = 1.0,
    progress: Callable[[int], Event] | None = None,
) -> Generator[Event, None, ProposalResult]:
    """Posterior of each particle over poses of the views that are tried, and the sums of the images.

    Args:
        particles: particles up to the radius of the likelihood.
        likelihood: likelihood of the poses of a grid under one map.
        offsets_px: offsets of each particle that takes part.
        proposed: views of each particle that takes part.
        shift_sigma_px: standard deviation of the normal prior of offsets, per axis; 0 for a flat prior.
        rows: particles that take part; None for all.
        temperature: divisor of the log-likelihood, as in ``expectation_step``.
        progress: the event after a number of particles.
    """
    step = _Step(_ByView.of(likelihood), particles, offsets_px, proposed, rows, shift_sigma_px, temperature)
    sums = likelihood.no_images()
    posteriors = [Posterior.empty(particles.plane.box_size_px, particles.device)]
    by_view = [proposed.log_weight[:0]]
    for first in range(0, len(offsets_px), _AT_A_TIME):
        if first:
            yield progress(first) if progress else Progress("expectation", first, len(offsets_px))
        there = torch.arange(first, min(first + _AT_A_TIME, len(offsets_px)), device=offsets_px.device)
        posterior, weights = step.add_to(sums, there)
        posteriors.append(posterior)
        by_view.append(weights)
    return ProposalResult(EStepResult(sums, Posterior.cat(posteriors)), torch.cat(by_view))


@dataclass(frozen=True)
class _ByView:
    """A likelihood whose terms are sorted by view, so that chosen ones are read in one piece.

    Args:
        likelihood: the likelihood.
        linear: its linear terms, of real and imaginary part, of each view and its mirror.
        quadratic: its quadratic terms.
    """

    likelihood: PoseLikelihood
    linear: Float[Tensor, "orders 2 views mirrors inputs"]
    quadratic: Float[Tensor, "power_orders 2 views mirrors power_inputs"]

    @classmethod
    def of(cls, likelihood: PoseLikelihood) -> "_ByView":
        def by_view(terms: Float[Tensor, "orders series inputs"]) -> Float[Tensor, "orders 2 views mirrors inputs"]:
            return terms.unflatten(1, (2, _MIRRORS, -1)).transpose(2, 3).contiguous()

        return cls(likelihood, by_view(likelihood.linear), by_view(likelihood.quadratic))

    def scores(
        self, views: Int[Tensor, "particles tried"], terms: LikelihoodTerms
    ) -> Float[Tensor, "angles particles tried mirrors offsets"]:
        """Log-likelihoods of the poses of some views of each particle."""
        count, tried = views.shape
        series = self._of(self.linear, views) @ _columns(terms.cross_term, count)
        power = self._of(self.quadratic, views) @ _columns(terms.quadratic_term, count)
        series[:POWER_ORDERS] += power
        n_even = self.likelihood.harmonics.n_even
        of_even, of_odd = self.likelihood.synthesis()
        even = of_even.flatten(1) @ series[:n_even].flatten(0, 1).flatten(1)
        odd = of_odd.flatten(1) @ series[n_even:].flatten(0, 1).flatten(1)
        scores = even.new_empty(2, *even.shape)
        torch.add(even, odd, out=scores[0])
        torch.sub(even, odd, out=scores[1])
        return scores.view(-1, count, tried, _MIRRORS, series.shape[-1])

    def add_images(
        self,
        sums: LikelihoodTerms,
        views: Int[Tensor, "particles tried"],
        weights: Float[Tensor, "angles particles tried mirrors offsets"],
        terms: LikelihoodTerms,
    ) -> None:
        """Add images to sums over views, in place: the adjoint of ``scores``."""
        likelihood, count = self.likelihood, len(views)
        first, second = weights.flatten(1).chunk(2)
        of_even, of_odd = (phases.flatten(1).T for phases in likelihood.analysis())
        moments = first.new_empty(len(of_even) + len(of_odd), first.shape[1])
        torch.mm(of_even, first + second, out=moments[: len(of_even)])
        torch.mm(of_odd, first - second, out=moments[len(of_even) :])
        moments = moments.view(-1, 2, count, views.shape[1] * _MIRRORS, weights.shape[-1])
        signs = likelihood.harmonics.mirror_signs
        for total, images, sign in (
            (sums.cross_term, terms.cross_term, signs),
            (sums.quadratic_term, terms.quadratic_term, torch.ones_like(signs[:POWER_ORDERS])),
        ):
            added = _turned_images(moments[: len(total)], images, sign)
            total.flatten(2).index_add_(1, views.flatten(), added.flatten(2))

    @staticmethod
    def _of(
        terms: Float[Tensor, "orders 2 views mirrors inputs"], views: Int[Tensor, "particles tried"]
    ) -> Float[Tensor, "orders 2 particles hypotheses inputs"]:
        """Terms of chosen views."""
        chosen = terms.flatten(3).index_select(2, views.flatten())
        return chosen.view(*terms.shape[:2], len(views), -1, terms.shape[-1])


def _columns(
    term: Float[Tensor, "orders rows terms 2"], count: int
) -> Float[Tensor, "orders 1 particles inputs offsets"]:
    """Images of each particle at its offsets as columns of a matrix."""
    return term.flatten(2).unflatten(1, (count, -1)).transpose(2, 3)[:, None]


def _turned_images(
    moments: Float[Tensor, "orders 2 particles hypotheses offsets"],
    images: Float[Tensor, "orders rows terms 2"],
    sign: Float[Tensor, "orders 1 1"],
) -> Float[Tensor, "orders pairs terms 2"]:
    """For each particle and view, the image summed over poses; mirrored ones enter conjugated, with their sign."""
    orders, _, count, hypotheses, n_offsets = moments.shape
    rows = images.flatten(2).view(orders, 1, count, n_offsets, -1)
    products = (moments @ rows).view(orders, 2, count * hypotheses // _MIRRORS, _MIRRORS, -1, 2)
    of_real, of_imag = products.unbind(1)
    real, imag = of_real[..., 0] - of_imag[..., 1], of_real[..., 1] + of_imag[..., 0]
    return torch.stack([real[:, :, 0] + sign * real[:, :, 1], imag[:, :, 0] - sign * imag[:, :, 1]], -1)


@dataclass(frozen=True)
class _Step:
    """An E-step; see ``expectation_over_views``."""

    products: _ByView
    particles: ParticleTransforms
    offsets_px: Float[Tensor, "rows offsets 2"]
    proposed: ProposedViews
    rows: Int[Tensor, " rows"] | None
    shift_sigma_px: float
    temperature: float | Float[Tensor, ""]

    def add_to(
        self, sums: LikelihoodTerms, batch: Int[Tensor, " batch"]
    ) -> tuple[Posterior, Float[Tensor, "batch tried"]]:
        """Add the images of a batch to the sums; its posterior, and that of the views that were tried."""
        products, offsets, proposed = self.products, self.offsets_px[batch], self.proposed.rows(batch)
        subset = self.particles.rows(batch if self.rows is None else self.rows[batch])
        terms = subset.at_offsets(offsets, products.likelihood.harmonics)
        scores = products.scores(proposed.views, terms)
        if self.shift_sigma_px > 0:
            scores += (-0.5 / self.shift_sigma_px**2 * offsets.square().sum(-1))[:, None, None]
        best = self._best(scores, proposed, offsets)
        highest = best.log_likelihood[:, :1]
        weights = scores.sub_(highest[..., None, None]).div_(self.temperature).clamp_(min=_MIN_LOG_WEIGHT).exp_()
        weights *= proposed.log_weight.exp()[..., None, None]
        by_hypothesis = weights.sum(0)
        total = by_hypothesis.sum((1, 2, 3))
        weights /= total[:, None, None, None]
        products.add_images(sums, proposed.views, weights, terms)
        grid = products.likelihood.grid
        poses = len(grid.inplane_rad) * _MIRRORS * len(grid.views)
        by_offset = by_hypothesis.sum((1, 2)) / total[:, None]
        posterior = Posterior(
            poses=best.poses_of(torch.zeros_like(batch), subset.plane.box_size_px),
            mean_shifts_px=(by_offset[..., None] * offsets).sum(1),
            confidence=total.reciprocal(),
            log_evidence=highest[:, 0] + (total / poses).log(),
            class_probability=torch.ones_like(highest),
            best=best,
        )
        return posterior, by_hypothesis.sum((2, 3)) / total[:, None]

    def _best(
        self,
        scores: Float[Tensor, "angles batch tried mirrors offsets"],
        proposed: ProposedViews,
        offsets_px: Float[Tensor, "batch offsets 2"],
    ) -> BestPoses:
        """The pose of the highest score."""
        grid, particle = self.products.likelihood.grid, torch.arange(len(offsets_px), device=offsets_px.device)
        by_hypothesis = scores.amax(0)
        value, place = by_hypothesis.flatten(1).max(1)
        mirrors_offsets = _MIRRORS * offsets_px.shape[1]
        tried, mirror, offset = (
            place // mirrors_offsets,
            place // offsets_px.shape[1] % _MIRRORS,
            place % offsets_px.shape[1],
        )
        angle = scores[:, particle, tried, mirror, offset].argmax(0)
        rotations = grid.rotations(angle, proposed.views[particle, tried] + mirror * len(grid.views))
        return BestPoses(rotations[:, None], offsets_px[particle, offset][:, None], value[:, None])
