"""Projection by central slices of the oversampled transform of a map, and its exact adjoint.

The transform is sampled trilinearly. Trilinear weights in Fourier space multiply the map by sinc^2 along each axis;
dividing the map by it beforehand undoes that (gridding correction), and zero-padding keeps the division mild (sinc^2 is
0.81 at the faces of the box at padding 2).

Sampling is torch's own grid_sample, insertion eight scatter-adds: the fastest of six ways each on the CPU. Both leave
out what lies beyond the transform's last sample, that is a part of the coefficients with |k| > (n - 1) / 2. Where the
gradient is wanted too, the 20 samples around a coefficient give both.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import product

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.shells import slabs
from cryoeq.runtime.batching import numbers_at_a_time
from cryoeq.runtime.random_streams import to_device_async

_SLAB_COEFFICIENTS, _COLUMNS = 2**18, 8  # of a transform that are in work at a time, at least
_LARGER_ON_GPU = 64
_MOST_KEPT = 2**18  # voxels of a box whose gridding correction is kept
_ALONG, _ACROSS = [1, 0, 0], [2, 2, 1]  # the other two axes of each
_PARALLEL_NUMBERS = 2**17  # in the sampling grid, from which it is worth sharing among threads


def gridding_correction(
    box_size_px: int, padding: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Float[Tensor, "n n n"]:
    """The real-space shadow of trilinear interpolation, sinc^2(x / (padding n)) along each axis, between 0.06 and 1.

    That of a small box is kept: not to be changed.
    """
    make = _kept_correction if box_size_px**3 <= _MOST_KEPT else _correction
    return make(box_size_px, padding, dtype, device)


def _correction(box_size_px: int, padding: int, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    x = (torch.arange(box_size_px, dtype=dtype, device=device) - box_size_px // 2) / (padding * box_size_px)
    line = torch.sinc(x).square()
    return line[:, None, None] * line[:, None] * line


_kept_correction = lru_cache(maxsize=8)(_correction)


@lru_cache(maxsize=8)
def _signs(n: int, device: torch.device) -> Int[Tensor, "n n one"]:
    """Changes of sign from voxel to voxel along z and y, none at the centre; kept, so not to be changed."""
    sign = 1 - 2 * ((torch.arange(n, device=device) - n // 2) % 2)
    return sign[:, None, None] * sign[:, None]


def prepare_slices(volume: Float[Tensor, "n n n"], padding: int = 2) -> Complex[Tensor, "m m m"]:
    """Oversampled, centred transform of a map, ready for ``extract_slices``.

    Transformed axis by axis, a few columns at a time: nothing else of its size is held beside it.

    Args:
        volume: densities (z, y, x), centre at voxel n // 2.
        padding: oversampling of the transform, m = padding n; 2 is accurate to 1e-7 in correlation.
    """
    n = volume.shape[-1]
    m = padding * n
    corrected = volume / gridding_correction(n, padding, volume.dtype, volume.device)
    lines = torch.fft.rfft(wrap_around(corrected, m, 2)) / n
    padded = lines.new_zeros(m, m, m)
    for start, stop in column_ranges(m, volume.device):
        columns = torch.fft.fft(wrap_around(lines[..., start:stop], m, 1), dim=1)
        columns = torch.fft.fftshift(torch.fft.fft(wrap_around(columns, m, 0), dim=0), dim=(0, 1))
        mates = columns.flip((0, 1, 2)).conj()
        padded[..., m // 2 - stop + 1 : m // 2 - start + 1] = mates if m % 2 else mates.roll((1, 1), (0, 1))
        end = min(stop, (m + 1) // 2)  # an even m has its Nyquist plane at the negative end alone
        padded[..., m // 2 + start : m // 2 + end] = columns[..., : end - start]
    return padded


def collect_slices(
    half_rows: Callable[[int, int], Complex[Tensor, "rows m half"]],
    box_size_px: int,
    padding: int = 2,
    *,
    like: Tensor,
) -> Float[Tensor, "n n n"]:
    """Adjoint of ``prepare_slices`` for the real inner product: from a sum of inserted slices to a map.

    Args:
        half_rows: of a range of z, the half transform: centred along z and y, and x from 0 to m / 2, where m is even
            and its Nyquist planes are zero. A coefficient with x above 0 counts for its Friedel mate too.
        box_size_px: n.
        padding: oversampling of the transform, m = padding n.
        like: tensor of the real dtype and on the device of the map.
    """
    n, m = box_size_px, padding * box_size_px
    summed = like.new_empty(m, n, m // 2 + 1, dtype=like.dtype.to_complex())
    for start, stop in slabs(m, like.device):
        summed[start:stop] = _cut_around(torch.fft.ifft(half_rows(start, stop), dim=1, norm="forward"), n, 1)
    volume = like.new_empty(n, n, n)
    for start, stop in slabs(n, like.device):
        rows = _cut_around(torch.fft.ifft(summed[:, start:stop], dim=0, norm="forward"), n, 0)
        volume[:, start:stop] = _cut_around(torch.fft.irfft(rows, n=m, norm="forward"), n, 2)
    # What is centred at sample m / 2 along z and y, and transformed as if at 0, changes sign from voxel to voxel.
    volume *= _signs(n, like.device)
    return volume.div_(gridding_correction(n, padding, like.dtype, like.device)).div_(n)


def column_ranges(m: int, device: torch.device | None = None) -> list[tuple[int, int]]:
    """Ranges of x from 0 to m // 2 of a half transform of side m, so that few columns are in work at a time.

    Args:
        m: side of the transform.
        device: where they are worked on; None for the CPU. A GPU gets more at a time, lest it wait for its orders.
    """
    on_gpu = device is not None and device.type == "cuda"
    step = max(_COLUMNS, _SLAB_COEFFICIENTS * (_LARGER_ON_GPU if on_gpu else 1) // m**2)
    return [(start, min(start + step, m // 2 + 1)) for start in range(0, m // 2 + 1, step)]


def wrap_around(array: Tensor, size: int, axis: int) -> Tensor:
    """An axis of n samples with its centre (index n // 2) at 0, zeros up to a size, and what is left of the centre.

    Args:
        array: array of any shape.
        size: length of the axis afterwards.
        axis: which.
    """
    n = array.shape[axis]
    shape = list(array.shape)
    shape[axis] = size - n
    left, right = array.narrow(axis, 0, n // 2), array.narrow(axis, n // 2, n - n // 2)
    return torch.cat([right, array.new_zeros(shape), left], dim=axis)


def _cut_around(array: Tensor, size: int, axis: int) -> Tensor:
    """The samples of an axis around 0, which is its first one, centred at index size // 2."""
    left = array.narrow(axis, array.shape[axis] - size // 2, size // 2)
    return torch.cat([left, array.narrow(axis, 0, size - size // 2)], dim=axis)


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
    position = torch.stack(offsets)
    is_low = position < 0.5
    # Four samples of three faces across each axis: the lower and the higher one of the cell, and the next one beyond.
    around = _around(cell, is_low, m)
    first, second, third, fourth = padded.flatten().index_select(0, around.flatten()).view(around.shape)
    along, across = (torch.stack([offsets[axis] for axis in axes])[:, None] for axes in (_ALONG, _ACROSS))
    near, far = first + along * (second - first), third + along * (fourth - third)
    low, high, beyond = (near + across * (far - near)).unbind(1)
    within, outside = high - low, torch.where(is_low, low - beyond, beyond - high)
    slices = low[2] + position[2] * within[2]
    gradient = within + (position - 0.5).abs() * (outside - within)
    return slices, gradient * samples_per_cycle


def _around(
    cell: Int[Tensor, "batch points"], is_low: Bool[Tensor, "3 batch points"], m: int
) -> Int[Tensor, "4 3 3 batch points"]:
    """Samples around each cell: four of each axis' lower and higher face, and of the next beyond the nearer.

    Args:
        cell: first sample of each cell, in the flattened transform.
        is_low: whether the lower face is nearer.
        m: side of the transform.
    """
    corners, steps, below, above = _neighbours(m, cell.device)
    cell = cell.to(corners.dtype)
    beyond = torch.where(is_low, below, above)[:, None]
    faces = torch.cat([steps.expand(3, 2, *cell.shape), beyond], 1) + cell
    return faces + corners


@lru_cache(maxsize=8)
def _neighbours(m: int, device: torch.device) -> tuple[Int[Tensor, "..."], ...]:
    """Steps, kept: within the faces of each axis; to the lower and the higher face; to the next below and above."""
    strides = torch.tensor([1, m, m * m], dtype=torch.int32 if m**3 < 2**31 else torch.int64)  # the fewer bytes
    along, across = strides[_ALONG], strides[_ACROSS]
    corners = torch.stack([torch.zeros_like(along), along, across, along + across])[:, :, None]
    steps = torch.stack([torch.zeros_like(strides), strides], 1)
    return tuple(to_device_async(table[..., None, None], device) for table in (corners, steps, -strides, 2 * strides))


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
    volumes = channels.new_zeros(len(channels), side, side, side)
    _scatter(volumes, channels.unbind(), positions, (m // 2, m // 2, m // 2))
    return volumes[:, :m, :m, :m]


def insert_half(
    sums: Float[Tensor, "3 side side half"],
    slices: Complex[Tensor, "batch points"],
    weights: Float[Tensor, "batch points"],
    rotations: Float[Tensor, "batch 3 3"],
    plane: HalfPlane,
) -> None:
    """Add slices to half a transform in place, each coefficient spread over its eight neighbours.

    A coefficient with negative x is added as its Friedel mate. Where x is 0 both halves of the plane are filled as they
    come: its sums are those of a coefficient and of its mate.

    Args:
        sums: real part, imaginary part and weight, with axes (z, y, x): z and y from -m / 2 to m / 2, x from 0.
        slices: the coefficients.
        weights: weight of each.
        rotations: RELION's matrices A.
        plane: coefficients of the slices, of the unpadded box.
    """
    m = 2 * (sums.shape[-1] - 1)
    positions = slice_coordinates(rotations, plane.coords) * (m / plane.box_size_px)
    sign = torch.where(positions[..., 0] < 0, -1, 1).to(positions.dtype)
    _scatter(sums, (slices.real, slices.imag * sign, weights), positions * sign[..., None], (0, m // 2, m // 2))


def _scatter(
    volumes: Float[Tensor, "channels depth height width"],
    channels: tuple[Float[Tensor, "batch points"], ...],
    positions: Float[Tensor, "batch points 3"],
    origin: tuple[int, int, int],
) -> None:
    """Add values of each channel to the eight samples around their positions (x, y, z) from an origin, in place."""
    _, _, height, width = volumes.shape
    low = positions.floor()
    upper = positions - low
    x, y, z = low.long().unbind(-1)
    first = ((z + origin[2]) * height + y + origin[1]) * width + x + origin[0]
    if volumes.device.type == "cuda":
        _scatter_at_once(volumes, channels, first, upper)
        return
    weights = (1 - upper, upper)
    for dz, dy, dx in product((0, 1), repeat=3):
        index = (first + ((dz * height + dy) * width + dx)).flatten()
        weight = weights[dz][..., 2] * weights[dy][..., 1] * weights[dx][..., 0]
        for channel, values in enumerate(channels):
            volumes[channel].view(-1).scatter_add_(0, index, (values * weight).flatten())


def _scatter_at_once(
    volumes: Float[Tensor, "channels depth height width"],
    channels: tuple[Float[Tensor, "batch points"], ...],
    first: Int[Tensor, "batch points"],
    upper: Float[Tensor, "batch points 3"],
) -> None:
    """Add values to the eight samples from a first one on, a few images at a time: for a GPU, few kernels."""
    corners, size = _corners(*volumes.shape[-2:], volumes.device), volumes[0].numel()
    per_image = 8 * max(1, first.shape[1]) * (2 * len(channels) + 3)
    images = max(1, numbers_at_a_time(volumes.device, 0) // per_image)
    places = torch.arange(len(channels), device=volumes.device)[:, None, None, None] * size
    for some, part, index in zip(
        torch.stack(channels).split(images, 1), upper.split(images), first.split(images), strict=True
    ):
        sides = torch.stack([1 - part, part])
        x, y, z = sides.unbind(-1)
        weights = (z[:, None, None] * y[:, None] * x).flatten(0, 2)
        everywhere = (index + corners) + places
        volumes.view(-1).index_add_(0, everywhere.flatten(), (some[:, None] * weights).flatten())


@lru_cache(maxsize=32)
def _corners(height: int, width: int, device: torch.device) -> Int[Tensor, "8 one one"]:
    """Steps from the first of eight neighbouring samples to each, x fastest; kept, so not to be changed."""
    steps = [(dz * height + dy) * width + dx for dz, dy, dx in product((0, 1), repeat=3)]
    return to_device_async(torch.tensor(steps)[:, None, None], device)


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
