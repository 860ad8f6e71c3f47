"""Laws of the learnt degree of equivariance; the regressions on vectors are those of Veefkind and Cesa's code."""

import pytest
import torch
from torch import Tensor

from cryoeq.equivariance import (
    EquivarianceDegree,
    FieldActivation,
    FieldKind,
    Irrep,
    LearntDegree,
    RelaxedBasis,
    SimpleKind,
    SteerableConv,
    StrictDegree,
    plane_group,
    steerable_kernels,
)
from cryoeq.equivariance.groups import permute_pixels

GROUPS = ("c1", "d1", "c4", "d4", "c8", "so2", "o2")
PAIRS: tuple[tuple[FieldKind, SimpleKind], ...] = (("scalar", "hidden"), ("hidden", "vector"), ("vector", "scalar"))


def concentrate(degree: LearntDegree, generator: torch.Generator, strength: float) -> None:
    """At the identity, as far as the band limit lets it, or anywhere."""
    peak = degree.values[0]
    degree.logit.data = strength * peak / float(peak @ peak)
    degree.logit.data += 0.5 * (strength < 1) * torch.randn(degree.logit.shape, generator=generator)


@pytest.mark.parametrize("name", GROUPS)
def test_a_uniform_likelihood_is_the_strict_degree(name: str) -> None:
    group = plane_group(name)
    learnt, strict = LearntDegree(group, 2), StrictDegree(group)
    assert isinstance(learnt, EquivarianceDegree)
    assert isinstance(strict, EquivarianceDegree)
    for irrep in learnt.irreps:
        torch.testing.assert_close(learnt.coefficient(irrep), strict.coefficient(irrep), atol=1e-6, rtol=0)
    assert float(learnt.divergence().detach()) == pytest.approx(0, abs=1e-6)
    assert float(learnt.misalignment().detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", GROUPS)
def test_the_coefficient_of_the_trivial_irrep_is_one(name: str, generator: torch.Generator) -> None:
    degree = LearntDegree(plane_group(name), 2)
    concentrate(degree, generator, 0.0)
    torch.testing.assert_close(degree.coefficient(Irrep(0)), torch.ones(1, 1), atol=1e-6, rtol=0)
    assert float(degree.likelihood().detach().min()) > 0
    assert name == "c1" or float(degree.divergence().detach()) > 0


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("name", ["c4", "d4", "so2", "o2"])
def test_a_uniform_likelihood_leaves_the_steerable_kernels(name: str, pair: tuple[FieldKind, SimpleKind]) -> None:
    """Wigner and Eckart: all others are exactly 0."""
    group = plane_group(name)
    kernels = RelaxedBasis(group, *pair, 3, LearntDegree(group, 2))().detach()
    steerable = steerable_kernels(group, *pair, 3)
    torch.testing.assert_close(kernels[: len(steerable)], steerable, atol=0, rtol=0)
    assert kernels[len(steerable) :].abs().max() < 1e-6
    assert len(kernels) > len(steerable)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize(("name", "frequency"), [("c2", 1), ("d1", 1), ("c4", 2), ("d4", 2)])
def test_kernels_are_the_weighted_average_over_the_group(
    name: str, frequency: int, pair: tuple[FieldKind, SimpleKind], generator: torch.Generator
) -> None:
    """The definition: free filters, those of a likelihood at the identity, rotated and averaged with the likelihood."""
    group = plane_group(name)
    degree = LearntDegree(group, frequency)
    basis = RelaxedBasis(group, *pair, 3, degree)
    weights = torch.randn(basis.count, generator=generator)
    concentrate(degree, generator, 60.0)
    free = torch.einsum("b,boiyx->oiyx", weights, basis().detach())
    assert torch.linalg.matrix_rank(basis().detach().flatten(1), rtol=1e-4) == basis.count
    # Six harmonics fit on 3 x 3 pixels, for every entry of the matrix.
    assert basis.count == 6 * group.dim(pair[0]) * group.dim(pair[1])
    concentrate(degree, generator, 0.0)
    average = torch.zeros_like(free)
    for weight, g in zip(degree.likelihood().detach(), degree.elements.round(), strict=True):
        out, into = (group.action(kind, g).to(free) for kind in (pair[1], pair[0]))
        average += weight * torch.einsum("oa,aiyx,ji->ojyx", out, permute_pixels(free, g), into)
    found = torch.einsum("b,boiyx->oiyx", weights, basis().detach())
    torch.testing.assert_close(found, average / len(degree.elements), atol=1e-5, rtol=1e-4)


def learn(target: str, generator: torch.Generator) -> LearntDegree:
    """A perceptron of 2-D vectors, strict but for its last layer, trained to predict their norm or their direction."""
    group = plane_group("so2")
    torch.manual_seed(0)
    degree = LearntDegree(group, 2)
    first = SteerableConv(group, (1, "vector"), (8, "hidden"))
    activation = FieldActivation(group, 8)
    last = SteerableConv(
        group, (8, "hidden"), (1, "scalar"), bias=True, basis=RelaxedBasis(group, "hidden", "scalar", 1, degree)
    )
    parameters = {*first.parameters(), *activation.parameters(), *last.parameters(), *degree.parameters()}
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    for _ in range(150):
        vectors = torch.randn(128, 2, 1, 1, generator=generator)
        norm = vectors.norm(dim=1, keepdim=True)
        wanted = norm if target == "norm" else vectors[:, :1] / norm
        error = (last(activation(first(vectors))) - wanted).square().mean()
        loss = error + 0.02 * degree.divergence() + 0.02 * degree.misalignment()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return degree


def test_the_norm_of_a_vector_is_found_invariant_and_its_direction_is_not(generator: torch.Generator) -> None:
    invariant, broken = learn("norm", generator), learn("direction", generator)
    assert float(invariant.divergence().detach()) < 0.005
    assert float(broken.divergence().detach()) > 0.05
    log: Tensor = broken.likelihood().detach().log()
    assert float(log[0]) > float(log.max()) - 0.2, "the regulariser makes the identity the mode"


def test_the_divergence_from_an_earlier_layer_gives_that_layer_no_gradient(generator: torch.Generator) -> None:
    group = plane_group("c4")
    earlier, later = LearntDegree(group, 2), LearntDegree(group, 2)
    concentrate(earlier, generator, 0.0)
    concentrate(later, generator, 0.0)
    divergence = later.divergence(earlier)
    assert float(divergence.detach()) > 0
    divergence.backward()
    assert earlier.logit.grad is None
    assert later.logit.grad is not None


def test_a_relaxed_basis_of_version_0_1_is_refused_where_signs_have_changed() -> None:
    for name, is_refused in (("d4", True), ("c4", False)):
        group = plane_group(name)
        basis = RelaxedBasis(group, "scalar", "hidden", 3, LearntDegree(group, 1))
        state = basis.state_dict()
        basis.load_state_dict(state)
        state._metadata[""]["version"] = 1  # type: ignore[attr-defined]
        if is_refused:
            with pytest.raises(RuntimeError, match=r"coefficients of version 0\.1"):
                basis.load_state_dict(state)
        else:
            basis.load_state_dict(state)
