"""Voxel decoder: the map as a grid of densities, baseline of the implicit decoder."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from cryoeq.geometry.fourier import HalfPlane
from cryoeq.physics.projection import extract_slices, prepare_slices


def sigmoid_sphere(box_size_px: int, radius_px: float, edge_px: float = 1.0) -> Float[Tensor, "n n n"]:
    """1 inside a centred sphere, 0 outside, a sigmoid of about ``edge_px`` between."""
    axis = torch.arange(box_size_px, dtype=torch.float32) - box_size_px // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.sigmoid((radius_px - (x**2 + y**2 + z**2).sqrt()) * (2 / edge_px))


class VoxelDecoder(nn.Module):
    """Densities in real space inside a sphere, projected by central slices.

    Args:
        box_size_px: side of the map in pixels.
        generator: random number generator of the initial densities.
        start_scale: standard deviation of the initial densities, small against the signal.
        mask_radius: radius of the sphere, as a fraction of the box.
    """

    mask: Tensor

    def __init__(
        self, box_size_px: int, generator: torch.Generator, *, start_scale: float = 0.01, mask_radius: float = 0.47
    ) -> None:
        super().__init__()
        self.box_size_px = box_size_px
        self.densities = nn.Parameter(torch.randn((box_size_px,) * 3, generator=generator) * start_scale)
        self.register_buffer("mask", sigmoid_sphere(box_size_px, mask_radius * box_size_px), persistent=False)

    def forward(self, rotations: Float[Tensor, "batch 3 3"], plane: HalfPlane) -> Complex[Tensor, "batch points"]:
        """Central slices of the map at the given poses."""
        return extract_slices(prepare_slices(self.densities * self.mask), rotations, plane)

    @torch.no_grad()
    def to_map(self) -> Float[Tensor, "n n n"]:
        """The densities, axes (z, y, x)."""
        return self.densities * self.mask
