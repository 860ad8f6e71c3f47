"""Batch norm and nonlinearity on fields of any kind, by the norms of their irreps: exact for every group.

Weiler and Cesa 2019, General E(2)-equivariant steerable CNNs (arXiv 1911.08251), section 2.6: norm and gated
nonlinearities.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoeq.equivariance.fields import FieldKind, representation
from cryoeq.equivariance.groups import PlaneGroup
from cryoeq.equivariance.irreps import Irrep
from cryoeq.equivariance.nonlinearity import disc

GateKind = Literal["norm", "gated"]

_FIRST_THRESHOLD = 0.5


class IrrepActivation(nn.Module):
    """Batch norm and ReLU on invariant components; those of every other irrep are scaled by an invariant number.

    The mean square of a field's rotating components, over batch and pixels, is normalised to 1. With "norm" the scale
    of an irrep's components is a ReLU of their norm beyond a learnt threshold, over the norm; with "gated" it is a
    sigmoid of a learnt combination of all invariant components at the same pixel. Maps are windowed as by
    ``FieldActivation``.

    Args:
        group: symmetry group of the layer.
        fields: number of fields of the maps.
        kind: kind of the fields; for "gated" one with an invariant component.
        gate: source of the scale, "norm" or "gated".
        momentum: weight of a new batch in the running means that evaluation uses.
        epsilon: number added to the mean squares.
    """

    running_power: Tensor
    to_irreps: Tensor
    membership: Tensor
    invariant: Tensor
    rotating: Tensor

    def __init__(
        self,
        group: PlaneGroup,
        fields: int,
        kind: FieldKind = "hidden",
        *,
        gate: GateKind = "gated",
        momentum: float = 0.1,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.is_windowed = not group.is_grid_exact
        self.fields, self.gate, self.momentum, self.epsilon = fields, gate, momentum, epsilon
        change, owners, is_invariant = _irreps_of(group, kind)
        n_irreps = len(is_invariant)
        membership = torch.nn.functional.one_hot(torch.from_numpy(owners), n_irreps)
        default = torch.get_default_dtype()
        self.register_buffer("to_irreps", torch.from_numpy(change).to(default), persistent=False)
        # Invariant components, rotating components, and the irrep that each of the latter belongs to.
        is_fixed = torch.from_numpy(is_invariant[owners])
        belongs = membership[~is_fixed][:, torch.from_numpy(~is_invariant)]
        self.register_buffer("membership", belongs.to(default), persistent=False)
        self.register_buffer("invariant", is_fixed.nonzero().squeeze(1), persistent=False)
        self.register_buffer("rotating", (~is_fixed).nonzero().squeeze(1), persistent=False)
        n_invariant = int(is_invariant.sum())
        if gate == "gated" and n_invariant == 0:
            raise ValueError(f"a field of {kind} of {group.name} has no invariant component to gate it with")
        self.norm = nn.BatchNorm1d(n_invariant * fields, momentum=momentum, eps=epsilon) if n_invariant else None
        n_rotating = (n_irreps - n_invariant) * fields
        self.gates = nn.Linear(n_invariant * fields, n_rotating) if gate == "gated" and n_rotating else nn.Identity()
        is_cut = gate == "norm" and n_rotating > 0
        self.threshold = nn.Parameter(torch.full((n_rotating,), _FIRST_THRESHOLD)) if is_cut else None
        self.register_buffer("running_power", torch.ones(fields))

    def forward(self, maps: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        """The activated fields, in the same layout."""
        batch, channels, height, width = maps.shape
        rows = maps.permute(0, 2, 3, 1).reshape(-1, channels // self.fields, self.fields)
        components = torch.einsum("ij,njf->nif", self.to_irreps, rows)
        invariant, rotating = components[:, self.invariant], components[:, self.rotating]
        if self.norm is not None:
            invariant = self.norm(invariant.flatten(1)).view_as(invariant)
        if rotating.shape[1]:
            rotating = self._normalise(rotating)
            rotating = rotating * (self.membership @ self._scales(invariant, self.membership.T @ rotating.square()))
        result = torch.empty_like(components)
        result[:, self.invariant], result[:, self.rotating] = invariant.relu(), rotating
        activated = torch.einsum("ij,nif->njf", self.to_irreps, result)
        activated = activated.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return activated * disc(height, activated) if self.is_windowed and height > 1 else activated

    def _normalise(self, rotating: Tensor) -> Tensor:
        """Scale to mean square 1 per field, by the batch's in training and the running one in evaluation."""
        power = self.running_power
        if self.training:
            power = rotating.square().mean((0, 1))
            with torch.no_grad():
                self.running_power.lerp_(power, self.momentum)
        return rotating * (power + self.epsilon).rsqrt()

    def _scales(self, invariant: Tensor, squared_norms: Tensor) -> Tensor:
        """Factor of each irrep's components."""
        if self.threshold is not None:
            norms = (squared_norms + self.epsilon**2).sqrt()
            return (norms - self.threshold.view_as(squared_norms[0])).relu() / norms
        gates: Tensor = self.gates(invariant.flatten(1))
        return gates.sigmoid().view_as(squared_norms)


def _irreps_of(group: PlaneGroup, kind: FieldKind) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The change from a field's components to its irreps', the irrep of each, and whether each irrep is trivial."""
    acts = representation(group.name, kind)
    owners = np.concatenate([np.full(columns.shape[1], index) for index, (_, columns) in enumerate(acts.parts)])
    return acts.change.T.copy(), owners.astype(np.int64), np.array([irrep == Irrep(0) for irrep in acts.irreps])
