"""Small analytic molecules for tests: Gaussian blobs whose transforms are known in closed form."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.atoms import Atoms
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.geometry.so3 import random_rotations
from cryoeq.simulation.density import replicate_atoms

# N, CA, C, O, CB of an alpha helix: radius, angle, height (Arnott and Dover 1967, J. Mol. Biol. 30, 209-212, rounded).
_RESIDUE = ((1.55, -28, -0.9), (2.28, 0, 0), (1.69, 26, 1.1), (2.03, 24, 2.3), (3.3, -19, -0.3))


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


def alpha_helices(generator: torch.Generator, count: int = 12, residues: int = 14) -> Atoms:
    """Right-handed alpha helices, 3.6 residues and 5.4 Angstrom a turn, in random directions 20 Angstrom apart.

    Args:
        generator: source of chance.
        count: how many helices, up to 27.
        residues: of each.
    """
    radius, turn, height = torch.tensor(_RESIDUE).T
    angle = (turn + 100 * torch.arange(residues)[:, None]).deg2rad()
    rise = (height + 1.5 * (torch.arange(residues)[:, None] - residues / 2)).expand_as(angle)
    helix = torch.stack([radius * angle.cos(), radius * angle.sin(), rise], -1).flatten(0, 1)
    places = torch.cartesian_prod(*[torch.tensor([-20.0, 0.0, 20.0])] * 3)[torch.randperm(27, generator=generator)]
    rotations = random_rotations(count, generator).float()
    positions = (torch.einsum("cij,aj->cai", rotations, helix) + places[:count, None]).flatten(0, 1)
    return Atoms(positions, torch.full((len(positions),), 7.0), torch.full((len(positions),), 40.0))
