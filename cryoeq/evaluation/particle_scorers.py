"""Outlier scores of particles, higher for images that are less like a particle: the interface ``ParticleScorer``."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from scipy.special import ndtri
from torch import Tensor

from cryoeq.evaluation.particle_features import LabelledFeatures, ParticleFeatures

_CHUNK = 1024
_SIGMA_PER_MAD = 1.4826  # standard deviation of a normal distribution, in units of its median absolute deviation
_ERROR_WEIGHT = 1e-3  # orders particles with equal shares of outliers among their neighbours


@runtime_checkable
class ParticleScorer(Protocol):
    """A score that separates outliers (junk particles) from particles.

    Laws: particles in another order have the same scores in that order; scores are finite, also of a single particle
    and of one that is like no other.
    """

    def score(self, features: ParticleFeatures) -> Float[Tensor, " particles"]:
        """One number for each particle; only their order counts."""
        ...


@dataclass(frozen=True)
class ErrorScorer:
    """Reconstruction error: 1 minus the correlation of a particle with the projection at its pose."""

    def score(self, features: ParticleFeatures) -> Float[Tensor, " particles"]:
        """The reconstruction errors."""
        return features.errors


@dataclass(frozen=True)
class KnnScorer:
    """Fraction of synthetic outliers among the nearest labelled particles, in standardised features.

    Args:
        features: standardised features of the labelled particles.
        is_outlier: label of each labelled particle, 0 or 1.
        rows: row of the particle table for each labelled particle; a particle is never its own neighbour.
        location: median of each feature, subtracted.
        scale: robust standard deviation of each feature, divided by.
        neighbours: number of nearest neighbours.
    """

    features: Float[Tensor, "examples features"]
    is_outlier: Float[Tensor, " examples"]
    rows: Int[Tensor, " examples"]
    location: Float[Tensor, " features"]
    scale: Float[Tensor, " features"]
    neighbours: int = 50

    @classmethod
    def fit(cls, examples: list[LabelledFeatures], neighbours: int = 50) -> "KnnScorer":
        """Standardise and keep labelled particles."""
        features = torch.cat([example.features.features for example in examples])
        location, scale = robust_scale(features)
        is_labelled = torch.cat([example.is_labelled for example in examples])
        return cls(
            ((features - location) / scale)[is_labelled],
            torch.cat([example.is_outlier for example in examples])[is_labelled],
            torch.cat([example.features.rows for example in examples])[is_labelled],
            location,
            scale,
            neighbours,
        )

    def score(self, features: ParticleFeatures) -> Float[Tensor, " particles"]:
        """The fraction, between 0 and 1; at equal fractions the reconstruction error decides."""
        scaled = (features.features - self.location) / self.scale
        fractions = []
        for rows, chunk in zip(features.rows.split(_CHUNK), scaled.split(_CHUNK), strict=True):
            distances = torch.cdist(chunk, self.features)
            distances = torch.where(rows[:, None] == self.rows, torch.inf, distances)
            nearest = distances.topk(min(self.neighbours, len(self.rows)), largest=False).indices
            fractions.append(self.is_outlier[nearest].mean(1))
        return torch.cat(fractions) + _ERROR_WEIGHT * features.errors


def robust_scale(features: Float[Tensor, "particles features"]) -> tuple[
    Float[Tensor, " features"], Float[Tensor, " features"]
]:  # fmt: skip
    """Median of each feature, and its standard deviation from the median absolute deviation; 1 where that is 0."""
    location = features.median(0).values
    scale = _SIGMA_PER_MAD * (features - location).abs().median(0).values
    return location, torch.where(scale > 0, scale, 1.0)


def z_scores(scores: Float[Tensor, " particles"]) -> Float[Tensor, " particles"]:
    """The ranks of scores as quantiles of the normal distribution; they do not show how many particles are outliers."""
    ranks = _ranks(scores)
    return torch.from_numpy(ndtri((ranks - 0.5) / len(ranks))).to(scores)


def _ranks(scores: Float[Tensor, " particles"]) -> Float64[np.ndarray, " particles"]:
    """Ranks from 1, ties at their mean (scipy.stats has them, and takes a second to import)."""
    _, position, counts = np.unique(scores.double().cpu().numpy(), return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[position]


def roc_auc(scores: Float[Tensor, " particles"], is_outlier: Bool[Tensor, " particles"]) -> float:
    """Area under the ROC curve: the fraction of pairs in which the outlier scores higher than the particle.

    Args:
        scores: scores of all particles, outliers included.
        is_outlier: labels, with at least one of either kind.
    """
    ranks = torch.from_numpy(_ranks(scores))[is_outlier.cpu()]
    n_outliers, n_others = len(ranks), len(scores) - len(ranks)
    return float((ranks.sum() - n_outliers * (n_outliers + 1) / 2) / (n_outliers * n_others))
