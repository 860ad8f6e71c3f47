"""Simulated images of 2D crystals: one molecule in every cell of a plane lattice, tilted, with disorder."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.volume import Volume
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import rotation_from_vector
from cryoeq.physics.shift import shift_phases
from cryoeq.simulation.slicing import FourierSampler

_CELL_CHUNK = 256


@dataclass(frozen=True)
class Crystal:
    """A 2D crystal under the microscope.

    Args:
        basis_angstrom: cell vectors a and b as columns, in the plane of the crystal.
        in_plane_rad: angle from x to a in the image, before the tilt.
        tilt_rad: angle between the planes of the crystal and of the image.
        tilt_axis_rad: angle from x to the tilt axis in the image.
        disorder_angstrom: standard deviation of each cell's position along x and y.
    """

    basis_angstrom: Float[Tensor, "2 2"]
    in_plane_rad: float
    tilt_rad: float = 0.0
    tilt_axis_rad: float = 0.0
    disorder_angstrom: float = 0.0

    @property
    def rotation(self) -> Float[Tensor, "3 3"]:
        """RELION's matrix A of every molecule: from the frame of crystal and map to the frame of the image."""
        axis = torch.tensor([math.cos(self.tilt_axis_rad), math.sin(self.tilt_axis_rad), 0.0])
        in_plane = rotation_from_vector(torch.tensor([0.0, 0.0, self.in_plane_rad]))
        return rotation_from_vector(self.tilt_rad * axis) @ in_plane

    @property
    def projected_basis_angstrom(self) -> Float[Tensor, "2 2"]:
        """Cell vectors projected into the image, as columns (x, y)."""
        return self.rotation[:2, :2].double() @ self.basis_angstrom

    def positions_px(
        self, side_px: int, pixel_size_angstrom: float, margin_px: int, generator: torch.Generator
    ) -> Float[Tensor, "cells 2"]:
        """Centres (x, y) of all molecules of an image, relative to its pixel n // 2, with their disorder.

        Args:
            side_px: side of the image.
            pixel_size_angstrom: pixel size of the image.
            margin_px: width of a border around the image within which molecules are included.
            generator: random number generator of the lattice's origin and of the disorder.
        """
        basis_px = self.projected_basis_angstrom / pixel_size_angstrom
        reach = side_px / 2 + margin_px
        corners = torch.cartesian_prod(torch.tensor([-reach, reach]), torch.tensor([-reach, reach])).double()
        max_index = int(torch.linalg.solve(basis_px, corners.T).abs().max().ceil()) + 1
        indices = torch.arange(-max_index, max_index + 1)
        origin = torch.rand(2, generator=generator).double()
        positions = (torch.cartesian_prod(indices, indices) + origin) @ basis_px.T
        positions = positions[(positions.abs() <= reach).all(1)]
        sigma_px = self.disorder_angstrom / pixel_size_angstrom
        return positions + sigma_px * torch.randn(len(positions), 2, generator=generator).double()


def crystal_image(
    molecule: Volume, crystal: Crystal, side_px: int, generator: torch.Generator
) -> Float[Tensor, "side side"]:
    """Projection of a crystal without CTF and noise: the sum of its molecule's projections at all positions.

    Args:
        molecule: map of the content of one cell.
        crystal: lattice, orientation and disorder.
        side_px: side of the image.
        generator: random number generator, on the CPU.
    """
    n, device = molecule.box_size_px, molecule.values.device
    plane = HalfPlane.up_to(n, (n - 1) / 2, device)
    projection = FourierSampler(molecule.values).slices(crystal.rotation[None].to(device), plane)
    reach = side_px // 2 + n // 2 - 1  # the box of a molecule that is farther out lies outside the image
    margin = n // 2 + math.ceil(5 * crystal.disorder_angstrom / molecule.pixel_size_angstrom)
    positions = crystal.positions_px(side_px, molecule.pixel_size_angstrom, margin, generator)
    positions = positions[(positions.abs() <= reach).all(1)]
    width = side_px + 2 * n
    canvas = torch.zeros(width * width, device=device)
    box = torch.arange(n, device=device)
    for chunk in positions.to(device).split(_CELL_CHUNK):
        nearest = chunk.round()
        images = plane.images(projection * shift_phases((nearest - chunk).float(), plane.coords, n))
        # Pixel n // 2 of the box lies at the position, relative to pixel side // 2 of the image; the canvas has n more.
        corner = nearest.long() + side_px // 2 + n - n // 2
        rows, columns = corner[:, 1, None] + box, corner[:, 0, None] + box
        canvas.index_add_(0, (rows[:, :, None] * width + columns[:, None, :]).flatten(), images.flatten())
    return canvas.view(width, width)[n : n + side_px, n : n + side_px].contiguous()
