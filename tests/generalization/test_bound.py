"""Laws of the norm-based and of the held-out generalization bound."""

import math

import pytest
import torch
from benchmarks.bound import class_margins
from scipy.stats import chi2
from torch import Tensor

from cryoeq.equivariance.irrep_blocks import IrrepBlock
from cryoeq.generalization.pac_bayes import (
    HeldOutBound,
    NormTerms,
    generalization_bound,
    noise_limit,
    norm_terms,
    view_margins,
)

HELD_OUT = HeldOutBound(count=400, error_rate=0.25, delta=0.05)


def block(irrep: str, rows: list[list[float]], dim: int = 1, constituents: int = 1) -> IrrepBlock:
    return IrrepBlock(irrep, dim, constituents, torch.tensor(rows, dtype=torch.float64))


def two_layers() -> dict[str, tuple[IrrepBlock, ...]]:
    """An irrep of real type, and in the first layer one of complex type with the coefficients (1, 1)."""
    first = (block("0", [[3.0, 0.0], [0.0, 1.0]]), block("1", [[1.0, -1.0], [1.0, 1.0]], dim=2, constituents=2))
    return {"first": first, "last": (block("0", [[2.0, 1.0]]),)}


def test_two_layers_by_hand() -> None:
    terms = norm_terms(two_layers())
    first, last = terms.layers
    assert [layer.spectral_norm for layer in terms.layers] == pytest.approx([3.0, math.sqrt(5)])
    # Multiplicities of the outputs: 2 and 1 of the first layer, 1 of the last.
    # Coefficients: max(2 x 2, 1 x 1 x 2) = 4, and 2.
    log = math.log((2 + 1 + 1) / 0.5)
    assert first.noise == pytest.approx(math.sqrt(5 * 4 * log))
    assert last.noise == pytest.approx(math.sqrt(5 * 2 * log))
    # Squared coefficients over squared norms: (9 + 1 + 1 + 1) / 9, and 5 / 5.
    assert [irrep.stable_rank for irrep in first.irreps] == pytest.approx([10 / 9, 2 / 9])
    assert first.irreps[1].spectral_norm == pytest.approx(math.sqrt(2) / 3)
    complexity = (math.sqrt(20 * log) + math.sqrt(10 * log)) ** 2 * (12 / 9 + 1)
    assert terms.complexity == pytest.approx(complexity)

    margins = torch.tensor([-0.1, 0.1, 0.3, 0.3, 0.3, 0.3, 0.3, 0.6, 0.6, 0.6])  # below 0.3: one wrong, one small
    bound = generalization_bound(terms, margins, HELD_OUT, delta=0.01)
    assert (bound.error_rate, bound.margin_error_rate) == (0.1, 0.2)
    assert bound.margin == 2 ** (-7 / 4)  # 0.297
    divergence = complexity / (2 * math.log(1 + 2 ** (-7 / 4) / 2) ** 2)
    assert bound.divergence == pytest.approx(divergence)
    logarithm = math.log(2 * math.sqrt(10) * 8 * 9 / 0.01)  # k = 7
    slack = math.sqrt((2 * divergence + 2 * math.log(2) + logarithm) / 20)
    assert bound.value == pytest.approx(0.2 + slack)
    assert bound.is_vacuous
    assert bound.measured_gap == pytest.approx(0.15)
    assert bound.held_out.value == pytest.approx(0.25 + math.sqrt(math.log(20) / 800))


def small_terms() -> NormTerms:
    return norm_terms({"only": (block("0", [[1.0]]),)})


@pytest.mark.parametrize("wrong", [0, 3, 50, 100])
def test_it_is_no_less_than_the_training_error_rate_and_shrinks_with_n(wrong: int) -> None:
    margins = torch.cat([torch.full((wrong,), -0.1), torch.full((100 - wrong,), 0.4)])
    bounds = [generalization_bound(small_terms(), margins.repeat(k), HELD_OUT) for k in (1, 10, 100, 1000)]
    assert all(bound.value > bound.margin_error_rate >= bound.error_rate == wrong / 100 for bound in bounds)
    values = [bound.value for bound in bounds]
    assert values == sorted(values, reverse=True)
    assert values[-1] < bounds[-1].error_rate + 0.1
    held_out = [HeldOutBound(count, 0.2, 0.05).value for count in (10, 100, 1000)]
    assert held_out == sorted(held_out, reverse=True)
    assert min(held_out) > 0.2


def test_the_bound_is_not_vacuous_from_the_stated_number_of_examples_on() -> None:
    needed = generalization_bound(small_terms(), torch.full((100,), 0.4), HELD_OUT).examples_needed
    counts = [round(factor * needed) for factor in (0.9, 2)]
    bounds = [generalization_bound(small_terms(), torch.full((count,), 0.4), HELD_OUT) for count in counts]
    assert [bound.is_vacuous for bound in bounds] == [True, False]


def test_the_held_out_bound_fails_no_more_often_than_stated() -> None:
    is_wrong = torch.rand(4000, 200, generator=torch.Generator().manual_seed(0)) < 0.3
    fails = [HeldOutBound(200, error_rate, 0.05).value < 0.3 for error_rate in is_wrong.float().mean(1).tolist()]
    assert sum(fails) / len(fails) <= 0.05


