"""Probability that a particle is junk: features of the particles against those of decoys, whose kind is known.

A multinomial logistic regression, ridge-regularised, is fitted to the decoys: probabilities q_k(x) of the kinds given
the features x, where kind k makes the share r_k of the decoys. In the stack it makes another share, s_k, which follows
from the particles' own features by expectation-maximisation (Saerens, Latinne, Decaestecker 2002, Neural Computation
14, 21-41)::

    p_ik = q_k(x_i) s_k / r_k / sum_j q_j(x_i) s_j / r_j,        s_k = mean_i p_ik

Junk gathers in the classes that it fits least badly, so that each class has shares of its own.

So no label is needed, and the probabilities are calibrated as far as particles are like decoys of particles. Where they
are not, the centre of their features differs: it is moved to that of the decoys, again by expectation-maximisation. The
amplitude alone is not moved: its centre and spread are read off the particles (``junk_amplitudes``) and given to the
decoys. Residuals that scatter more than those of the decoys on their lower side, where no junk is, are scaled down:
noise and ice differ from image to image in more ways than the decoys have.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from cryoeq.evaluation.junk_amplitudes import Amplitudes
from cryoeq.evaluation.junk_decoys import KINDS, N_GOOD
from cryoeq.evaluation.junk_features import ParticleFit
from cryoeq.evaluation.particle_scorers import roc_auc
from cryoeq.evaluation.unexplained import JunkProbabilities

_LINEAR = 3.0  # standard deviations up to which features count in proportion, logarithmically beyond
_LEAST_PEAK = 0.5
_RIDGE = 1.0
_RIDGE_OF_CONSTANTS = 1e-6  # one constant too many for the kinds
_NEWTON_STEPS, _SMALL_STEP, _SMALL_GAIN = 50, 1e-9, 1e-6
_SHARE_STEPS, _MOVES = 100, 10
_IS_RESIDUAL = (False, False, True, True, True, True, False, True, True, True, True)  # of ``feature_matrix``
_LOWER, _CHANCE, _WIDEST = (0.05, 0.3), 1.1, 2.0  # quantiles; ratio of widths that chance explains, and largest ratio
_FOLDS = 4
MIN_AUC = 0.8
"""Area under the ROC curve, for decoys left out of the fit, below which particles say too little."""
MAX_SHARE = 0.7
"""Share of junk beyond which there is nothing to compare it with: noise and amplitude are those of the particles."""


@dataclass(frozen=True)
class DecoyFit:
    """Decoys as examples.

    Args:
        fit: how they fit.
        class_index: class whose map each was made from.
        kind: index of each into ``KINDS``.
    """

    fit: ParticleFit
    class_index: Int[Tensor, " decoys"]
    kind: Int[Tensor, " decoys"]


@dataclass(frozen=True)
class JunkEstimate:
    """Probability that each particle is junk.

    Args:
        probability: of each particle.
        kind_shares: expected share of the particles of each kind in ``KINDS``.
        decoy_auc: area under the ROC curve of junk among decoys that were left out of the fit.
    """

    probability: JunkProbabilities
    kind_shares: Float[Tensor, " kinds"]
    decoy_auc: float

    @property
    def share(self) -> float:
        """Expected share of junk."""
        return float(self.probability.any_kind.mean())


def feature_matrix(
    fit: ParticleFit, class_index: Int[Tensor, " particles"], amplitudes: Amplitudes
) -> Float64[Tensor, "particles features"]:
    """Features of a fit, the amplitude first.

    Args:
        fit: of particles or decoys.
        class_index: class of each.
        amplitudes: centre and spread of the amplitudes of each class.
    """
    centre, spread = amplitudes.centre[class_index], amplitudes.spread[class_index]
    error = (fit.power.reciprocal() + (spread * centre).square()).sqrt()
    normal = [
        ((fit.amplitude - centre) / error)[:, None],
        fit.difference[:, None],
        fit.residuals,
        fit.one_sided[:, None],
    ]
    peaks = [fit.second.clamp(min=_LEAST_PEAK).log(), fit.second_amplitude[:, None]]
    return _LINEAR * torch.cat([torch.asinh(torch.cat(normal, 1) / _LINEAR), *peaks], 1).double()


def estimate_junk(
    fit: ParticleFit, class_index: Int[Tensor, " particles"], decoys: DecoyFit, amplitudes: Amplitudes
) -> JunkEstimate:
    """Probability that each particle is junk.

    Args:
        fit: how the particles fit.
        class_index: class of each particle.
        decoys: how decoys fit.
        amplitudes: of the particles, which the decoys were given.
    """
    kind = decoys.kind
    examples = feature_matrix(decoys.fit, decoys.class_index, amplitudes)
    mean, deviation = examples[kind == 0].mean(0), examples[kind == 0].std(0).clamp(min=1e-6)
    examples, found = (examples - mean) / deviation, (feature_matrix(fit, class_index, amplitudes) - mean) / deviation
    weights = _fit_regression(examples, kind)
    shares = torch.bincount(kind, minlength=len(KINDS)).double() / len(kind)
    scale = _excess_width(found, examples[kind == 0])
    posterior = _with_shares_of_classes(_log_probabilities(weights, found / scale), shares, class_index)
    for _ in range(_MOVES):
        is_particle = posterior[:, 0] / posterior[:, 0].sum().clamp(min=1e-12)
        centre = is_particle @ found
        centre[0] = 0.0
        posterior = _with_shares_of_classes(_log_probabilities(weights, (found - centre) / scale), shares, class_index)
    junk = posterior[:, N_GOOD:].sum(1).clamp(0, 1)
    broken = posterior[:, KINDS.index("broken")]
    probability = JunkProbabilities(junk.float(), broken.float())
    return JunkEstimate(probability, posterior.mean(0).float(), _auc_left_out(examples, kind))


def _excess_width(
    found: Float64[Tensor, "particles features"], good: Float64[Tensor, "decoys features"]
) -> Float64[Tensor, " features"]:
    """How much wider each feature is among the lower ones of the particles than among those of good decoys.

    Junk has the higher residuals. The features to which this does not apply, and what may be chance, count as 1.

    Args:
        found: features of the particles.
        good: features of good decoys.
    """
    widths = [values.quantile(_LOWER[1], 0) - values.quantile(_LOWER[0], 0) for values in (found, good)]
    ratio = (widths[0] / widths[1].clamp(min=1e-6) / _CHANCE).clamp(1.0, _WIDEST)
    return torch.where(torch.tensor(_IS_RESIDUAL), ratio, 1.0)


def _fit_regression(
    features: Float64[Tensor, "decoys features"], kind: Int[Tensor, " decoys"]
) -> Float64[Tensor, "columns kinds"]:
    """Weights of a multinomial logistic regression, the constants last, by Newton's steps."""
    columns, n_kinds = _with_constant(features), len(KINDS)
    ridge = torch.full((columns.shape[1], 1), _RIDGE, dtype=torch.float64)
    ridge[-1] = _RIDGE_OF_CONSTANTS
    truth = torch.nn.functional.one_hot(kind, n_kinds).double()

    def loss(weights: Float64[Tensor, "columns kinds"]) -> float:
        likelihood = (columns @ weights).log_softmax(1)[torch.arange(len(kind)), kind].sum()
        return float(0.5 * (ridge * weights.square()).sum() - likelihood)

    weights = torch.zeros(columns.shape[1], n_kinds, dtype=torch.float64)
    value = loss(weights)
    for _ in range(_NEWTON_STEPS):
        found = (columns @ weights).softmax(1)
        gradient = columns.T @ (found - truth) + ridge * weights
        covariance = torch.diag_embed(found) - found[:, :, None] * found[:, None]
        curvature = torch.einsum("ni,nj,nkl->ikjl", columns, columns, covariance).reshape(gradient.numel(), -1)
        curvature += torch.diag(ridge.expand_as(weights).flatten())
        step = torch.linalg.solve(curvature, gradient.flatten()).view_as(weights)
        better = weights - step
        while (there := loss(better)) > value and float(step.abs().max()) > _SMALL_STEP:
            step = step / 2
            better = weights - step
        if value - there < _SMALL_GAIN:
            break
        weights, value = better, there
    return weights


