"""Rotations: random ones, distances, exponential, nearest rotation. A thin layer over roma."""

import math

import roma
import torch
from jaxtyping import Float
from torch import Tensor


def random_rotations(
    count: int, generator: torch.Generator, device: torch.device | None = None
) -> Float[Tensor, "count 3 3"]:
    """Rotations drawn uniformly from SO(3), by normalised Gaussian quaternions."""
    quaternions = torch.randn(count, 4, generator=generator, device=generator.device)
    rotations: Tensor = roma.unitquat_to_rotmat(quaternions / quaternions.norm(dim=-1, keepdim=True))
    return rotations.to(device or generator.device)


def rotation_angle_rad(
    first: Float[Tensor, "*batch 3 3"], second: Float[Tensor, "*batch 3 3"]
) -> Float[Tensor, "*batch"]:
    """Angle of first^T second; well-conditioned at 0 and pi (2 asin of the chordal distance)."""
    chordal = (first - second).flatten(-2).norm(dim=-1)
    return 2 * torch.asin((chordal / math.sqrt(8)).clamp(max=1.0))


def rotation_from_vector(vectors: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The exponential of so(3): axis times angle in radians to a matrix."""
    rotations: Tensor = roma.rotvec_to_rotmat(vectors)
    return rotations


def nearest_rotation(matrices: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation closest to each matrix in the Frobenius norm (special orthogonal Procrustes)."""
    rotations: Tensor = roma.special_procrustes(matrices)
    return rotations
