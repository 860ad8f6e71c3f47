"""Poses of particles."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Poses:
    """Orientation and in-plane shift of each particle, in RELION's sense.

    Args:
        rotations: RELION's matrix A, which takes volume coordinates (x, y, z) to image coordinates: r_image = A
            r_volume.
        shifts_angstrom: (x, y) of rlnOriginXAngst, rlnOriginYAngst: shifting the image by them centres the particle.
    """

    rotations: Float[Tensor, "batch 3 3"]
    shifts_angstrom: Float[Tensor, "batch 2"]

    def __len__(self) -> int:
        return len(self.rotations)

    def __getitem__(self, rows: slice | Int[Tensor, " rows"]) -> "Poses":
        return Poses(self.rotations[rows], self.shifts_angstrom[rows])

    def to(self, device: torch.device) -> "Poses":
        """The same poses on another device."""
        return Poses(self.rotations.to(device), self.shifts_angstrom.to(device))

    def of_other_hand(self) -> "Poses":
        """The poses under which the mirror image of the map shows the same particles: M A M, M = diag(1, 1, -1)."""
        mirror = self.rotations.new_tensor([1.0, 1.0, -1.0])
        return Poses(self.rotations * mirror * mirror[:, None], self.shifts_angstrom)
