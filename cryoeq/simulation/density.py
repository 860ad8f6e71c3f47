"""Density maps for projection: sampled from atoms, or resampled from another map, and symmetrised on request."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoeq.domain.atoms import Atoms
from cryoeq.domain.volume import Volume
from cryoeq.geometry.fourier import HalfPlane, ifft_map
from cryoeq.runtime.batching import numbers_at_a_time
from cryoeq.simulation.slicing import FourierSampler

# Width of an atom's own potential, on top of its B-factor: a Gaussian of 0.5 Angstrom.
ATOM_BFACTOR_ANGSTROM2 = 8 * math.pi**2 * 0.5**2

# Atoms are added in tiles of about this many numbers per table of sines, which bounds the memory.
_TILE = 2**21


def sample_atoms(atoms: Atoms, box_size_px: int, pixel_size_angstrom: float) -> Volume:
    """Map of Gaussian atoms, band-limited to the Nyquist sphere of the box.

    Each coefficient is the sum over atoms of weight * exp(-(B + 20 Angstrom^2) s^2 / 4) exp(-2 pi i s.r), exactly. A
    Gaussian is separable, so the sum is a product of tables of sines, one table per axis.

    Args:
        atoms: positions about the centre of the box.
        box_size_px: side of the map.
        pixel_size_angstrom: pixel size of the map.

    Returns:
        A map whose voxels add up to the weights of the atoms.
    """
    n, side_angstrom = box_size_px, box_size_px * pixel_size_angstrom
    k = torch.arange((n + 1) // 2, device=atoms.weights.device, dtype=atoms.weights.dtype)
    totals = torch.zeros(len(k), 2, 2 * len(k), 2 * len(k), device=k.device, dtype=k.dtype)
    step = max(1, _TILE // (2 * len(k)))
    for start in range(0, len(atoms), step):
        rows = slice(start, start + step)
        exponents = (atoms.bfactors_angstrom2[rows] + ATOM_BFACTOR_ANGSTROM2) / (4 * side_angstrom**2)
        damping = torch.exp(-exponents * k.square()[:, None])
        angles = (2 * math.pi / side_angstrom) * k[:, None] * atoms.positions_angstrom[rows].T[:, None]
        waves = torch.stack([angles.cos() * damping, angles.sin() * damping], 1)  # (axis, cos or sin, k, atom)
        x, y = waves[:2].flatten(1, 2)
        z = waves[2] * atoms.weights[rows]
        planes = 1 if k.device.type == "cpu" else max(1, numbers_at_a_time(k.device, 0) // (2 * y.numel()))
        for kz in range(0, len(k), planes):
            totals[kz : kz + planes] += (z[:, kz : kz + planes].transpose(0, 1)[:, :, None] * y) @ x.T
    return Volume(_map_of_sums(totals, n) / n, pixel_size_angstrom)


def _map_of_sums(totals: Float[Tensor, "h 2 h2 h2"], n: int) -> Float[Tensor, "n n n"]:
    """Map of the coefficients within Nyquist, from sums of products of cosines and sines in (kz, ky, kx)."""
    plane = HalfPlane.up_to(n, (n - 1) / 2, totals.device)
    transform = torch.zeros(n, n, n, dtype=torch.complex64, device=totals.device)
    step = max(1, _TILE // n**2) if totals.device.type == "cpu" else len(totals)
    for first, some in zip(range(0, len(totals), step), totals.split(step), strict=True):
        cosines, sines = plane.scatter(_coefficients(some, plane)).unbind(1)
        kz = torch.arange(first, first + len(some), device=totals.device)
        transform[n // 2 + kz] = cosines - 1j * sines
        transform[n // 2 - kz] = cosines + 1j * sines
    k = torch.arange(n, device=totals.device) - n // 2
    squared = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2
    return ifft_map(transform * (squared <= ((n - 1) / 2) ** 2))


def _coefficients(totals: Float[Tensor, "kz 2 h2 h2"], plane: HalfPlane) -> Complex[Tensor, "kz 2 points"]:
    """exp(-i (kx x + ky y)) from the four products of cosines and sines, which cover both signs of kx."""
    h = totals.shape[-1] // 2
    cc, cs, sc, ss = totals[..., :h, :h], totals[..., :h, h:], totals[..., h:, :h], totals[..., h:, h:]
    positive, negative = torch.complex(cc - ss, -(sc + cs)), torch.complex(cc + ss, cs - sc)
    kx, ky = plane.coords.unbind(-1)
    return torch.where(kx >= 0, positive[..., ky, kx.abs()], negative[..., ky, kx.abs()])


def resample_map(volume: Volume, box_size_px: int, pixel_size_angstrom: float) -> Volume:
    """The same density on another grid with the same centre, by Fourier interpolation; zero outside the old box.

    Args:
        volume: a map.
        box_size_px: side of the new map.
        pixel_size_angstrom: pixel size of the new map; frequencies above the lower of both Nyquist limits are dropped.
    """
    n = volume.box_size_px
    device, dtype = volume.values.device, volume.values.dtype
    old = torch.arange(n, device=device, dtype=dtype) - n // 2
    new = (torch.arange(box_size_px, device=device, dtype=dtype) - box_size_px // 2) * (
        pixel_size_angstrom / volume.pixel_size_angstrom
    )
    limit = min(n / 2, n * volume.pixel_size_angstrom / (2 * pixel_size_angstrom))
    k = torch.arange(1, math.ceil(limit), device=device, dtype=dtype)
    offsets = new[:, None] - old
    lines = (1 + 2 * torch.cos(2 * math.pi / n * k * offsets[..., None]).sum(-1)) / n
    lines = lines * ((new >= old[0]) & (new <= old[-1]))[:, None]
    values = volume.values
    for _ in range(3):  # the last axis; then the next one, after a rotation of the axes
        values = (values @ lines.T).permute(2, 0, 1)
    return Volume(values.contiguous(), pixel_size_angstrom)


def replicate_atoms(atoms: Atoms, operators: Float[Tensor, "order 3 3"]) -> Atoms:
    """Symmetric copies of the atoms, each with its share of the weight."""
    copies: Sequence[Atoms] = [atoms.rotated(operator) for operator in operators.to(atoms.positions_angstrom)]
    return Atoms(
        torch.cat([copy.positions_angstrom for copy in copies]),
        atoms.weights.repeat(len(copies)) / len(copies),
        atoms.bfactors_angstrom2.repeat(len(copies)),
    )


def symmetrise_map(volume: Volume, operators: Float[Tensor, "order 3 3"]) -> Volume:
    """Mean of a map and its rotated copies, within the Nyquist sphere, by its transform at rotated frequencies."""
    n = volume.box_size_px
    sampler = FourierSampler(volume.values)
    k = torch.arange(n, device=volume.values.device) - n // 2
    kz, ky, kx = torch.meshgrid(k, k, k, indexing="ij")
    points = torch.stack([kx, ky, kz], -1).reshape(-1, 3)
    inside = (points.square().sum(-1) <= ((n - 1) / 2) ** 2).nonzero().squeeze(1)
    kept = points[inside].to(volume.values.dtype)
    values = torch.stack([sampler.at(kept @ operator) for operator in operators.to(kept)]).mean(0)
    transform = values.new_zeros(n**3).index_put((inside,), values)
    return Volume(ifft_map(transform.reshape(n, n, n)), volume.pixel_size_angstrom)
