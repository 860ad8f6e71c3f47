"""Pose head: from equivariant features to pose hypotheses for each image."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.equivariance import PlaneGroup, SteerableConv

_PARALLEL = 1e-4
"""Length of the cross product of two vectors, of norm about 1, below which the plane they span is not trusted."""


@dataclass(frozen=True)
class PoseProposals(ParticleRows):
    """Hypotheses for the pose of each image.

    Args:
        rotations: A in RELION's sense, volume to image coordinates.
        shifts_px: (x, y) in pixels of the encoder's input: shifting the image by it centres the particle.
        logits: preference among the heads; softmax gives their probabilities.
    """

    rotations: Float[Tensor, "batch heads 3 3"]
    shifts_px: Float[Tensor, "batch heads 2"]
    logits: Float[Tensor, "batch heads"]

    def __len__(self) -> int:
        return len(self.rotations)


class PoseHead(nn.Module):
    """Linear equivariant maps from hidden fields at one pixel to rotations, shifts and logits.

    Three vectors of the image plane are the columns of a 2 x 3 matrix, whose nearest orthonormal rows are the first two
    rows of A.

    Args:
        group: symmetry group of the layers.
        in_fields: number of hidden fields.
        n_heads: hypotheses per image.
        shift_scale_px: typical shift of an untrained head, in pixels of the encoder's input.
    """

    def __init__(self, group: PlaneGroup, in_fields: int, n_heads: int = 1, *, shift_scale_px: float = 1.0) -> None:
        super().__init__()
        self.n_heads, self.shift_scale_px = n_heads, shift_scale_px
        self.vectors = SteerableConv(group, (in_fields, "hidden"), (3 * n_heads, "vector"), bias=True)
        self.shifts = SteerableConv(group, (in_fields, "hidden"), (n_heads, "vector"), bias=True)
        self.logits = SteerableConv(group, (in_fields, "hidden"), (n_heads, "scalar"), bias=True)

    def forward(self, features: Float[Tensor, "batch channels 1 1"]) -> PoseProposals:
        """The hypotheses; f(g.I) = rho(g) f(I), rho(g) = diag(g, det g) on rotations, g on shifts, 1 on logits."""
        vectors, shifts, logits = (conv(features).flatten(1) for conv in (self.vectors, self.shifts, self.logits))
        vectors = vectors.unflatten(1, (2, self.n_heads, 3)).transpose(1, 2)
        shifts = shifts.unflatten(1, (2, self.n_heads)).transpose(1, 2) * self.shift_scale_px
        return PoseProposals(rotation_from_rows(vectors), shifts, logits)


def rotation_from_rows(rows: Float[Tensor, "*batch 2 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation whose first two rows are nearest to the given ones: (M M^T)^(-1/2) M, and their cross product.

    With n the normalised cross product of the rows b1 and b2, the polar factor in their plane is proportional to M plus
    its cofactors: r1 ~ b1 + b2 x n and r2 ~ b2 + n x b1. The only division that can go wrong is that of n.
    """
    first, second = _separate(*(rows / rows.flatten(-2).norm(dim=-1).clamp(min=1e-12)[..., None, None]).unbind(-2))
    normal = nn.functional.normalize(torch.linalg.cross(first, second), dim=-1)
    row_x = _unit_across(first + torch.linalg.cross(second, normal), normal)
    return torch.stack([row_x, torch.linalg.cross(normal, row_x), normal], -2)


def _unit_across(vectors: Tensor, axes: Tensor) -> Tensor:
    """Unit vectors along vectors orthogonal to unit axes, but for rounding that cancellation may have grown."""
    return nn.functional.normalize(vectors - (vectors * axes).sum(-1, keepdim=True) * axes, dim=-1)


def _separate(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The same two vectors, or a fixed choice of their plane where they are so parallel that gradients would explode.

    No continuous choice is equivariant there; about one random input in 10^8 is concerned.
    """
    is_parallel = torch.linalg.cross(first, second).norm(dim=-1, keepdim=True) < _PARALLEL
    is_short = first.norm(dim=-1, keepdim=True) < _PARALLEL
    axes = torch.eye(3, dtype=first.dtype, device=first.device)
    first = torch.where(is_parallel & is_short, axes[0].expand_as(first), first)
    least_aligned = axes[first.detach().abs().argmin(-1)]
    return first, torch.where(is_parallel, least_aligned, second)
