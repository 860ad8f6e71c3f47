"""Generalization bounds of an equivariant network: PAC-Bayes by the norms of its weights, and Hoeffding's inequality.

The network has layers W_1 ... W_L with ReLU between them (``folded_layers``). By Schur's lemma each layer is a direct
sum of blocks W(psi), one for each irrep psi of the group, with free coefficients w_k on orthogonal matrices E_k, c_psi
of them for each pair of an incoming and an outgoing psi::

    W = sum_k w_k E_k,    |W(psi)|_F^2 = d_psi sum_k w_k^2

Prior: w_k ~ N(0, s^2). Posterior: the same noise about the trained coefficients. Layers are scaled to spectral norm 1
and inputs to length 1, which changes no prediction: the network is homogeneous, and predictions depend on the direction
of its output only. Let m_in and m_out be the multiplicities of psi in the input and output of a layer. Then

1. With probability 1 - eta at least, by the tail of the chi-squared distribution, the noise U_l of every layer has::

       |U_l|_2 <= s sqrt(M_l),    M_l = 5 max_psi(m_in m_out c_psi) log(sum m_out / eta)

   where the sum runs over all layers and irreps.
2. The noise changes the output by at most gamma / 2, so that predictions of margin gamma do not change, if::

       prod_l (1 + |U_l|_2) - 1 <= exp(s sum_l sqrt(M_l)) - 1 = gamma / 2,    s = log(1 + gamma / 2) / sum_l sqrt(M_l)

3. The divergence of posterior and prior is::

       KL = (sum_l sqrt(M_l))^2 sum_l sum_psi |W_l(psi)|_F^2 / (d_psi |W_l|_2^2) / (2 log(1 + gamma / 2)^2)

4. With probability 1 - delta over n independent examples, and for all gamma = 2^(-k/4), k = 0, 1, ..., at once::

       error rate <= (fraction of examples of margin gamma or less)
                     + sqrt((2 KL + 2 log 2 + log(2 sqrt(n) (k + 1) (k + 2) / delta)) / (2 n))

After Behboodi, Cesa and Cohen 2022, A PAC-Bayesian Generalization Bound for Equivariant Networks (arXiv 2210.13150).
The paper could not be read in full: M_l and the sum over irreps are reconstructed. Steps 2 to 4 are our derivation
along Neyshabur, Bhojanapalli and Srebro 2018 (arXiv 1707.09564), the last with Maurer 2004 (cs/0411099), with constants
of our own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from cryoeq.equivariance.irrep_blocks import IrrepBlock

ETA = 0.5
"""Probability that the noise exceeds its limit; the argument needs 1 / 2."""
_MARGIN_LOSS = 0.1  # gamma is chosen so that at most this fraction of the right predictions has a smaller margin
_STEPS_PER_HALVING, _MAX_STEPS = 4, 240


@dataclass(frozen=True)
class IrrepTerms:
    """Contribution of one irrep of a layer to the bound.

    Args:
        irrep: name of the irrep.
        dim: dimension d_psi.
        constituents: number of coefficients c_psi.
        in_multiplicity: multiplicity in the input, the constant field included.
        out_multiplicity: multiplicity in the output.
        spectral_norm: spectral norm of the block, relative to that of the layer.
        stable_rank: |W(psi)|_F^2 / (d_psi |W|_2^2).
    """

    irrep: str
    dim: int
    constituents: int
    in_multiplicity: int
    out_multiplicity: int
    spectral_norm: float
    stable_rank: float


@dataclass(frozen=True)
class LayerTerms:
    """Contribution of one layer to the bound.

    Args:
        name: name of the layer.
        spectral_norm: spectral norm |W|_2 before scaling.
        noise: sqrt(M_l), limit of the spectral norm of its noise in units of s.
        irreps: contributions of the irreps that occur in input and output.
    """

    name: str
    spectral_norm: float
    noise: float
    irreps: tuple[IrrepTerms, ...]

    @property
    def stable_rank(self) -> float:
        """Sum over all irreps."""
        return sum(irrep.stable_rank for irrep in self.irreps)


@dataclass(frozen=True)
class NormTerms:
    """The terms of the bound that depend on the weights, layer by layer."""

    layers: tuple[LayerTerms, ...]

    @property
    def spectral_norm(self) -> float:
        """Product of the spectral norms of all layers."""
        return math.prod(layer.spectral_norm for layer in self.layers)

    @property
    def complexity(self) -> float:
        """(sum of noise)^2 (sum of stable ranks): the factor of the divergence that depends on group and width."""
        return sum(layer.noise for layer in self.layers) ** 2 * sum(layer.stable_rank for layer in self.layers)


@dataclass(frozen=True)
class HeldOutBound:
    """The held-out bound: Hoeffding's inequality on examples that the network was not trained on.

    Args:
        count: number of held-out examples.
        error_rate: fraction of wrong predictions among them.
        delta: probability that the bound fails.
    """

    count: int
    error_rate: float
    delta: float

    @property
    def slack(self) -> float:
        """Largest difference of the expected error rate and the measured one, with probability 1 - delta."""
        return math.sqrt(math.log(1 / self.delta) / (2 * self.count))

    @property
    def value(self) -> float:
        """Upper bound of the expected error rate, with probability 1 - delta."""
        return self.error_rate + self.slack


@dataclass(frozen=True)
class GeneralizationBound:
    """The norm-based bound with its terms, and the held-out bound beside it.

    Args:
        count: number of training examples.
        error_rate: fraction of wrong predictions among them.
        step: k; the margin is 2^(-k/4), as a fraction of the largest possible output.
        margin_error_rate: fraction of training examples with that margin or less, including wrong predictions.
        delta: probability that the bound fails.
        terms: terms of the weights.
        held_out: bound on held-out examples of the same distribution.
    """

    count: int
    error_rate: float
    step: int
    margin_error_rate: float
    delta: float
    terms: NormTerms
    held_out: HeldOutBound

    @property
    def margin(self) -> float:
        """The margin gamma."""
        return margin_at(self.step)

    @property
    def divergence(self) -> float:
        """KL of posterior and prior, in nats."""
        return self.terms.complexity / (2 * math.log1p(self.margin / 2) ** 2)

    @property
    def slack(self) -> float:
        """Largest difference of the expected error rate and ``margin_error_rate``, with probability 1 - delta."""
        prior_weight = (self.step + 1) * (self.step + 2)
        logarithm = math.log(2 * math.sqrt(self.count) * prior_weight / self.delta)
        return math.sqrt((2 * self.divergence + 2 * math.log(2) + logarithm) / (2 * self.count))

    @property
    def value(self) -> float:
        """Upper bound of the expected error rate, with probability 1 - delta; vacuous from 1 on."""
        return self.margin_error_rate + self.slack

    @property
    def is_vacuous(self) -> bool:
        """Whether the bound is 1 or more, which every network satisfies."""
        return self.value >= 1

    @property
    def examples_needed(self) -> float:
        """Number of training examples at which the bound, with these margins, is no longer vacuous; may be infinite."""
        if self.margin_error_rate >= 1:
            return math.inf
        return self.divergence / (1 - self.margin_error_rate) ** 2

    @property
    def measured_gap(self) -> float:
        """Error rate on held-out examples minus that on the training set."""
        return self.held_out.error_rate - self.error_rate


def norm_terms(layers: Mapping[str, Sequence[IrrepBlock]]) -> NormTerms:
    """The terms of the bound that depend on the weights.

    Args:
        layers: blocks of each layer by name, from the first to the last.
    """
    multiplicity = sum(block.out_multiplicity for blocks in layers.values() for block in blocks)
    return NormTerms(tuple(_layer_terms(name, blocks, multiplicity) for name, blocks in layers.items()))


def noise_limit(blocks: Sequence[IrrepBlock], multiplicity: int, eta: float = ETA) -> float:
    """sqrt(M_l): probable upper limit of |U|_2 for a layer of standard normal coefficients.

    For m = multiplicity and log(m / eta) >= 1, a chi-squared variable of r degrees of freedom exceeds 5 r log(m / eta)
    with probability eta / m at most (Laurent and Massart 2000), and |U(psi)|_2^2 is bounded by such a variable. So all
    layers of a network stay below their limits with probability 1 - eta at least.

    Args:
        blocks: blocks of the layer.
        multiplicity: total multiplicity of irreps in the outputs of all layers.
        eta: probability that some layer exceeds its limit.
    """
    return math.sqrt(5 * max(block.coefficients for block in blocks) * max(1.0, math.log(multiplicity / eta)))


def generalization_bound(
    terms: NormTerms, margins: Float[Tensor, " examples"], held_out: HeldOutBound, *, delta: float = 0.05
) -> GeneralizationBound:
    """The bound at the largest margin that at least 90 % of the right predictions have.

    Args:
        terms: terms of the weights.
        margins: margin of each training example: the smallest change of the output that makes the prediction wrong, as
            a fraction of the input's length times the spectral norm of the network; 0 or less for a wrong prediction.
        held_out: bound on held-out examples.
        delta: probability that the bound fails.
    """
    error_rate = _fraction_up_to(margins, 0.0)
    step = 0
    while step < _MAX_STEPS and _fraction_up_to(margins, margin_at(step)) > error_rate + _MARGIN_LOSS:
        step += 1
    margin_error_rate = _fraction_up_to(margins, margin_at(step))
    return GeneralizationBound(len(margins), error_rate, step, margin_error_rate, delta, terms, held_out)


def margin_at(step: int) -> float:
    """The k-th candidate of the margin gamma."""
    return 2.0 ** (-step / _STEPS_PER_HALVING)


def _fraction_up_to(margins: Tensor, limit: float) -> float:
    return int((margins <= limit).sum()) / len(margins)


def _layer_terms(name: str, blocks: Sequence[IrrepBlock], multiplicity: int) -> LayerTerms:
    norms = [block.spectral_norm for block in blocks]
    largest = max(norms)
    irreps = tuple(
        IrrepTerms(
            block.irrep,
            block.dim,
            block.constituents,
            block.in_multiplicity,
            block.out_multiplicity,
            norm / largest,
            block.squared_norm / largest**2,
        )
        for block, norm in zip(blocks, norms, strict=True)
    )
    return LayerTerms(name, largest, noise_limit(blocks, multiplicity), irreps)


def view_margins(
    logits: Float[Tensor, "examples views"], is_right: Bool[Tensor, "examples views"]
) -> Float[Tensor, " examples"]:
    """Margins of logits: lower bounds of the change of the outputs that makes the most probable view a wrong one.

    A change E of the logits moves the difference of two of them by sqrt(2) |E| at most.

    Args:
        logits: of all views.
        is_right: whether each view would be right.

    Returns:
        The margins, 0 where the most probable view is wrong.
    """
    right = logits.masked_fill(~is_right, -math.inf).amax(1)
    wrong = logits.masked_fill(is_right, -math.inf).amax(1)
    return ((right - wrong) / math.sqrt(2)).clamp(min=0)
