"""Small analytic molecules for tests: Gaussian blobs whose transforms are known in closed form."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.atoms import Atoms
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.simulation.density import replicate_atoms


def gaussian_blobs(
    positions_angstrom: Float[Tensor, "blobs 3"], weights: Float[Tensor, " blobs"], sigma_angstrom: float
) -> Atoms:
    """Blobs of one width.

    Args:
        positions_angstrom: centres (x, y, z).
        weights: integral of each.
        sigma_angstrom: standard deviation of each.
    """
    bfactors = torch.full_like(weights, 8 * math.pi**2 * sigma_angstrom**2)
    return Atoms(positions_angstrom, weights, bfactors).centred()


def chiral_phantom(radius_angstrom: float = 60.0) -> Atoms:
    """A right-handed spiral of nine blobs of growing weight with an arm: no symmetry, and unlike its mirror image.

    Args:
        radius_angstrom: distance of the farthest blob from the centre of mass, at which the phantom is scaled.
    """
    turn = torch.linspace(0, 1, 9)
    angle = 2 * math.pi * 1.2 * turn
    spiral = torch.stack([angle.cos() * (1 - 0.4 * turn), angle.sin() * (1 - 0.4 * turn), 2.2 * turn - 1.1], -1)
    arm = torch.tensor([[0.9, 0.2, 0.4], [1.3, 0.5, 0.7]])
    weights = torch.cat([0.6 + turn, torch.tensor([0.8, 0.5])])
    blobs = gaussian_blobs(torch.cat([spiral, arm]), weights, 1.0)
    scale = radius_angstrom / blobs.radius_angstrom
    return gaussian_blobs(blobs.positions_angstrom * scale, weights, radius_angstrom / 8)


def random_phantom(count: int, radius_angstrom: float, generator: torch.Generator) -> Atoms:
    """Blobs at random places in a ball: for tests over many shapes.

    Args:
        count: how many blobs.
        radius_angstrom: of the ball.
        generator: source of chance.
    """
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    radii = radius_angstrom * torch.rand(count, 1, generator=generator) ** (1 / 3)
    weights = 0.5 + torch.rand(count, generator=generator)
    return gaussian_blobs(directions * radii, weights, radius_angstrom / 8)


def symmetric_phantom(symmetry: str, generator: torch.Generator) -> Atoms:
    """Blobs beside the axes of a point group, and their copies, within about 60 Angstrom.

    Args:
        symmetry: the group.
        generator: source of chance.
    """
    unit = random_phantom(12, 30.0, generator)
    aside = replace(unit, positions_angstrom=unit.positions_angstrom + torch.tensor([20.0, 12.0, 8.0]))
    return replicate_atoms(aside, symmetry_rotations(symmetry))
