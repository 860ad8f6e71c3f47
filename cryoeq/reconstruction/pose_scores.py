"""Scores of all poses of a grid, and the weights that they become: in torch, or compiled on CPUs."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.reconstruction.particle_transforms import LikelihoodTerms
from cryoeq.reconstruction.pose_likelihood import PoseLikelihood

# Exponentials below this are as good as 0; smaller ones become denormal numbers, which take 20 times as long.
MIN_LOG_WEIGHT = -60.0
_LEAST_SHARE = 1e-6  # of a class, before its logarithm


@runtime_checkable
class PoseWeights(Protocol):
    """Unnormalised posterior of each pose and row."""

    @property
    def sums(self) -> Float[Tensor, "maps rows"]:
        """Over all poses of each map."""

    def sum_images(self, images: LikelihoodTerms) -> LikelihoodTerms:
        """Images rotated into the frame of each view and summed with their weights."""


@runtime_checkable
class PoseScores(Protocol):
    """Log-posterior of each pose and row, up to a constant of the image."""

    def highest(self) -> Float[Tensor, "hypotheses rows"]:
        """The highest score of each hypothesis, over the angles."""

    def over_angles(
        self, hypothesis: Int[Tensor, "maps particles"], row: Int[Tensor, "maps particles"]
    ) -> Float[Tensor, "angles maps particles"]:
        """Scores of some hypotheses and rows at all angles, up to a constant of each."""

    def weights(
        self,
        highest: Float[Tensor, "hypotheses rows"],
        best: Float[Tensor, " particles"],
        temperature: float | Float[Tensor, ""],
        *,
        for_images: bool = True,
    ) -> PoseWeights:
        """Exponentials of the scores, over those of the best pose of the particle; the scores may be overwritten.

        Args:
            highest: highest score of each hypothesis.
            best: score of the best pose of each particle, which has as many rows as any other.
            temperature: divisor of all scores.
            for_images: whether images are to be summed with these weights.
        """


@dataclass(frozen=True)
class TorchScores:
    """Log-posterior of each pose and row, up to a constant of the image.

    Args:
        likelihood: of the poses.
        values: the scores.
    """

    likelihood: PoseLikelihood
    values: Float[Tensor, "angles hypotheses rows"]

    def highest(self) -> Float[Tensor, "hypotheses rows"]:
        """The highest score of each hypothesis, over the angles."""
        return self.values.amax(0)

    def over_angles(
        self, hypothesis: Int[Tensor, "maps particles"], row: Int[Tensor, "maps particles"]
    ) -> Float[Tensor, "angles maps particles"]:
        """Scores of some hypotheses and rows at all angles."""
        return self.values[:, hypothesis, row]

    def weights(
        self,
        highest: Float[Tensor, "hypotheses rows"],
        best: Float[Tensor, " particles"],
        temperature: float | Float[Tensor, ""],
        *,
        for_images: bool = True,
    ) -> "TorchWeights":
        """Exponentials of the scores, which are overwritten; see ``PoseScores``."""
        del highest, for_images
        weights = self.values.sub_(best.repeat_interleave(self.values.shape[2] // len(best)))
        if isinstance(temperature, Tensor) or temperature != 1.0:  # which of a tensor would have to be waited for
            weights.div_(temperature)
        weights.clamp_(min=MIN_LOG_WEIGHT).exp_()
        n_maps, rows = self.likelihood.n_maps, weights.shape[2]
        is_one = n_maps == 1
        sums = weights.sum((0, 1))[None] if is_one else weights.sum(0).view(2, n_maps, -1, rows).sum((0, 2))
        return TorchWeights(self.likelihood, weights, sums)


@dataclass(frozen=True)
class TorchWeights:
    """Unnormalised posterior of each pose and row.

    Args:
        likelihood: of the poses.
        values: the weights.
        sums: over all poses of each map.
    """

    likelihood: PoseLikelihood
    values: Float[Tensor, "angles hypotheses rows"]
    sums: Float[Tensor, "maps rows"]

    def sum_images(self, images: LikelihoodTerms) -> LikelihoodTerms:
        """Images rotated into the frame of each view and summed with their weights."""
        return self.likelihood.sum_images(self.values, images)


def pose_scores(
    likelihood: PoseLikelihood,
    terms: LikelihoodTerms,
    log_prior: Float[Tensor, "particles offsets"] | None,
    class_shares: Float[Tensor, " classes"] | None,
) -> PoseScores:
    """The scores of all rows of a batch, compiled in float32 on CPUs.

    Args:
        likelihood: of the poses.
        terms: of the rows, each a particle at one of its offsets.
        log_prior: logarithm of the prior of each offset; None for a flat one.
        class_shares: prior probability of each map; None where all are alike.
    """
    if likelihood.linear.device.type == "cpu" and likelihood.linear.dtype == torch.float32:
        from cryoeq.reconstruction.compiled_scores import CompiledScores  # not above, because of numba

        prior = terms.cross_term.new_zeros(likelihood.n_maps, terms.cross_term.shape[1])
        if class_shares is not None:
            prior += class_log_prior(class_shares)[:, None]
        if log_prior is not None:
            prior += log_prior.reshape(-1)
        return CompiledScores(likelihood, *likelihood.half_turns(terms), prior)
    values = likelihood.log_likelihoods(terms)
    if class_shares is not None:
        of_class = values.view(len(values), 2, likelihood.n_maps, -1)
        of_class += class_log_prior(class_shares)[:, None]
    if log_prior is not None:
        values += log_prior.reshape(-1)
    return TorchScores(likelihood, values)


def class_log_prior(shares: Float[Tensor, " classes"]) -> Float[Tensor, " classes"]:
    """What the log-likelihoods of each class's poses gain by the prior, so that their mean is the evidence."""
    return (shares * len(shares)).clamp(min=_LEAST_SHARE).log()
