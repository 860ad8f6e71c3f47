"""Scores of particles, higher where one is less like a particle: one seam, ``ParticleScorer``."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from scipy.special import ndtri
from torch import Tensor

from cryoeq.evaluation.particle_features import LabelledFeatures, ParticleFeatures

_CHUNK = 1024
_TYPICAL = 1.4826  # standard deviation of a normal distribution in units of its median absolute deviation


@runtime_checkable
class ParticleScorer(Protocol):
    """What tells particles from junk.

    Laws: particles in another order have the same scores in that order; scores are finite, also of a single particle
    and of one that is like no other.
    """

    def score(self, evidence: ParticleFeatures) -> Float[Tensor, " particles"]:
        """One number for each particle; only their order counts."""
        ...


@dataclass(frozen=True)
class ErrorScorer:
    """Reconstruction error: 1 less the correlation of a particle with the projection at its pose."""

    def score(self, evidence: ParticleFeatures) -> Float[Tensor, " particles"]:
        """The error."""
        return evidence.errors


@dataclass(frozen=True)
class KnnScorer:
    """Share of made junk among the labelled particles whose figures are nearest, each weighted alike.

    Args:
        features: of labelled particles, standardised.
        is_junk: their labels.
        rows: which particles of the stack they are: none counts for itself.
        location: by which figures are standardised.
        spread: see there.
        neighbours: how many.
    """

    features: Float[Tensor, "examples features"]
    is_junk: Float[Tensor, " examples"]
    rows: Int[Tensor, " examples"]
    location: Float[Tensor, " features"]
    spread: Float[Tensor, " features"]
    neighbours: int = 50

    @classmethod
    def fit(cls, examples: list[LabelledFeatures], neighbours: int = 50) -> "KnnScorer":
        """Remember labelled particles."""
        features = torch.cat([example.evidence.features for example in examples])
        location, spread = standard_scale(features)
        kept = torch.cat([example.is_labelled for example in examples])
        return cls(
            ((features - location) / spread)[kept],
            torch.cat([example.is_junk for example in examples])[kept],
            torch.cat([example.evidence.rows for example in examples])[kept],
            location,
            spread,
            neighbours,
        )

    def score(self, evidence: ParticleFeatures) -> Float[Tensor, " particles"]:
        """The share, between 0 and 1; at equal shares the error decides."""
        scaled = (evidence.features - self.location) / self.spread
        shares = []
        for rows, chunk in zip(evidence.rows.split(_CHUNK), scaled.split(_CHUNK), strict=True):
            distances = torch.cdist(chunk, self.features)
            distances = torch.where(rows[:, None] == self.rows, torch.inf, distances)
            nearest = distances.topk(min(self.neighbours, len(self.rows)), largest=False).indices
            shares.append(self.is_junk[nearest].mean(1))
        return torch.cat(shares) + 1e-3 * evidence.errors


def standard_scale(features: Float[Tensor, "particles features"]) -> tuple[
    Float[Tensor, " features"], Float[Tensor, " features"]
]:  # fmt: skip
    """Median and spread of each figure; the spread of one that never changes is 1."""
    location = features.median(0).values
    spread = _TYPICAL * (features - location).abs().median(0).values
    return location, torch.where(spread > 0, spread, 1.0)


def z_scores(scores: Float[Tensor, " particles"]) -> Float[Tensor, " particles"]:
    """The order of scores as quantiles of the normal distribution: how many are junk they do not tell."""
    ranks = _ranks(scores)
    return torch.from_numpy(ndtri((ranks - 0.5) / len(ranks))).to(scores)


def _ranks(scores: Float[Tensor, " particles"]) -> Float64[np.ndarray, " particles"]:
    """Ranks from 1, ties at their mean (scipy.stats has them, and takes a second to import)."""
    _, place, counts = np.unique(scores.double().cpu().numpy(), return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]


def area_under_curve(scores: Float[Tensor, " particles"], is_junk: Bool[Tensor, " particles"]) -> float:
    """Area under the ROC curve: the share of pairs of junk and other particles in which junk scores higher.

    Args:
        scores: of all particles.
        is_junk: at least one that is, and one that is not.
    """
    ranks = torch.from_numpy(_ranks(scores))[is_junk.cpu()]
    n_junk, n_others = len(ranks), len(scores) - len(ranks)
    return float((ranks.sum() - n_junk * (n_junk + 1) / 2) / (n_junk * n_others))
