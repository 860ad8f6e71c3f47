"""Atoms of a molecule as Gaussian scatterers."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

MODEL_SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")


@dataclass(frozen=True)
class Atoms:
    """A cloud of isotropic Gaussian scatterers.

    Args:
        positions_angstrom: centres (x, y, z) of the atoms.
        weights: integral of each scatterer: its atomic number times its occupancy.
        bfactors_angstrom2: B-factor of each scatterer: its transform is weight * exp(-B s^2 / 4), so that B = 8 pi^2
            sigma^2 for a Gaussian of standard deviation sigma.
    """

    positions_angstrom: Float[Tensor, "atoms 3"]
    weights: Float[Tensor, " atoms"]
    bfactors_angstrom2: Float[Tensor, " atoms"]

    def __len__(self) -> int:
        return len(self.weights)

    def to(self, device: torch.device) -> "Atoms":
        """The same atoms on another device."""
        return Atoms(self.positions_angstrom.to(device), self.weights.to(device), self.bfactors_angstrom2.to(device))

    def centred(self) -> "Atoms":
        """The same atoms with their centre of mass at the origin."""
        mass = self.weights.double()
        centre = (mass[:, None] * self.positions_angstrom.double()).sum(0) / mass.sum()
        positions = self.positions_angstrom - centre.to(self.positions_angstrom)
        return Atoms(positions, self.weights, self.bfactors_angstrom2)

    def rotated(self, rotation: Float[Tensor, "3 3"]) -> "Atoms":
        """The same atoms rotated about the origin: r -> rotation r. An improper matrix mirrors them."""
        return Atoms(self.positions_angstrom @ rotation.T, self.weights, self.bfactors_angstrom2)

    @property
    def radius_angstrom(self) -> float:
        """Distance of the farthest atom from the origin."""
        return float(self.positions_angstrom.norm(dim=-1).max())


def is_atomic_model(path: Path) -> bool:
    """Whether the name is that of a PDB or mmCIF file, plain or gzipped."""
    return path.name.lower().removesuffix(".gz").endswith(MODEL_SUFFIXES)
