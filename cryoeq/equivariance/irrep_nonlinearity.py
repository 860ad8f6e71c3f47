"""Batch norm and nonlinearity on fields of any kind, by the norms of their irreducible parts: exact for every group.

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
from cryoeq.equivariance.nonlinearity import disc

GateKind = Literal["norm", "gated"]

_FIRST_THRESHOLD = 0.5


class IrrepActivation(nn.Module):
    """Batch norm and ReLU on invariant parts; every other part is scaled by a number that the group leaves alone.

    A part is what one irrep of one field holds. The mean square of a field's turning components, over batch and pixels,
    is brought to 1. With "norm" the scale is what a learnt threshold leaves of the part's own norm, with "gated" a
    sigmoid of a learnt combination of all invariant parts at the same pixel. Maps are windowed as ``FieldActivation``
    does.

    Args:
        group: the group.
        fields: number of fields.
        kind: what they are; those for "gated" need an invariant part.
        gate: what scales a part.
        momentum: weight of a new batch in the running means that evaluation uses.
        epsilon: added to the mean squares.
    """

    running_power: Tensor
    to_irreps: Tensor
    membership: Tensor
    still: Tensor
    turning: Tensor

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
        parts = len(is_invariant)
        membership = torch.nn.functional.one_hot(torch.from_numpy(owners), parts)
        default = torch.get_default_dtype()
        self.register_buffer("to_irreps", torch.from_numpy(change).to(default), persistent=False)
        # Components that the group leaves alone, the others, and which part each of these belongs to.
        is_still = torch.from_numpy(is_invariant[owners])
        belongs = membership[~is_still][:, torch.from_numpy(~is_invariant)]
        self.register_buffer("membership", belongs.to(default), persistent=False)
        self.register_buffer("still", is_still.nonzero().squeeze(1), persistent=False)
        self.register_buffer("turning", (~is_still).nonzero().squeeze(1), persistent=False)
        invariants = int(is_invariant.sum())
        if gate == "gated" and invariants == 0:
            raise ValueError(f"a field of {kind} of {group.name} has no invariant part to gate it with")
        self.norm = nn.BatchNorm1d(invariants * fields, momentum=momentum, eps=epsilon) if invariants else None
        turning = (parts - invariants) * fields
        self.gates = nn.Linear(invariants * fields, turning) if gate == "gated" and turning else nn.Identity()
        is_cut = gate == "norm" and turning > 0
        self.threshold = nn.Parameter(torch.full((turning,), _FIRST_THRESHOLD)) if is_cut else None
        self.register_buffer("running_power", torch.ones(fields))

    def forward(self, maps: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        """The activated fields, in the same layout."""
        batch, channels, height, width = maps.shape
        rows = maps.permute(0, 2, 3, 1).reshape(-1, channels // self.fields, self.fields)
        parts = torch.einsum("ij,njf->nif", self.to_irreps, rows)
        still, turning = parts[:, self.still], parts[:, self.turning]
        if self.norm is not None:
            still = self.norm(still.flatten(1)).view_as(still)
        if turning.shape[1]:
            turning = self._normalise(turning)
            turning = turning * (self.membership @ self._scales(still, self.membership.T @ turning.square()))
        result = torch.empty_like(parts)
        result[:, self.still], result[:, self.turning] = still.relu(), turning
        activated = torch.einsum("ij,nif->njf", self.to_irreps, result)
        activated = activated.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return activated * disc(height, activated) if self.is_windowed and height > 1 else activated

    def _normalise(self, turning: Tensor) -> Tensor:
        """Mean square 1 per field, by the batch's in training and the running one in evaluation."""
        power = self.running_power
        if self.training:
            power = turning.square().mean((0, 1))
            with torch.no_grad():
                self.running_power.lerp_(power, self.momentum)
        return turning * (power + self.epsilon).rsqrt()

    def _scales(self, still: Tensor, squared_norms: Tensor) -> Tensor:
        """What each part is multiplied by."""
        if self.threshold is not None:
            norms = (squared_norms + self.epsilon**2).sqrt()
            return (norms - self.threshold.view_as(squared_norms[0])).relu() / norms
        gates: Tensor = self.gates(still.flatten(1))
        return gates.sigmoid().view_as(squared_norms)


def _irreps_of(group: PlaneGroup, kind: FieldKind) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The change from a field's components to its irreps', the irrep of each, and whether each irrep is trivial."""
    acts = representation(group.name, kind)
    irreps = [acts.group.irrep(*key) for key in acts.irreps]
    owners = np.concatenate([np.full(irrep.size, place) for place, irrep in enumerate(irreps)])
    return (
        np.array(acts.change_of_basis_inv, dtype=np.float64),
        owners.astype(np.int64),
        np.array([irrep.is_trivial() for irrep in irreps]),
    )
