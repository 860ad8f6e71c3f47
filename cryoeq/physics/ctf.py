"""The contrast transfer function in RELION's sense.

Protein is bright: the function is +Q0 at the origin, and positive up to its first zero under focus.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.optics import CtfParameters

# hc / e-charge terms of the relativistic electron wavelength: Angstrom * sqrt(V), and 1 / V (RELION's constants).
_WAVELENGTH_ANGSTROM = 12.2643247
_RELATIVISTIC_PER_VOLT = 0.978466e-6


def electron_wavelength_angstrom(voltage_kv: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Relativistic de Broglie wavelength of electrons, in Angstrom, for an acceleration voltage in kV."""
    volts = voltage_kv * 1e3
    return _WAVELENGTH_ANGSTROM / (volts * (1 + _RELATIVISTIC_PER_VOLT * volts)).sqrt()


def evaluate_ctf(
    ctf: CtfParameters, frequencies_per_angstrom: Float[Tensor, "points 2"]
) -> Float[Tensor, "batch points"]:
    """CTF of each particle: -sin(gamma) exp(-B s^2 / 4) scale.

    Args:
        ctf: parameters of the particles.
        frequencies_per_angstrom: (x, y) spatial frequencies, in 1 / Angstrom, as ``HalfPlane`` gives them.

    Returns:
        Dimensionless, between -scale and scale, with its sign, and not squared for premultiplied images: see
        ``image_transfer``.
    """
    s2 = frequencies_per_angstrom.square().sum(-1)
    theta = torch.atan2(frequencies_per_angstrom[:, 1], frequencies_per_angstrom[:, 0])

    def per_particle(values: Tensor) -> Tensor:
        return values[:, None].to(s2.dtype)

    wavelength = per_particle(electron_wavelength_angstrom(ctf.voltage_kv))
    u, v = per_particle(ctf.defocus_u_angstrom), per_particle(ctf.defocus_v_angstrom)
    defocus = (u + v) / 2 + (u - v) / 2 * torch.cos(2 * (theta - per_particle(ctf.defocus_angle_rad)))
    cs_angstrom = per_particle(ctf.spherical_aberration_mm) * 1e7
    gamma = math.pi * wavelength * s2 * (cs_angstrom * wavelength.square() * s2 / 2 - defocus)
    offset = per_particle(torch.asin(ctf.amplitude_contrast) + ctf.phase_shift_rad)
    envelope = per_particle(ctf.scale) * torch.exp(-per_particle(ctf.bfactor_angstrom2) * s2 / 4)
    return -torch.sin(gamma - offset) * envelope


def image_transfer(
    ctf: CtfParameters, frequencies_per_angstrom: Float[Tensor, "points 2"]
) -> Float[Tensor, "batch points"]:
    """Transfer of the signal in each stored image.

    Returns:
        Its CTF; the absolute value of the CTF where the image is phase-flipped (the CTF times the sign of the one that
        it was flipped by, where that is another), and the CTF squared where it is premultiplied (also if its phases
        were flipped before).
    """
    values = _with_flipped_phases(ctf, frequencies_per_angstrom)
    return torch.where(ctf.is_premultiplied[:, None] > 0, values.square(), values)


def matched_filter(
    ctf: CtfParameters, frequencies_per_angstrom: Float[Tensor, "points 2"]
) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch points"]]:
    """The two factors of a least-squares sum over images: what multiplies the stored image, and what it then carries.

    Returns:
        (factor, power). The factor is the CTF, times the sign that the image was multiplied by where it is
        phase-flipped, or 1 where the image is premultiplied and so already carries it; the power is the CTF squared.
    """
    values = _with_flipped_phases(ctf, frequencies_per_angstrom)
    is_premultiplied = ctf.is_premultiplied[:, None] > 0
    return torch.where(is_premultiplied, torch.ones_like(values), values), values.square()


def phase_flips(
    ctf: CtfParameters, frequencies_per_angstrom: Float[Tensor, "points 2"]
) -> Float[Tensor, "batch points"]:
    """What each stored image was multiplied by when its phases were flipped: -1 or 1, and 1 where they were not.

    Args:
        ctf: parameters of the particles.
        frequencies_per_angstrom: (x, y) spatial frequencies, in 1 / Angstrom.

    Returns:
        The sign of the CTF that was stated then; 0 at its zeros.
    """
    values = evaluate_ctf(ctf if ctf.flipped_by is None else ctf.flipped_by, frequencies_per_angstrom)
    return torch.where(ctf.is_phase_flipped[:, None] > 0, values.sign(), torch.ones_like(values))


def _with_flipped_phases(
    ctf: CtfParameters, frequencies_per_angstrom: Float[Tensor, "points 2"]
) -> Float[Tensor, "batch points"]:
    """The CTF as images carry it: where their phases were flipped, times the sign that they were multiplied by."""
    values = evaluate_ctf(ctf, frequencies_per_angstrom)
    if ctf.flipped_by is None:
        return torch.where(ctf.is_phase_flipped[:, None] > 0, values.abs(), values)
    return values * phase_flips(ctf, frequencies_per_angstrom)


def with_defocus_moved(ctf: CtfParameters, by_angstrom: Float[Tensor, " particles"]) -> CtfParameters:
    """The CTF parameters with both defocus values moved.

    Args:
        ctf: parameters of the particles.
        by_angstrom: what is added.
    """
    return replace(
        ctf,
        defocus_u_angstrom=ctf.defocus_u_angstrom + by_angstrom,
        defocus_v_angstrom=ctf.defocus_v_angstrom + by_angstrom,
    )


def ctf_features(ctf: CtfParameters) -> Float[Tensor, "batch 3"]:
    """Conditioning vector of an encoder: mean defocus, and astigmatism as a vector of twice its angle.

    In micrometres from 1.5, and in tenths of a micrometre.
    """
    mean = (ctf.defocus_u_angstrom + ctf.defocus_v_angstrom) / 2e4 - 1.5
    astigmatism = (ctf.defocus_u_angstrom - ctf.defocus_v_angstrom) / 1e3
    angle = 2 * ctf.defocus_angle_rad
    return torch.stack([mean, astigmatism * angle.cos(), astigmatism * angle.sin()], -1)
