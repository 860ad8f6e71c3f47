"""Learnt degree of equivariance, by a likelihood over the group.

A layer averages its free kernels over the group with the likelihood lambda as weight::

    K'(x) = int lambda(h) rho_out(h) K(h^-1 x) rho_in(h)^-1 dh

A uniform likelihood keeps only the steerable kernels (Wigner and Eckart); one that is concentrated at the identity
keeps every kernel.

Veefkind and Cesa 2024, A probabilistic approach to learning the degree of equivariance in steerable CNNs (arXiv
2406.03946), sections 4 and 5.
"""

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoeq.equivariance.fields import FieldKind, Fourier, Product, SimpleKind, delta
from cryoeq.equivariance.groups import PlaneGroup
from cryoeq.equivariance.irreps import Irrep, irreps_up_to
from cryoeq.equivariance.kernels import OTHER_SIGNS, SIGNED, refuse_other_signs, steerable_kernels

_ROTATIONS = 64
"""Rotations of the grid on which the likelihood of so2 and o2 is evaluated."""
_PENALTY_PER_NAT = 0.1  # in units of the losses of the pose encoders


@runtime_checkable
class EquivarianceDegree(Protocol):
    """Weights of the group's elements in the average that makes a free kernel steerable."""

    def coefficient(self, irrep: Irrep) -> Float[Tensor, "dim dim"]:
        """The mean of an irreducible representation under the weights."""
        ...


class StrictDegree:
    """Equal weights of all elements: every layer is equivariant.

    Args:
        group: symmetry group of the layers.
    """

    def __init__(self, group: PlaneGroup) -> None:
        self.group = group

    def coefficient(self, irrep: Irrep) -> Float[Tensor, "dim dim"]:
        """Zero for every irrep that is not trivial."""
        size = self.group.dim(irrep)
        return torch.eye(size) if irrep == Irrep(0) else torch.zeros(size, size)


class LearntDegree(nn.Module):
    """A likelihood over the group, by the Fourier coefficients of its logarithm; initially uniform.

    One object may be shared by several layers.

    Args:
        group: symmetry group of the layers.
        frequency: band limit of the logarithm.
        multiplicity: number of independent likelihoods, which are one more leading axis of all results; None for one
            without that axis.
    """

    values: Tensor
    elements: Tensor

    def __init__(self, group: PlaneGroup, frequency: int, multiplicity: int | None = None) -> None:
        super().__init__()
        self.group, self.frequency = group, frequency
        kind = Fourier(frequency)
        self.register_buffer(
            "elements", group.elements(grid_exact=False, rotations=_ROTATIONS), persistent=False
        )  # fmt: skip
        peak = torch.from_numpy(delta(group.name, kind))
        rows = torch.stack([group.action(kind, g) @ peak for g in self.elements])
        self.register_buffer("values", rows.to(torch.get_default_dtype()), persistent=False)
        self.logit = nn.Parameter(torch.zeros(*(() if multiplicity is None else (multiplicity,)), rows.shape[1]))
        for index, irrep in enumerate(irreps_up_to(group.name, frequency)):
            matrices = torch.stack([group.action(irrep, g) for g in self.elements])
            self.register_buffer(f"irrep_{index}", matrices.to(torch.get_default_dtype()), persistent=False)
        self.irreps = irreps_up_to(group.name, frequency)

    def likelihood(self) -> Float[Tensor, "*multiplicity elements"]:
        """The likelihood at the elements of a grid, the identity first; their mean is 1."""
        return self._log_likelihood().exp()

    def coefficient(self, irrep: Irrep) -> Float[Tensor, "*multiplicity dim dim"]:
        """Mean of an irreducible representation under the likelihood; 1 for the trivial one."""
        matrices = getattr(self, f"irrep_{self.irreps.index(irrep)}")
        return torch.einsum("...g,gij->...ij", self.likelihood(), matrices) / len(matrices)

    def misalignment(self) -> Float[Tensor, "*multiplicity"]:
        """Log-likelihood of the most likely element minus that of the identity.

        The average over the group determines the likelihood up to a translation only; this makes the identity its mode.
        """
        log = self._log_likelihood()
        return log.amax(-1) - log[..., 0]

    def divergence(self, reference: "LearntDegree | None" = None) -> Float[Tensor, "*multiplicity"]:
        """Kullback-Leibler divergence from the uniform likelihood, or from an earlier layer's without gradient."""
        log = self._log_likelihood()
        other = torch.zeros_like(log) if reference is None else reference._log_likelihood().detach()
        return (log.exp() * (log - other)).mean(-1)

    def _log_likelihood(self) -> Tensor:
        logits = self.logit @ self.values.T
        return logits - logits.logsumexp(-1, keepdim=True) + math.log(len(self.values))