def _with_constant(features: Float64[Tensor, "rows features"]) -> Float64[Tensor, "rows columns"]:
    return torch.nn.functional.pad(features, (0, 1), value=1.0)


def _log_probabilities(
    weights: Float64[Tensor, "columns kinds"], features: Float64[Tensor, "rows features"]
) -> Float64[Tensor, "rows kinds"]:
    return (_with_constant(features) @ weights).log_softmax(1)


def _with_shares_of_classes(
    log_probabilities: Float64[Tensor, "rows kinds"],
    shares: Float64[Tensor, " kinds"],
    class_index: Int[Tensor, " rows"],
) -> Float64[Tensor, "rows kinds"]:
    """Probabilities of the kinds where these make the shares that the rows of each class themselves say.

    Args:
        log_probabilities: where they make the shares of the decoys.
        shares: of the decoys.
        class_index: class of each row.
    """
    found = torch.empty_like(log_probabilities)
    for number in class_index.unique().tolist():
        rows = class_index == number
        found[rows] = _with_own_shares(log_probabilities[rows], shares)
    return found


def _with_own_shares(
    log_probabilities: Float64[Tensor, "rows kinds"], shares: Float64[Tensor, " kinds"]
) -> Float64[Tensor, "rows kinds"]:
    likelihood = (log_probabilities - shares.log()).softmax(1)
    found = shares
    for _ in range(_SHARE_STEPS):
        posterior = likelihood * found
        posterior = posterior / posterior.sum(1, keepdim=True).clamp(min=1e-300)
        found = posterior.mean(0).clamp(min=1e-6)
    return posterior


def _auc_left_out(features: Float64[Tensor, "decoys features"], kind: Int[Tensor, " decoys"]) -> float:
    """Area under the ROC curve of junk, each quarter of the decoys judged by a fit to the others."""
    scores = torch.zeros(len(kind), dtype=torch.float64)
    fold = torch.arange(len(kind)) % _FOLDS  # decoys are sorted by kind, so that each fold has all
    for number in range(_FOLDS):
        weights = _fit_regression(features[fold != number], kind[fold != number])
        left_out = _log_probabilities(weights, features[fold == number])
        scores[fold == number] = left_out[:, N_GOOD:].exp().sum(1)
    return roc_auc(scores, kind >= N_GOOD)
