"""RELION's Euler angles, in degrees, and the matrices A that they stand for."""

import torch
from jaxtyping import Float
from torch import Tensor


def rotations_from_euler_deg(euler_deg: Float[Tensor, "batch 3"]) -> Float[Tensor, "batch 3 3"]:
    """RELION's matrices A = Rz(-psi) Ry(-tilt) Rz(-rot).

    Args:
        euler_deg: rot, tilt, psi in degrees.
    """
    (ca, sa), (cb, sb), (cg, sg) = (
        (torch.cos(angle), torch.sin(angle)) for angle in torch.deg2rad(euler_deg).unbind(1)
    )
    rows = (
        (cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb),
        (-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb),
        (sb * ca, sb * sa, cb),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def relion_euler_deg(rotations: Float[Tensor, "batch 3 3"]) -> Float[Tensor, "batch 3"]:
    """Rot, tilt, psi in degrees of RELION's matrices A; rot and psi in [-180, 180], tilt in [0, 180].

    psi is read from A Rz(rot), which is Rz(-psi) Ry(-tilt), rather than from the last column of A: that column
    vanishes at the poles, where rot is arbitrary (what the rounding says, or 0) and only its sum with psi has a
    meaning.
    """
    rot, tilt = _view_angles_rad(rotations[:, 2])
    turned_y = torch.stack([-torch.sin(rot), torch.cos(rot), torch.zeros_like(rot)], -1)
    image_y = torch.einsum("bij,bj->bi", rotations, turned_y)
    psi = torch.atan2(image_y[:, 0], image_y[:, 1])
    return torch.rad2deg(torch.stack([rot, tilt, psi], -1))


def view_angles_deg(directions: Float[Tensor, "batch 3"]) -> Float[Tensor, "batch 2"]:
    """Rot in [-180, 180] and tilt in [0, 180], in degrees, of viewing directions (third rows of A)."""
    return torch.rad2deg(torch.stack(_view_angles_rad(directions), 1))


def _view_angles_rad(directions: Float[Tensor, "batch 3"]) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    x, y, z = directions.unbind(1)
    return torch.atan2(y, x), torch.atan2(torch.hypot(x, y), z)
