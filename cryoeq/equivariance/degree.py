"""How equivariant a layer is, learnt: a likelihood over the group says how far its elements may be told apart.

A free kernel is averaged over the group with the likelihood as weight, K'(x) = int lambda(h) rho_out(h) K(h^-1 x)
rho_in(h)^-1 dh. A uniform likelihood leaves the steerable kernels alone (Wigner and Eckart); one that is concentrated
at the identity leaves every kernel as it is.

Veefkind and Cesa 2024, A probabilistic approach to learning the degree of equivariance in steerable CNNs (arXiv
2406.03946), sections 4 and 5.
"""

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoeq.equivariance.fields import FieldKind, Fourier, Irrep, Product, SimpleKind, delta, irreps_up_to
from cryoeq.equivariance.groups import PlaneGroup
from cryoeq.equivariance.kernels import steerable_kernels

_ROTATIONS = 64
"""Of the grid on which the likelihood of so2 and o2 is evaluated."""
_COST = 0.1  # of a nat, in units of the losses of the pose encoders


@runtime_checkable
class EquivarianceDegree(Protocol):
    """Weights of the group's elements in the average that makes a free kernel steerable."""

    def coefficient(self, irrep: Irrep) -> Float[Tensor, "dim dim"]:
        """The mean of an irreducible representation under the weights."""
        ...


class StrictDegree:
    """All elements alike: every layer is equivariant.

    Args:
        group: the group.
    """

    def __init__(self, group: PlaneGroup) -> None:
        self.group = group

    def coefficient(self, irrep: Irrep) -> Float[Tensor, "dim dim"]:
        """Zero for every irrep that is not trivial."""
        size = self.group.dim(irrep)
        return torch.eye(size) if irrep == Irrep(0) else torch.zeros(size, size)


class LearntDegree(nn.Module):
    """A likelihood over the group, by the Fourier coefficients of its logarithm; uniform at first.

    One object may be shared by several layers.

    Args:
        group: the group.
        frequency: highest of the logarithm.
        copies: several likelihoods that know nothing of each other; what they give has one more axis, in front.
    """

    values: Tensor
    elements: Tensor

    def __init__(self, group: PlaneGroup, frequency: int, copies: int | None = None) -> None:
        super().__init__()
        self.group, self.frequency = group, frequency
        kind = Fourier(frequency)
        self.register_buffer(
            "elements", group.elements(grid_exact=False, rotations=_ROTATIONS), persistent=False
        )  # fmt: skip
        peak = torch.from_numpy(delta(group.name, kind))
        rows = torch.stack([group.action(kind, g) @ peak for g in self.elements])
        self.register_buffer("values", rows.to(torch.get_default_dtype()), persistent=False)
        self.logit = nn.Parameter(torch.zeros(*(() if copies is None else (copies,)), rows.shape[1]))
        for place, irrep in enumerate(irreps_up_to(group.name, frequency)):
            matrices = torch.stack([group.action(irrep, g) for g in self.elements])
            self.register_buffer(f"irrep_{place}", matrices.to(torch.get_default_dtype()), persistent=False)
        self.irreps = irreps_up_to(group.name, frequency)

    def likelihood(self) -> Float[Tensor, "*copies elements"]:
        """At the elements of a grid, the identity first; their mean is 1."""
        return self._log_likelihood().exp()

    def coefficient(self, irrep: Irrep) -> Float[Tensor, "*copies dim dim"]:
        """Mean of an irreducible representation under the likelihood; 1 for the trivial one, whatever was learnt."""
        matrices = getattr(self, f"irrep_{self.irreps.index(irrep)}")
        return torch.einsum("...g,gij->...ij", self.likelihood(), matrices) / len(matrices)

    def misalignment(self) -> Float[Tensor, "*copies"]:
        """How far the identity is below the most likely element, in the logarithm.

        The average over the group knows the likelihood up to a shift only; this makes the identity its mode.
        """
        log = self._log_likelihood()
        return log.amax(-1) - log[..., 0]

    def divergence(self, reference: "LearntDegree | None" = None) -> Float[Tensor, "*copies"]:
        """Kullback and Leibler's, from the uniform likelihood or from an earlier layer's, which does not learn."""
        log = self._log_likelihood()
        other = torch.zeros_like(log) if reference is None else reference._log_likelihood().detach()
        return (log.exp() * (log - other)).mean(-1)

    def _log_likelihood(self) -> Tensor:
        logits = self.logit @ self.values.T
        return logits - logits.logsumexp(-1, keepdim=True) + math.log(len(self.values))


def equivariance_penalty(network: nn.Module) -> Float[Tensor, ""]:
    """What keeps a network as equivariant as its task allows, to be added to its loss; 0 where all layers are strict.

    Veefkind and Cesa, section 5: the divergence of each layer's likelihood from that of the layer before, of the first
    from the uniform one, and the lack of alignment of each.

    Args:
        network: its layers in the order in which images pass them.
    """
    degrees = degrees_of(network)
    if not degrees:
        return next(network.parameters(), torch.zeros(())).new_zeros(())
    costs = [
        degree.divergence(before) + degree.misalignment()
        for before, degree in zip([None, *degrees[:-1]], degrees, strict=True)
    ]
    return _COST * torch.stack(costs).sum()


def degrees_of(network: nn.Module) -> list[LearntDegree]:
    """All that a network has learnt of them, layer by layer."""
    return [module for module in network.modules() if isinstance(module, LearntDegree)]


class RelaxedBasis(nn.Module):
    """A kernel basis that is as equivariant as a degree says: the steerable kernels, and all others as far as it goes.

    Kernels that turn as an irrep psi are the components of steerable kernels to psi x out. The average over the group
    multiplies them by the likelihood's coefficient of psi, which is 0 where all elements are alike.

    Args:
        group: the group.
        in_kind: kind of the input's fields.
        out_kind: kind of the output's fields.
        size: odd side in pixels.
        degree: may be shared; its irreps are those that are let in.
    """

    steerable: Tensor

    def __init__(
        self, group: PlaneGroup, in_kind: FieldKind, out_kind: SimpleKind, size: int, degree: LearntDegree
    ) -> None:
        super().__init__()
        self.degree = degree
        self.register_buffer("steerable", steerable_kernels(group, in_kind, out_kind, size), persistent=False)
        self.count = len(self.steerable)
        self.irreps = [irrep for irrep in degree.irreps if irrep != Irrep(0)]
        self.columns: list[int] = []
        for place, irrep in enumerate(self.irreps):
            kernels = steerable_kernels(group, in_kind, Product(irrep, out_kind), size)
            turning = kernels.unflatten(1, (group.dim(irrep), -1))
            # Without mirrors kernels come in pairs that a right angle of the irrep swaps: one column serves.
            self.columns.append(1 if not group.has_mirrors else group.dim(irrep))
            self.register_buffer(f"turning_{place}", turning, persistent=False)
            self.count += len(turning) * self.columns[-1]

    def forward(self) -> Float[Tensor, "basis out in size size"]:
        """The kernels under the degree of now."""
        parts = [self.steerable]
        for place, irrep in enumerate(self.irreps):
            weights = self.degree.coefficient(irrep)[:, : self.columns[place]]
            turning = getattr(self, f"turning_{place}")
            parts.append(torch.einsum("mn,bmoiyx->bnoiyx", weights, turning).flatten(0, 1))
        return torch.cat(parts)
