"""Images of 2D crystals: one molecule in every cell of a plane lattice, tilted, with disorder."""

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

_CELLS_AT_ONCE = 256


@dataclass(frozen=True)
class Crystal:
    """A 2D crystal under the microscope.

    Args:
        basis_angstrom: cell vectors a and b as columns, in the plane of the crystal.
        in_plane_rad: direction of a in the image before the tilt, from x.
        tilt_rad: of the crystal.
        tilt_axis_rad: direction of the axis in the image, from x.
        disorder_angstrom: standard deviation of each cell's place along x and y.
    """

    basis_angstrom: Float[Tensor, "2 2"]
    in_plane_rad: float
    tilt_rad: float = 0.0
    tilt_axis_rad: float = 0.0
    disorder_angstrom: float = 0.0

    @property
    def rotation(self) -> Float[Tensor, "3 3"]:
        """RELION's matrix A of every molecule: from the frame of crystal and map to that of the image."""
        axis = torch.tensor([math.cos(self.tilt_axis_rad), math.sin(self.tilt_axis_rad), 0.0])
        in_plane = rotation_from_vector(torch.tensor([0.0, 0.0, self.in_plane_rad]))
        return rotation_from_vector(self.tilt_rad * axis) @ in_plane

    @property
    def projected_basis_angstrom(self) -> Float[Tensor, "2 2"]:
        """Cell vectors as the image shows them, as columns (x, y)."""
        return self.rotation[:2, :2].double() @ self.basis_angstrom

    def places_px(
        self, side_px: int, pixel_size_angstrom: float, margin_px: int, generator: torch.Generator
    ) -> Float[Tensor, "cells 2"]:
        """Centres (x, y) of all molecules of an image, from its pixel n // 2, with their disorder.

        Args:
            side_px: of the image.
            pixel_size_angstrom: of the image.
            margin_px: how far outside a molecule still counts.
            generator: source of chance: where the lattice begins, and the disorder.
        """
        basis_px = self.projected_basis_angstrom / pixel_size_angstrom
        reach = side_px / 2 + margin_px
        corners = torch.cartesian_prod(torch.tensor([-reach, reach]), torch.tensor([-reach, reach])).double()
        most = int(torch.linalg.solve(basis_px, corners.T).abs().max().ceil()) + 1
        counts = torch.arange(-most, most + 1)
        start = torch.rand(2, generator=generator).double()
        places = (torch.cartesian_prod(counts, counts) + start) @ basis_px.T
        places = places[(places.abs() <= reach).all(1)]
        spread_px = self.disorder_angstrom / pixel_size_angstrom
        return places + spread_px * torch.randn(len(places), 2, generator=generator).double()


def crystal_image(
    molecule: Volume, crystal: Crystal, side_px: int, generator: torch.Generator
) -> Float[Tensor, "side side"]:
    """Projection of a crystal without CTF and noise: the projection of its molecule, added up at every place.

    Args:
        molecule: map of one cell's content.
        crystal: lattice, orientation and disorder.
        side_px: of the image.
        generator: source of chance, on the CPU.
    """
    n, device = molecule.box_size_px, molecule.values.device
    plane = HalfPlane.up_to(n, (n - 1) / 2, device)
    projection = FourierSampler(molecule.values).slices(crystal.rotation[None].to(device), plane)
    reach = side_px // 2 + n // 2 - 1  # a molecule that is farther out does not reach the image
    margin = n // 2 + math.ceil(5 * crystal.disorder_angstrom / molecule.pixel_size_angstrom)
    places = crystal.places_px(side_px, molecule.pixel_size_angstrom, margin, generator)
    places = places[(places.abs() <= reach).all(1)]
    width = side_px + 2 * n
    canvas = torch.zeros(width * width, device=device)
    box = torch.arange(n, device=device)
    for part in places.to(device).split(_CELLS_AT_ONCE):
        whole = part.round()
        images = plane.images(projection * shift_phases((whole - part).float(), plane.coords, n))
        # Pixel n // 2 of the box comes to the place, counted from pixel side // 2 of the image, which is n further in.
        corner = whole.long() + side_px // 2 + n - n // 2
        rows, columns = corner[:, 1, None] + box, corner[:, 0, None] + box
        canvas.index_add_(0, (rows[:, :, None] * width + columns[:, None, :]).flatten(), images.flatten())
    return canvas.view(width, width)[n : n + side_px, n : n + side_px].contiguous()
