"""How far the error of an equivariant net on new data can be above that on its lessons: a PAC-Bayes bound by its norms.

The net is layers W_1 ... W_L with ReLU between them (``models.folded_layers``). By Schur's lemma each falls apart into
blocks W(psi), one for each irrep psi of the group, and these into free coefficients: W = sum_k w_k E_k with orthogonal
E_k, c_psi of them for each pair of copies, so that |W(psi)|_F^2 = d_psi sum_k w_k^2. Prior: w_k ~ N(0, s^2). Posterior:
the same noise about the trained coefficients. Layers are scaled to spectral norm 1 and inputs to length 1: that changes
no prediction, as the net is homogeneous and predictions depend on the direction of its output only. Then

1. With probability 1 - eta at least every layer's noise U has |U|_2 <= s sqrt(M_l), by the tail of the chi-squared
   distribution: M_l = 5 max_psi(m_in m_out c_psi) log(sum m_out / eta), the sum over all layers and irreps.
2. Noise moves the output by prod(1 + |U_l|_2) - 1 <= exp(s sum sqrt(M_l)) - 1 at most. With
   s = log(1 + gamma / 2) / sum sqrt(M_l) that is gamma / 2, so predictions of margin gamma do not change.
3. KL = (sum sqrt(M_l))^2 sum_l sum_psi |W_l(psi)|_F^2 / (d_psi |W_l|_2^2) / (2 log(1 + gamma / 2)^2).
4. With probability 1 - delta over n independent examples, and for all gamma = 2^(-k/4), k = 0, 1, ..., at once,
   risk <= (share of examples of margin gamma or less)
           + sqrt((2 KL + 2 log 2 + log(2 sqrt(n) (k + 1) (k + 2) / delta)) / (2 n)).

After Behboodi, Cesa and Cohen 2022, A PAC-Bayesian Generalization Bound for Equivariant Networks (arXiv 2210.13150).
The paper could not be read in full: M_l and the sum over irreps are reconstructed, 2 to 4 are derived anew along
Neyshabur, Bhojanapalli and Srebro 2018 (arXiv 1707.09564), the last with Maurer 2004 (cs/0411099); constants are ours.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.equivariance.irrep_blocks import IrrepBlock

ETA = 0.5
"""Probability that the noise may exceed its bound: the argument needs 1 / 2."""
_MARGIN_LOSS = 0.1  # by which the share of small margins may exceed that of wrong predictions, where gamma is chosen
_PER_HALVING, _MOST_STEPS = 4, 240


@dataclass(frozen=True)
class IrrepTerms:
    """What one irrep of a layer adds.

    Args:
        irrep: its name.
        dim: d_psi.
        constituents: c_psi.
        in_multiplicity: copies that come in, the constant field included.
        out_multiplicity: copies that go out.
        spectral_norm: of its block, the layer's being 1.
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
    """What one layer adds.

    Args:
        name: of the layer.
        spectral_norm: before layers are scaled.
        noise: sqrt(M_l), what its noise can reach in units of s.
        irreps: those that come in and go out.
    """

    name: str
    spectral_norm: float
    noise: float
    irreps: tuple[IrrepTerms, ...]

    @property
    def stable_rank(self) -> float:
        """Of all irreps together."""
        return sum(irrep.stable_rank for irrep in self.irreps)


@dataclass(frozen=True)
class NormTerms:
    """All that the bound takes from the weights.

    Args:
        layers: from the first to the last.
    """

    layers: tuple[LayerTerms, ...]

    @property
    def spectral_norm(self) -> float:
        """Product over the layers."""
        return math.prod(layer.spectral_norm for layer in self.layers)

    @property
    def complexity(self) -> float:
        """(sum of noise)^2 times (sum of stable ranks): the factor of the bound that depends on group and width."""
        return sum(layer.noise for layer in self.layers) ** 2 * sum(layer.stable_rank for layer in self.layers)


@dataclass(frozen=True)
class HeldOutBound:
    """The classical bound: Hoeffding's inequality on examples that the net has not learnt from.

    Args:
        count: of these examples.
        risk: share of wrong predictions among them.
        delta: probability that the bound fails.
    """

    count: int
    risk: float
    delta: float

    @property
    def slack(self) -> float:
        """By how much the expected risk may exceed the measured one."""
        return math.sqrt(math.log(1 / self.delta) / (2 * self.count))

    @property
    def value(self) -> float:
        """What the expected risk is below, but with probability delta."""
        return self.risk + self.slack


