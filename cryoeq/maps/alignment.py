"""Alignment of a map to a reference over rotation, shift and hand.

Coarse: every rotation of an even grid over SO(3), at low resolution, with all shifts at once by FFT. Then the
best few peaks are refined continuously, at a higher resolution and with each shell weighted by how well it agrees.
Everything happens on Fourier coefficients that are whitened shell by shell, so that the few strongest ones do not
decide alone; the hand is that with the larger mean FSC at the end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Complex, Float, Float64, Int
from torch import Tensor

from cryoeq.domain.volume import Volume, require_same_frame
from cryoeq.errors import MapFileError
from cryoeq.geometry.fourier import crop_centred, fft_map, ifft_map, pad_centred
from cryoeq.geometry.so3 import rotation_angle_rad, rotation_from_vector
from cryoeq.geometry.so3_grid import so3_grid
from cryoeq.maps.lockstep import minimise_together
from cryoeq.physics.projection import prepare_slices

_PADDING = 2
_SEARCH_ORDER = 2  # 4608 rotations, neighbours about 15 degrees apart
_SEARCH_RADIUS = 7
_PEAKS = 8
_PEAK_DISTANCE_RAD = math.radians(15.0)
_REFINE_RADIUS = 12
_FINAL_RADIUS = 48
_CHUNK_POINTS = 2**20
_SPLINE_POINTS = 2**16


@dataclass(frozen=True)
class MapAlignment:
    """Alignment of a map to its reference: mirrored along z first where ``is_mirrored``, then r' = R r + d.

    Args:
        rotation: R, from the frame of the moving map to that of the reference, vectors (x, y, z) from voxel n // 2.
        shift_angstrom: d, in Angstrom.
        is_mirrored: whether the moving map has the other hand.
        correlation: mean FSC with the reference over the shells that were compared.
    """

    rotation: Float[Tensor, "3 3"]
    shift_angstrom: Float[Tensor, " 3"]
    is_mirrored: bool
    correlation: float

    def apply(self, moving: Volume) -> Volume:
        """The moving map, or another in its frame such as a half map, in the frame of the reference."""
        values = mirror_map(moving.values) if self.is_mirrored else moving.values
        return replace(
            moving, values=rotate_map(values, self.rotation, self.shift_angstrom / moving.pixel_size_angstrom)
        )


@dataclass(frozen=True)
class _Band:
    """Two maps up to a radius in Fourier space.

    Args:
        box_size_px: side of the maps before anything was cropped.
        radius: largest |k|, in cycles per box.
        coords: (x, y, z) of each coefficient with x >= 0.
        shells: ROUND(|k|) of each coefficient.
        counts: number of coefficients of each shell, 1 at least.
        reference: whitened coefficients of the reference.
        moving: oversampled transform of the moving map, whitened after it is sampled; real and imaginary part.
    """

    box_size_px: int
    radius: int
    coords: Float[Tensor, "points 3"]
    shells: Int[Tensor, " points"]
    counts: Float[Tensor, " shells"]
    reference: Complex[Tensor, " points"]
    moving: Float[Tensor, "2 m m m"]

    @property
    def scale(self) -> Float64[np.ndarray, " 6"]:
        """Steps in rotation (radians) and shift (pixels) that change the phases at the rim by about one radian."""
        rotation = 1 / (2 * math.pi * 0.25 * self.radius)
        move = self.box_size_px / (2 * math.pi * self.radius)
        return np.array([rotation] * 3 + [move] * 3)


@dataclass(frozen=True)
class _Candidate:
    """One rotation and shift with its score."""

    rotation: Float[Tensor, "3 3"]
    shift_px: Float[Tensor, " 3"]
    is_mirrored: bool
    score: float


def align_map(
    moving: Volume, reference: Volume, *, with_hand: bool, start: Float[Tensor, "3 3"] | None = None
) -> MapAlignment:
    """Rotation, shift and, on request, hand that align a map to a reference.

    Args:
        moving: map to align.
        reference: map that stays in place.
        with_hand: whether the mirror image of the moving map is tried too.
        start: a rotation R within about 10 degrees of the answer, for example the transpose of a
            ``PoseGauge.rotation``; saves the search over SO(3).

    Raises:
        MapFileError: boxes or pixel sizes that differ, or a map without contrast.
    """
    require_same_frame(moving, reference)
    for name, volume in (("map to align", moving), ("reference", reference)):
        if float(volume.values.std()) == 0:
            raise MapFileError(
                f"the {name} is the same everywhere", "Expected a map with contrast to align", "Check the file"
            )
    rotations = (so3_grid(_SEARCH_ORDER) if start is None else start.float()[None]).to(moving.values.device)
    finalists = [
        _best_in_hand(moving, reference, rotations, hand) for hand in ((False, True) if with_hand else (False,))
    ]
    best = max(finalists, key=lambda candidate: candidate.score)
    return MapAlignment(best.rotation, best.shift_px * reference.pixel_size_angstrom, best.is_mirrored, best.score)


def mirror_map(values: Float[Tensor, "n n n"]) -> Float[Tensor, "n n n"]:
    """The other hand: z -> -z about voxel n // 2, which stays in place on even boxes too.

    Args:
        values: densities (z, y, x).
    """
    return values.flip(0) if len(values) % 2 else values.flip(0).roll(1, 0)


def rotate_map(
    values: Float[Tensor, "n n n"], rotation: Float[Tensor, "3 3"], shift_px: Float[Tensor, " 3"]
) -> Float[Tensor, "n n n"]:
    """The map rotated by R about voxel n // 2, then moved by d, band-limited to Nyquist's sphere.

    Args:
        values: densities (z, y, x).
        rotation: R, acts on (x, y, z).
        shift_px: d, (x, y, z) in pixels.
    """
    n = values.shape[-1]
    padded = _spline_coefficients(values)
    rotation, shift_px = rotation.to(values), shift_px.to(values)
    k = torch.arange(n, device=values.device)
    k = torch.where(k > n // 2, k - n, k)
    half = torch.zeros(n * n * (n // 2 + 1), dtype=padded.dtype, device=values.device)
    for rows in torch.split(torch.arange(len(half), device=values.device), _SPLINE_POINTS):
        coords = torch.stack([k[rows % (n // 2 + 1)], k[rows // (n // 2 + 1) % n], k[rows // (n // 2 + 1) // n]], -1)
        inside = coords.square().sum(-1) <= (n / 2) ** 2
        coords = coords[inside].to(values)
        half[rows[inside]] = _spline_sample(padded, coords @ rotation) * _shift_phases(coords, shift_px, n)
    rotated: Tensor = torch.fft.irfftn(half.reshape(n, n, n // 2 + 1), s=values.shape)
    centred: Tensor = torch.fft.fftshift(rotated)
    return centred


def _spline_coefficients(values: Float[Tensor, "n n n"]) -> Complex[Tensor, "m m m"]:
    """Oversampled transform, prepared for cubic B-splines; its origin is at index 0, sparing large maps a copy.

    Splines between coefficients multiply the map by sinc^4 along each axis, which is divided out beforehand. Trilinear
    weights, good enough to find a pose, would leave 5 % of error in the amplitudes of a map that fills its box.
    """
    n = values.shape[-1]
    line = torch.sinc((torch.arange(n, device=values.device) - n // 2).to(values) / (_PADDING * n)) ** 4
    corrected = pad_centred(values / (line[:, None, None] * line[:, None] * line), _PADDING * n, 3)
    transform: Tensor = torch.fft.fftn(torch.fft.ifftshift(corrected))
    return transform


def _spline_sample(padded: Complex[Tensor, "m m m"], coords: Float[Tensor, "points 3"]) -> Complex[Tensor, " points"]:
    """Cubic B-splines through 64 neighbours of each point (x, y, z), in cycles per unpadded box."""
    m = padded.shape[-1]
    scaled = coords * _PADDING
    low = scaled.floor()
    t = scaled - low
    pieces = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (1 - t) ** 3 - 6 * (1 - t) ** 2 + 4, t**3]
    weights = torch.stack(pieces) / 6
    nodes = (low.long() + torch.arange(-1, 3, device=coords.device)[:, None, None]) % m
    (x, y, z), (wx, wy, wz) = nodes.unbind(-1), weights.unbind(-1)
    flat = (z[:, None, None] * m + y[:, None]) * m + x
    return (padded.flatten()[flat] * (wz[:, None, None] * wy[:, None] * wx)).sum((0, 1, 2))


def _best_in_hand(
    moving: Volume, reference: Volume, rotations: Float[Tensor, "batch 3 3"], is_mirrored: bool
) -> _Candidate:
    """Search and refine for one hand."""
    values = (mirror_map(moving.values) if is_mirrored else moving.values).float()
    target = reference.values.float()
    nyquist = moving.box_size_px // 2 - 1
    peaks = _search(_band(values, target, min(_SEARCH_RADIUS, nyquist)), rotations, is_mirrored)
    band = _band(values, target, min(_REFINE_RADIUS, nyquist))
    at_once = 1 if values.device.type == "cpu" else len(peaks)
    groups = (peaks[first : first + at_once] for first in range(0, len(peaks), at_once))
    best = max((found for group in groups for found in _refine(band, group)), key=lambda candidate: candidate.score)
    return _refine(_band(values, target, min(_FINAL_RADIUS, round(0.9 * nyquist))), [best])[0]


def _band(moving: Float[Tensor, "n n n"], reference: Float[Tensor, "n n n"], radius: int) -> _Band:
    n = moving.shape[-1]
    # Two spare shells: trilinear sampling at the rim looks one padded coefficient further out.
    size = min(n, 2 * (radius + 2))
    cropped = ifft_map(crop_centred(fft_map(moving), size, 3)).contiguous()
    k = torch.arange(-radius, radius + 1, device=moving.device)
    z, y, x = torch.meshgrid(k, k, k[radius:], indexing="ij")
    inside = (x**2 + y**2 + z**2 <= radius**2) & (x**2 + y**2 + z**2 > 0)
    x, y, z = x[inside], y[inside], z[inside]
    coords = torch.stack([x, y, z], -1).to(moving)
    shells = (coords.norm(dim=-1) + 0.5).floor().long()
    counts = coords.new_zeros(radius + 1).index_add(0, shells, coords.new_ones(len(shells))).clamp(min=1)
    origin = n // 2
    target = _whiten(fft_map(reference)[z + origin, y + origin, x + origin][None], shells, counts)[0]
    return _Band(n, radius, coords, shells, counts, target, _as_channels(prepare_slices(cropped, _PADDING)))


def _as_channels(transform: Complex[Tensor, "m m m"]) -> Float[Tensor, "2 m m m"]:
    return torch.view_as_real(transform).movedim(-1, 0).contiguous()


def _shell_mean(
    values: Float[Tensor, "batch points"], shells: Int[Tensor, " points"], counts: Float[Tensor, " shells"]
) -> Float[Tensor, "batch shells"]:
    return values.new_zeros(len(values), len(counts)).index_add(1, shells, values) / counts.to(values)


def _whiten(
    values: Complex[Tensor, "batch points"], shells: Int[Tensor, " points"], counts: Float[Tensor, " shells"]
) -> Complex[Tensor, "batch points"]:
    """Each shell scaled to a mean power of 1; an empty shell stays 0."""
    power = _shell_mean(values.real.square() + values.imag.square(), shells, counts)
    return values * power.clamp(min=torch.finfo(power.dtype).tiny).rsqrt()[:, shells]


def _sample(
    padded: Float[Tensor, "2 m m m"], coords: Float[Tensor, "points 3"], rotations: Float[Tensor, "batch 3 3"]
) -> Complex[Tensor, "batch points"]:
    """Coefficients of the rotated map at k: those of the map at R^T k, trilinearly from its oversampled transform."""
    m = padded.shape[-1]
    positions = (coords @ rotations) * _PADDING + m // 2
    # grid_sample counts from -1 at the first sample to 1 at the last.
    grid = positions * (2 / (m - 1)) - 1
    sampled = torch.nn.functional.grid_sample(padded[None], grid[None, None], align_corners=True)[0, :, 0]
    return torch.complex(sampled[0], sampled[1])


def _shift_phases(
    coords: Float[Tensor, "points 3"], shifts_px: Float[Tensor, "*batch 3"], box: int
) -> Complex[Tensor, "*batch points"]:
    """exp(-2 pi i k.d / n): moves a map by +d."""
    angles = ((coords @ shifts_px.mT).mT if shifts_px.ndim > 1 else coords @ shifts_px) * (-2 * math.pi / box)
    return torch.polar(torch.ones_like(angles), angles)


def _search(band: _Band, rotations: Float[Tensor, "batch 3 3"], is_mirrored: bool) -> list[_Candidate]:
    """The highest peaks over rotations and all shifts on a grid, no two of them close."""
    m = 2 * band.radius + 2
    x, y, z = (band.coords.long() % m).unbind(-1)
    flat = (z * m + y) * (m // 2 + 1) + x
    scores, positions = [], []
    for batch in torch.split(rotations, max(1, _CHUNK_POINTS // len(flat))):
        sampled = _whiten(_sample(band.moving, band.coords, batch), band.shells, band.counts)
        cross = sampled.new_zeros(len(batch), m * m * (m // 2 + 1))
        # The correlation at shift d sums conj(F_ref) F_mov exp(-2 pi i k.d / n): an inverse FFT of the conjugate.
        cross[:, flat] = band.reference * sampled.conj()
        correlation = torch.fft.irfftn(cross.reshape(-1, m, m, m // 2 + 1), s=(m, m, m))
        best = correlation.flatten(1).max(1)
        scores.append(best.values)
        positions.append(best.indices)
    score, position = torch.cat(scores), torch.cat(positions)
    steps = torch.stack([position % m, position // m % m, position // m**2], -1)
    shifts = torch.where(steps > m // 2, steps - m, steps) * (band.box_size_px / m)
    best, on_host = score.argsort(descending=True)[: 32 * _PEAKS], rotations.cpu()
    chosen: dict[int, float] = {}
    for row, value in zip(best.tolist(), score[best].tolist(), strict=True):
        kept = on_host[list(chosen)]
        near = rotation_angle_rad(kept, on_host[row].expand(len(kept), 3, 3)) < _PEAK_DISTANCE_RAD
        if len(chosen) < _PEAKS and not bool(near.any()):
            chosen[row] = value
    return [_Candidate(rotations[row], shifts[row].float(), is_mirrored, value) for row, value in chosen.items()]


def _refine(band: _Band, starts: Sequence[_Candidate]) -> list[_Candidate]:
    """The nearest maxima of the weighted correlation; the score of each is the mean FSC over the band."""
    device, scale = band.coords.device, torch.as_tensor(band.scale, dtype=torch.float32, device=band.coords.device)
    rotations, shifts = torch.stack([one.rotation for one in starts]), torch.stack([one.shift_px for one in starts])
    weights = _shell_fsc(band, rotations, shifts).clamp(min=0.0)[:, band.shells]

    def motion(parameters: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
        scaled = parameters * scale
        turned = rotation_from_vector(scaled[:, :3]) @ torch.stack([rotations[row] for row in rows])
        return turned, torch.stack([shifts[row] for row in rows]) + scaled[:, 3:]

    def costs(rows: list[int], parameters: Float64[np.ndarray, "some 6"]) -> tuple[np.ndarray, np.ndarray]:
        free = torch.tensor(parameters, dtype=torch.float32, device=device, requires_grad=True)
        own = torch.stack([weights[row] for row in rows])
        values = -(own * _agreement(band, *motion(free, rows))).sum(1) / own.sum(1).clamp(min=1e-12)
        (gradient,) = torch.autograd.grad(values.sum(), free)
        found = torch.cat([values.detach()[:, None], gradient], 1).double().cpu().numpy()
        return found[:, 0], found[:, 1:]

    found = minimise_together(costs, len(starts), len(scale), {"gtol": 1e-3, "maxiter": 40})
    rows = list(range(len(starts)))
    rotations, shifts = motion(torch.as_tensor(found, dtype=torch.float32, device=device), rows)
    scores = _shell_fsc(band, rotations, shifts)[:, 1:].mean(1).tolist()
    return [
        replace(start, rotation=rotations[row], shift_px=shifts[row], score=scores[row])
        for row, start in enumerate(starts)
    ]


def _agreement(
    band: _Band, rotations: Float[Tensor, "batch 3 3"], shifts_px: Float[Tensor, "batch 3"]
) -> Float[Tensor, "batch points"]:
    """Real part of conj(reference) times the moved map, both white: its mean over a shell is the FSC."""
    sampled = _whiten(_sample(band.moving, band.coords, rotations), band.shells, band.counts)
    moved = sampled * _shift_phases(band.coords, shifts_px, band.box_size_px)
    return moved.real * band.reference.real + moved.imag * band.reference.imag


def _shell_fsc(
    band: _Band, rotations: Float[Tensor, "batch 3 3"], shifts_px: Float[Tensor, "batch 3"]
) -> Float[Tensor, "batch shells"]:
    return _shell_mean(_agreement(band, rotations, shifts_px), band.shells, band.counts)
