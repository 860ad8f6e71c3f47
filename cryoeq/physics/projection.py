"""Projection by central slices of the oversampled transform of a map, and its exact adjoint.

The transform is sampled trilinearly. Trilinear weights in Fourier space multiply the map by sinc^2 along each axis;
dividing the map by it beforehand undoes that (gridding correction), and zero-padding keeps the division mild (sinc^2 is
0.81 at the faces of the box at padding 2).

Sampling is torch's own grid_sample, insertion eight scatter-adds: the fastest of six ways each on the CPU. Both leave
out what lies beyond the transform's last sample, that is a part of the coefficients with |k| > (n - 1) / 2. Where the
gradient is wanted too, the 20 samples around a coefficient give both.
"""

from collections.abc import Sequence
from itertools import product

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from cryoeq.geometry.fourier import HalfPlane, crop_centred, pad_centred

_MAP = (-3, -2, -1)
_PARALLEL_NUMBERS = 2**17  # in the sampling grid, from which it is worth sharing among threads


def gridding_correction(
    box_size_px: int, padding: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Float[Tensor, "n n n"]:
    """The real-space shadow of trilinear interpolation, sinc^2(x / (padding n)) along each axis, between 0.06 and 1."""
    x = (torch.arange(box_size_px, dtype=dtype, device=device) - box_size_px // 2) / (padding * box_size_px)
    line = torch.sinc(x).square()
    return line[:, None, None] * line[:, None] * line


def prepare_slices(volume: Float[Tensor, "n n n"], padding: int = 2) -> Complex[Tensor, "m m m"]:
    """Oversampled, centred transform of a map, ready for ``extract_slices``.

    Args:
        volume: densities (z, y, x), centre at voxel n // 2.
        padding: oversampling of the transform, m = padding n; 2 is accurate to 1e-7 in correlation.
    """
    n = volume.shape[-1]
    corrected = volume / gridding_correction(n, padding, volume.dtype, volume.device)
    padded = torch.fft.ifftshift(pad_centred(corrected, padding * n, 3), dim=_MAP)
    return torch.fft.fftshift(torch.fft.fftn(padded, dim=_MAP), dim=_MAP) / n


def collect_slices(padded: Complex[Tensor, "m m m"], padding: int = 2) -> Float[Tensor, "n n n"]:
    """Adjoint of ``prepare_slices`` for the real inner product: from a sum of inserted slices to a map."""
    m = padded.shape[-1]
    n = m // padding
    summed = torch.fft.fftshift(
        torch.fft.ifftn(torch.fft.ifftshift(padded, dim=_MAP), dim=_MAP, norm="forward"), dim=_MAP
    )
    return crop_centred(summed.real, n, 3) / gridding_correction(n, padding, summed.real.dtype, padded.device) / n


def extract_slices(
    padded: Complex[Tensor, "m m m"], rotations: Float[Tensor, "batch 3 3"], plane: HalfPlane
) -> Complex[Tensor, "batch points"]:
    """Central slices of a map: the orthonormal image transforms of its projections. Differentiable in both tensors.

    Args:
        padded: oversampled transform of the map, from ``prepare_slices``.
        rotations: RELION's matrices A.
        plane: coefficients to compute, of the unpadded box.
    """
    sampled = sample_slices(_as_channels(padded)[0], rotations, plane)
    return torch.complex(sampled[0], sampled[1])


def sample_slices(
    channels: Float[Tensor, "channels m m m"], rotations: Float[Tensor, "batch 3 3"], plane: HalfPlane
) -> Float[Tensor, "channels batch points"]:
    """As ``extract_slices`` for any number of real channels at the same coordinates.

    Args:
        channels: oversampled transforms, one real number per coefficient and channel.
        rotations: RELION's matrices A.
        plane: coefficients to compute, of the unpadded box.
    """
    grid = sampling_grid(rotations, plane, channels.shape[-1])
    # On the CPU only the first axis is shared among threads.
    parts = 1 if channels.requires_grad or channels.device.type != "cpu" else torch.get_num_threads()
    if parts > 1 and grid.numel() >= _PARALLEL_NUMBERS:
        lots = grid[0].tensor_split(parts, dim=1)
        size = lots[0].shape[1]
        padded = torch.cat([pad(lot, (0, 0, 0, 0, 0, size - lot.shape[1])) for lot in lots])[:, None]
        sampled = grid_sample(channels.expand(parts, *channels.shape), padded, align_corners=False)
        return torch.cat([part[:, 0, : lot.shape[1]] for part, lot in zip(sampled, lots, strict=True)], dim=1)
    sampled = grid_sample(channels[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled[0, :, 0]


def sample_slices_with_gradient(
    padded: Complex[Tensor, "m m m"], rotations: Float[Tensor, "batch 3 3"], plane: HalfPlane
) -> tuple[Complex[Tensor, "batch points"], Complex[Tensor, "3 batch points"]]:
    """As ``extract_slices``, with the gradient of the transform at each coefficient.

    The derivative of the trilinear interpolation along an axis jumps from cell to cell. Its mean over one cell's length
    around the coefficient does not: it is that of the cell and of the next, whichever is nearer, weighted by how much
    of that length they have. Beyond the last sample but one, which coefficients with |k| <= n / 2 - 1 do not reach, the
    outermost cell is continued.

    Args:
        padded: oversampled transform of the map, from ``prepare_slices``.
        rotations: RELION's matrices A.
        plane: coefficients to compute, of the unpadded box.

    Returns:
        Slices, and their derivatives along x, y and z of the map, per cycle per box.
    """
    m = padded.shape[-1]
    samples_per_cycle = m / plane.box_size_px
    positions = slice_coordinates(rotations, plane.coords) * samples_per_cycle + m // 2
    cells = positions.long().clamp(1, m - 3)
    offsets = (positions - cells).unbind(-1)
    cell = (cells[..., 2] * m + cells[..., 1]) * m + cells[..., 0]
    samples, strides, gradient = padded.flatten(), (1, m, m * m), []
    for axis, (stride, position) in enumerate(zip(strides, offsets, strict=True)):
        sides = [(strides[other], offsets[other]) for other in range(3) if other != axis]
        low, high = _face(samples, cell, sides), _face(samples, cell + stride, sides)
        is_low = position < 0.5
        beyond = _face(samples, cell + torch.where(is_low, -stride, 2 * stride), sides)
        within, outside = high - low, torch.where(is_low, low - beyond, beyond - high)
        slices = low + position * within
        gradient.append(within + (position - 0.5).abs() * (outside - within))
    return slices, torch.stack(gradient) * samples_per_cycle


def _face(
    samples: Complex[Tensor, " samples"],
    corner: Int[Tensor, "batch points"],
    sides: Sequence[tuple[int, Float[Tensor, "batch points"]]],
) -> Complex[Tensor, "batch points"]:
    """Bilinear interpolation between a corner and its neighbours: their distances, and the position between them."""
    (u, along_u), (v, along_v) = sides
    near = samples[corner] + along_u * (samples[corner + u] - samples[corner])
    far = samples[corner + v] + along_u * (samples[corner + u + v] - samples[corner + v])
    return near + along_v * (far - near)


def spread_slices(
    channels: Float[Tensor, "channels batch points"],
    rotations: Float[Tensor, "batch 3 3"],
    plane: HalfPlane,
    padded_size: int,
) -> Float[Tensor, "channels m m m"]:
    """Exact adjoint of ``sample_slices``: the sum of all slices, each coefficient spread over its eight neighbours.

    Args:
        channels: real numbers per point of the plane, for example real part, imaginary part and weight.
        rotations: RELION's matrices A.
        plane: coefficients of the slices, of the unpadded box.
        padded_size: m, side of the transform to fill.
    """
    m, side = padded_size, padded_size + 1  # one sample more, so that the last neighbour needs no test; it is cut off
    positions = slice_coordinates(rotations, plane.coords) * (m / plane.box_size_px)
    low = positions.floor()
    upper = positions - low
    weights = (1 - upper, upper)
    x, y, z = (low.long() + m // 2).unbind(-1)
    first = (z * side + y) * side + x
    volumes = channels.new_zeros(len(channels), side**3)
    for dz, dy, dx in product((0, 1), repeat=3):
        index = (first + ((dz * side + dy) * side + dx)).flatten()
        weight = weights[dz][..., 2] * weights[dy][..., 1] * weights[dx][..., 0]
        for channel, values in enumerate(channels):
            volumes[channel].scatter_add_(0, index, (values * weight).flatten())
    return volumes.reshape(-1, side, side, side)[:, :m, :m, :m]


def slice_coordinates(
    rotations: Float[Tensor, "batch 3 3"], coords: Int[Tensor, "points 2"]
) -> Float[Tensor, "batch points 3"]:
    """Coordinates of a slice in the transform of the volume: A^T (kx, ky, 0), as (x, y, z) in cycles per box."""
    return coords.to(rotations.dtype) @ rotations[:, :2, :]


def sampling_grid(
    rotations: Float[Tensor, "batch 3 3"], plane: HalfPlane, padded_size: int
) -> Float[Tensor, "1 1 batch points 3"]:
    """A^T (kx, ky, 0) in grid_sample's units: sample i of m lies at (2 i + 1) / m - 1, and the origin is sample m // 2.

    The offset rides along as a third coordinate, so that one matrix product does it all.
    """
    coords = plane.coords.to(rotations.dtype) * (2 / plane.box_size_px)
    origin = (2 * (padded_size // 2) + 1) / padded_size - 1
    homogeneous = torch.cat([coords, torch.full_like(coords[:, :1], origin)], dim=1)
    return (homogeneous @ torch.cat([rotations[:, :2], torch.ones_like(rotations[:, :1])], dim=1))[None, None]


def _as_channels(padded: Complex[Tensor, "m m m"]) -> Float[Tensor, "1 2 m m m"]:
    return torch.view_as_real(padded).permute(3, 0, 1, 2)[None]