@dataclass(frozen=True)
class GeneralizationBound:
    """The norm-based bound with its terms, and the held-out bound beside it.

    Args:
        count: examples that the net learnt from.
        risk: share of wrong predictions among them.
        step: k; the margin is 2^(-k/4) of the largest output there could be.
        margin_risk: share of examples with that margin or less, wrong ones among them.
        delta: probability that the bound fails.
        terms: of the weights.
        held_out: on other examples of the same distribution.
    """

    count: int
    risk: float
    step: int
    margin_risk: float
    delta: float
    terms: NormTerms
    held_out: HeldOutBound

    @property
    def margin(self) -> float:
        """Gamma."""
        return margin_at(self.step)

    @property
    def divergence(self) -> float:
        """KL of posterior and prior, in nats."""
        return self.terms.complexity / (2 * math.log1p(self.margin / 2) ** 2)

    @property
    def slack(self) -> float:
        """By how much the expected risk may exceed the share of small margins."""
        prior_weight = (self.step + 1) * (self.step + 2)
        logarithm = math.log(2 * math.sqrt(self.count) * prior_weight / self.delta)
        return math.sqrt((2 * self.divergence + 2 * math.log(2) + logarithm) / (2 * self.count))

    @property
    def value(self) -> float:
        """What the expected risk is below, but with probability delta; says nothing from 1 on."""
        return self.margin_risk + self.slack

    @property
    def is_vacuous(self) -> bool:
        """Whether any net would satisfy it."""
        return self.value >= 1

    @property
    def examples_needed(self) -> float:
        """Examples from which on the bound would say something, with the same margins; infinite if never."""
        if self.margin_risk >= 1:
            return math.inf
        return self.divergence / (1 - self.margin_risk) ** 2

    @property
    def measured_gap(self) -> float:
        """Risk on held-out examples less that on the lessons."""
        return self.held_out.risk - self.risk


def norm_terms(layers: Mapping[str, Sequence[IrrepBlock]]) -> NormTerms:
    """What the bound takes from the weights.

    Args:
        layers: the blocks of each layer, by its name, from the first to the last.
    """
    copies = sum(block.out_multiplicity for blocks in layers.values() for block in blocks)
    return NormTerms(tuple(_layer_terms(name, blocks, copies) for name, blocks in layers.items()))


def noise_limit(blocks: Sequence[IrrepBlock], copies: int, eta: float = ETA) -> float:
    """sqrt(M_l): what |U|_2 of a layer of standard normal coefficients stays below.

    With log(copies / eta) >= 1, a chi-squared variable of r degrees of freedom exceeds 5 r log(copies / eta) with
    probability eta / copies at most (Laurent and Massart 2000), and |U(psi)|_2^2 is below such a one. So all layers of
    a net stay below their limits with probability 1 - eta at least.

    Args:
        blocks: of the layer.
        copies: of irreps that go out of all layers of the net together.
        eta: probability that some layer exceeds its limit.
    """
    return math.sqrt(5 * max(block.coefficients for block in blocks) * max(1.0, math.log(copies / eta)))


def generalization_bound(
    terms: NormTerms, margins: Float[Tensor, " examples"], held_out: HeldOutBound, *, delta: float = 0.05
) -> GeneralizationBound:
    """The bound at the largest margin that costs little: that few of the right predictions fall below.

    Args:
        terms: of the net's weights.
        margins: of the examples that the net learnt from: by how much the output must move for the prediction to become
            wrong, as a share of the input's length times all layers' norms; 0 or less for a wrong one.
        held_out: the classical bound.
        delta: probability that the bound fails.
    """
    risk = _share_below(margins, 0.0)
    step = 0
    while step < _MOST_STEPS and _share_below(margins, margin_at(step)) > risk + _MARGIN_LOSS:
        step += 1
    return GeneralizationBound(len(margins), risk, step, _share_below(margins, margin_at(step)), delta, terms, held_out)


def margin_at(step: int) -> float:
    """The k-th of the margins among which one is chosen."""
    return 2.0 ** (-step / _PER_HALVING)


def _share_below(margins: Tensor, limit: float) -> float:
    return int((margins <= limit).sum()) / len(margins)


def _layer_terms(name: str, blocks: Sequence[IrrepBlock], copies: int) -> LayerTerms:
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
    return LayerTerms(name, largest, noise_limit(blocks, copies), irreps)


def class_margins(logits: Float[Tensor, "examples classes"], labels: Tensor) -> Float[Tensor, " examples"]:
    """How far a classifier's output must move, in Euclidean length, for another class to win; negative if one has.

    Args:
        logits: one per class.
        labels: the right class of each.
    """
    right = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    return (right[:, 0] - others) / math.sqrt(2)


def pose_margins(
    vectors: Float[Tensor, "examples heads 2 3"],
    logits: Float[Tensor, "examples heads"],
    angles_rad: Float[Tensor, "examples heads"],
    limit_rad: float,
) -> Float[Tensor, " examples"]:
    """How far the outputs of a pose head can move before the preferred pose may be off by more than a limit.

    A head keeps its preference order unless two logits close their gap. Its rotation A, nearest to the rows M, moves by
    phi with sin(phi / 2) <= sqrt(2) |E|_F / sigma_2(M) under a change E of M: A and the moved A' maximise tr(A^T M) and
    tr(A'^T (M + E)), so tr((A - A')^T M) <= |A - A'|_F |E|_F, where |A - A'|_F = 2 sqrt(2) sin(phi / 2), and
    tr((A - A')^T M) >= (1 - cos phi) sigma_2(M). This is our own derivation.

    Args:
        vectors: M of each head.
        logits: its preference.
        angles_rad: between its rotation and the right one.
        limit_rad: from which a pose counts as wrong.

    Returns:
        Lower bounds of these lengths; 0 where the preferred pose is wrong.
    """
    to_spare = (0.5 * (limit_rad - angles_rad)).clamp(min=0).sin()
    steady = torch.linalg.svdvals(vectors)[..., 1] * to_spare / math.sqrt(2)
    behind = (logits.amax(1, keepdim=True) - logits) / math.sqrt(2)
    return torch.maximum(steady, behind).amin(1)