def equivariance_penalty(network: nn.Module) -> Float[Tensor, ""]:
    """Equivariance regulariser, to be added to the loss of a network; 0 where all layers are strict.

    Veefkind and Cesa, section 5: the divergence of each layer's likelihood from that of the layer before, of the first
    from the uniform one, and the lack of alignment of each.

    Args:
        network: network whose modules are in the order in which images pass them.
    """
    degrees = learnt_degrees(network)
    if not degrees:
        return next(network.parameters(), torch.zeros(())).new_zeros(())
    penalties = [
        degree.divergence(before) + degree.misalignment()
        for before, degree in zip([None, *degrees[:-1]], degrees, strict=True)
    ]
    return _PENALTY_PER_NAT * torch.stack(penalties).sum()


def learnt_degrees(network: nn.Module) -> list[LearntDegree]:
    """The learnt degrees of equivariance of a network, layer by layer."""
    return [module for module in network.modules() if isinstance(module, LearntDegree)]


class RelaxedBasis(nn.Module):
    """A kernel basis with a degree of equivariance: the steerable kernels, and the others weighted by the degree.

    Kernels that transform as an irrep psi are the components of steerable kernels to psi x out. The average over the
    group multiplies them by the likelihood's coefficient of psi, which is 0 for a uniform likelihood.

    Args:
        group: symmetry group of the layer.
        in_kind: kind of the input's fields.
        out_kind: kind of the output's fields.
        size: odd side of the kernels in pixels.
        degree: likelihood over the group, which layers may share; its irreps are those of the added kernels.
    """

    _version = SIGNED
    steerable: Tensor

    def __init__(
        self, group: PlaneGroup, in_kind: FieldKind, out_kind: SimpleKind, size: int, degree: LearntDegree
    ) -> None:
        super().__init__()
        if group.name in OTHER_SIGNS:
            refuse_other_signs(self)
        self.degree = degree
        self.register_buffer("steerable", steerable_kernels(group, in_kind, out_kind, size), persistent=False)
        self.count = len(self.steerable)
        self.irreps = [irrep for irrep in degree.irreps if irrep != Irrep(0)]
        self.columns: list[int] = []
        for index, irrep in enumerate(self.irreps):
            kernels = steerable_kernels(group, in_kind, Product(irrep, out_kind), size)
            rotating = kernels.unflatten(1, (group.dim(irrep), -1))
            # Without mirrors kernels come in pairs that a right angle of the irrep swaps: one column serves.
            self.columns.append(1 if not group.has_mirrors else group.dim(irrep))
            self.register_buffer(f"rotating_{index}", rotating, persistent=False)
            self.count += len(rotating) * self.columns[-1]

    def forward(self) -> Float[Tensor, "basis out in size size"]:
        """The kernels under the current degree."""
        parts = [self.steerable]
        for index, irrep in enumerate(self.irreps):
            weights = self.degree.coefficient(irrep)[:, : self.columns[index]]
            rotating = getattr(self, f"rotating_{index}")
            parts.append(torch.einsum("mn,bmoiyx->bnoiyx", weights, rotating).flatten(0, 1))
        return torch.cat(parts)