def sample(kind: str, m_in: int, m_out: int, generator: torch.Generator) -> Tensor:
    """A block whose coefficients are standard normal."""
    first, second = torch.randn(2, m_out, m_in, dtype=torch.float64, generator=generator)
    if kind == "complex":
        i = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
        return torch.kron(first, torch.eye(2, dtype=torch.float64)) + torch.kron(second, i)
    return torch.kron(first, torch.eye(int(kind), dtype=torch.float64))


@pytest.mark.parametrize(("kind", "dim", "c"), [("1", 1, 1), ("2", 2, 1), ("complex", 2, 2)])
@pytest.mark.parametrize(("m_in", "m_out"), [(1, 1), (4, 4), (8, 16)])
def test_the_tail_bound_holds_on_sampled_matrices(kind: str, dim: int, c: int, m_in: int, m_out: int) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = [IrrepBlock("0", dim, c, sample(kind, m_in, m_out, generator)) for _ in range(300)]
    assert {b.coefficients for b in blocks} == {m_in * m_out * c}
    norms = torch.tensor([b.spectral_norm for b in blocks])
    lengths = torch.tensor([b.squared_norm for b in blocks]).sqrt()
    assert (norms <= lengths * (1 + 1e-6)).all()
    for eta in (0.5, 0.1, 0.01):
        limit = noise_limit(blocks[:1], m_out, eta)
        assert float(norms.quantile(1 - eta)) < limit
        assert limit**2 >= chi2.isf(eta / m_out, m_in * m_out * c)  # the exact quantile of the coefficients' length
    assert float(lengths.square().mean()) == pytest.approx(m_in * m_out * c, rel=0.3)


def test_noise_within_its_limit_moves_the_output_less_than_stated() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((12, 8), (12, 12), (5, 12))]
    layers = [layer / torch.linalg.matrix_norm(layer, 2) for layer in layers]
    inputs = torch.nn.functional.normalize(torch.randn(200, 8, generator=generator, dtype=torch.float64), dim=1)
    for size in (0.01, 0.1, 1.0):
        noises = [size * torch.randn(layer.shape, generator=generator, dtype=torch.float64) for layer in layers]
        noisy = [layer + noise for layer, noise in zip(layers, noises, strict=True)]
        moved = (run_net(noisy, inputs) - run_net(layers, inputs)).norm(dim=1)
        growth = math.prod(1 + float(torch.linalg.matrix_norm(noise, 2)) for noise in noises)
        assert (moved <= growth - 1).all()


def run_net(layers: list[Tensor], inputs: Tensor) -> Tensor:
    for layer in layers[:-1]:
        inputs = (inputs @ layer.T).relu()
    return inputs @ layers[-1].T


def moved_by(lengths: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random directions of given lengths, one for each example."""
    change = torch.randn(shape, generator=generator)
    return (
        change
        / change.flatten(1).norm(dim=1).view(-1, *[1] * (len(shape) - 1))
        * lengths.view(-1, *[1] * (len(shape) - 1))
    )


def test_a_class_does_not_change_within_its_margin_and_does_beyond(generator: torch.Generator) -> None:
    logits = torch.randn(500, 5, generator=generator)
    labels = logits.argmax(1)
    margins = class_margins(logits, labels)
    assert (margins > 0).all()
    moved = logits + moved_by(0.99 * margins, (500, 5), generator)
    assert (moved.argmax(1) == labels).all()
    second = logits.scatter(1, labels[:, None], -math.inf).argmax(1)
    step = torch.nn.functional.one_hot(second, 5) - torch.nn.functional.one_hot(labels, 5)
    beyond = logits + 1.01 * margins[:, None] * step / math.sqrt(2)
    assert (beyond.argmax(1) == second).all()
    assert (class_margins(logits, second) < 0).all()


def test_a_view_stays_right_inside_its_margin_and_does_not_beyond(generator: torch.Generator) -> None:
    logits = torch.randn(2000, 12, generator=generator)
    is_right = torch.rand(2000, 12, generator=generator) < 0.3
    is_right[:, 0], is_right[:, 1] = True, False
    margins = view_margins(logits, is_right)
    found = is_right.gather(1, logits.argmax(1, keepdim=True)).squeeze(1)
    assert torch.equal(margins > 0, found)
    for share in (0.5, 0.999):
        moved = (logits + moved_by(share * margins, (2000, 12), generator)).argmax(1, keepdim=True)
        assert is_right.gather(1, moved).squeeze(1)[found].all()
    best = logits.masked_fill(~is_right, -math.inf).argmax(1)
    other = logits.masked_fill(is_right, -math.inf).argmax(1)
    step = torch.nn.functional.one_hot(other, 12) - torch.nn.functional.one_hot(best, 12)
    # Along the shortest way the best right view is passed by the best wrong one; further right ones are lower.
    beyond = (logits + 1.001 * margins[:, None] * step / math.sqrt(2)).argmax(1)
    second = logits.masked_fill(~is_right, -math.inf).topk(2).values[:, 1]
    is_far = found & (second < logits.gather(1, other[:, None]).squeeze(1))
    assert int(is_far.sum()) > 100
    assert torch.equal(beyond[is_far], other[is_far])
