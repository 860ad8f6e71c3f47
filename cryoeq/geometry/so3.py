"""Rotations: random ones, distances, exponential and logarithm, nearest rotation."""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.runtime.random_streams import to_device_async


def random_rotations(
    count: int, generator: torch.Generator, device: torch.device | None = None
) -> Float[Tensor, "count 3 3"]:
    """Rotations drawn uniformly from SO(3), by normalised Gaussian quaternions (x, y, z, w)."""
    quaternions = torch.randn(count, 4, generator=generator, device=generator.device)
    unit = quaternions / quaternions.norm(dim=-1, keepdim=True)
    cross = _cross_matrix(unit[:, :3])
    rotations = torch.eye(3, device=unit.device) + 2 * (unit[:, 3, None, None] * cross + cross @ cross)
    return rotations if device is None or device == generator.device else to_device_async(rotations, device)


def rotation_angle_rad(
    first: Float[Tensor, "*batch 3 3"], second: Float[Tensor, "*batch 3 3"]
) -> Float[Tensor, "*batch"]:
    """Angle of first^T second; well-conditioned at 0 and pi (2 asin of the chordal distance)."""
    chordal = (first - second).flatten(-2).norm(dim=-1)
    return 2 * torch.asin((chordal / math.sqrt(8)).clamp(max=1.0))


def rotation_from_vector(vectors: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The exponential of so(3): axis times angle in radians to a matrix, by Rodrigues' formula."""
    angle_rad = vectors.norm(dim=-1)[..., None, None]
    cross = _cross_matrix(vectors)
    # sin(a) / a and (1 - cos(a)) / a^2, smooth at 0.
    first, second = torch.sinc(angle_rad / math.pi), torch.sinc(angle_rad / (2 * math.pi)).square() / 2
    return _identity(vectors.dtype, vectors.device) + first * cross + second * (cross @ cross)


@lru_cache(maxsize=8)
def _identity(dtype: torch.dtype, device: torch.device) -> Float[Tensor, "3 3"]:
    """Kept, so not to be changed."""
    return torch.eye(3, dtype=dtype, device=device)


def rotation_vector(rotations: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """The logarithm of SO(3): axis times angle in radians, the angle at most pi; well-conditioned at 0 and pi.

    Through the unit quaternion q, whose products 4 q q^T are linear in the matrix: the row of the largest component is
    never small. At exactly pi either of the two opposite vectors may come back.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in rotations.unbind(-2))
    rows = [
        [1 + xx - yy - zz, xy + yx, xz + zx, zy - yz],
        [xy + yx, 1 - xx + yy - zz, yz + zy, xz - zx],
        [xz + zx, yz + zy, 1 - xx - yy + zz, yx - xy],
        [zy - yz, xz - zx, yx - xy, 1 + xx + yy + zz],
    ]
    products = torch.stack([torch.stack(row, -1) for row in rows], -2)
    largest = products.diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = products.take_along_dim(largest[..., None, None], -2).squeeze(-2)
    row = torch.where(row[..., 3:] < 0, -row, row)
    imaginary, real = row[..., :3], row[..., 3:]
    length = imaginary.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return imaginary * (2 * torch.atan2(length, real) / length)


def nearest_rotation(matrices: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation closest to each matrix in the Frobenius norm (special orthogonal Procrustes).

    The derivative is that of the optimum, which exists where singular values coincide and the decomposition has none:
    R^T M stays symmetric, which gives the rotation of R when M changes.
    """
    left, _, right = torch.linalg.svd(matrices.detach())
    last = torch.linalg.det(left @ right)[..., None, None] * left[..., 2:]
    rotations = torch.cat([left[..., :2], last], -1) @ right
    stretch = rotations.mT @ matrices
    twist = torch.stack([(stretch - stretch.mT)[..., i, j] for i, j in ((2, 1), (0, 2), (1, 0))], -1)
    symmetric = (stretch + stretch.mT).detach() / 2
    trace = symmetric.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    stiffness = trace * torch.eye(3, dtype=matrices.dtype, device=matrices.device) - symmetric
    vector = torch.linalg.pinv(stiffness, hermitian=True) @ twist[..., None]
    return rotations @ rotation_from_vector((vector - vector.detach()).squeeze(-1))


def _cross_matrix(vectors: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The matrix of the cross product with each vector."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
