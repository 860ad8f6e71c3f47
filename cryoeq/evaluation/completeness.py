"""Fourier completeness of a map: the share of its coefficients that its particles determine."""

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.optics import CtfParameters
from cryoeq.geometry.fourier import HalfPlane, shell_index
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.physics.ctf import matched_filter
from cryoeq.physics.projection import spread_slices

_BATCH_POINTS = 2**22
_LEAST_SSNR = 0.1


def fourier_completeness(
    rotations: Float[Tensor, "particles 3 3"],
    ctf: CtfParameters | None,
    ssnr: Float[Tensor, " shells"],
    *,
    box_size_px: int,
    pixel_size_angstrom: float,
    symmetry: str = "C1",
) -> Float[Tensor, " shells"]:
    """Share of the coefficients of each shell whose own spectral signal-to-noise ratio is at least 1.

    That of a coefficient is that of its shell times its sum of CTF^2 over the particles, over the mean of that sum in
    the shell: the noise of all particles is taken to be equal. Shells of a ratio below 0.1 count as empty.

    Args:
        rotations: RELION's matrices A of the particles.
        ctf: their CTF; None without.
        ssnr: signal-to-noise ratio of each shell, from shell 0 to Nyquist.
        box_size_px: side of the map.
        pixel_size_angstrom: pixel size of the map.
        symmetry: point group of the map.
    """
    n, empty = box_size_px, torch.zeros(len(ssnr))
    filled = (ssnr >= _LEAST_SSNR).nonzero().flatten()
    if not len(filled) or not len(rotations):
        return empty
    radius = min(int(filled[-1]) + 0.5, n / 2 - 1e-3)
    weights = _summed_power(rotations.float(), ctf, HalfPlane.up_to(n, radius), pixel_size_angstrom, symmetry).flatten()
    shells = shell_index(n, 3).flatten()
    inside = shells < len(ssnr)
    shells, weights = shells[inside], weights[inside]
    counts = torch.bincount(shells, minlength=len(ssnr)).clamp(min=1)
    means = empty.index_add(0, shells, weights) / counts
    own = weights * (ssnr.float() / means.clamp(min=torch.finfo(means.dtype).tiny))[shells]
    reached = (own >= 1) & (ssnr >= _LEAST_SSNR)[shells]
    return empty.index_add(0, shells, reached.float()) / counts


def _summed_power(
    rotations: Float[Tensor, "particles 3 3"],
    ctf: CtfParameters | None,
    plane: HalfPlane,
    pixel_size_angstrom: float,
    symmetry: str,
) -> Float[Tensor, "n n n"]:
    """Sum of CTF^2 over the particles at each coefficient of the map."""
    n = plane.box_size_px
    frequencies = plane.frequencies_per_angstrom(pixel_size_angstrom)
    half_turn = torch.tensor([-1.0, -1.0, 1.0]).diag()  # about the beam: from a coefficient to its Friedel mate
    weights = torch.zeros(n, n, n)
    for rows in torch.arange(len(rotations)).split(max(1, _BATCH_POINTS // len(plane))):
        power = torch.ones(len(rows), len(plane)) if ctf is None else matched_filter(ctf[rows], frequencies)[1].float()
        for element in symmetry_rotations(symmetry).float():
            turned = rotations[rows] @ element
            for views in (turned, half_turn @ turned):
                weights += spread_slices(power[None], views, plane, n)[0]
    return weights
