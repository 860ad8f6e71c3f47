"""Poses of particles: in Angstrom for files and reports, in pixels for Fourier-space code."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.particle_rows import ParticleRows


@dataclass(frozen=True)
class Poses:
    """Orientation and in-plane shift of each particle, in RELION's sense.

    Args:
        rotations: RELION's matrices A, which take volume coordinates (x, y, z) to image coordinates: r_image = A
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


@dataclass(frozen=True)
class PoseSet(ParticleRows):
    """Poses as Fourier-space code needs them: a shift is a phase ramp, counted in pixels of the plane's box.

    ``to_angstrom`` and ``from_angstrom`` are the only conversion between pixels and Angstrom.

    Args:
        rotations: RELION's matrices A.
        shifts_px: (x, y) in pixels of the box: shifting the image by them centres the particle.
        box_size_px: side of the box.
    """

    rotations: Float[Tensor, "*batch 3 3"]
    shifts_px: Float[Tensor, "*batch 2"]
    box_size_px: int

    @classmethod
    def identity(cls, count: int, box_size_px: int, device: torch.device | None = None) -> "PoseSet":
        """Identity rotations without shifts."""
        rotations = torch.eye(3, device=device).repeat(count, 1, 1)
        return cls(rotations, torch.zeros(count, 2, device=device), box_size_px)

    @classmethod
    def from_angstrom(cls, poses: Poses, pixel_size_angstrom: float, box_size_px: int) -> "PoseSet":
        """Poses of files, in pixels.

        Args:
            poses: poses of a file, with shifts in Angstrom.
            pixel_size_angstrom: side of a pixel of the box.
            box_size_px: side of the box.
        """
        return cls(poses.rotations, poses.shifts_angstrom / pixel_size_angstrom, box_size_px)

    def to_angstrom(self, pixel_size_angstrom: float) -> Poses:
        """Poses for files and reports.

        Args:
            pixel_size_angstrom: side of a pixel of the box.
        """
        return Poses(self.rotations, self.shifts_px * pixel_size_angstrom)

    def __len__(self) -> int:
        return len(self.rotations)

    def in_box(self, box_size_px: int) -> "PoseSet":
        """The same poses in the pixels of another box of the same side in Angstrom."""
        if box_size_px == self.box_size_px:
            return self
        return replace(self, shifts_px=self.shifts_px * (box_size_px / self.box_size_px), box_size_px=box_size_px)
