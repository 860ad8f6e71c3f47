"""Optics groups, and the CTF parameters of particles."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Optics:
    """One optics group: parameters that its particles share.

    Args:
        name: name of the group (rlnOpticsGroupName).
        pixel_size_angstrom: pixel size of the particle images.
        voltage_kv: acceleration voltage.
        spherical_aberration_mm: spherical aberration Cs.
        amplitude_contrast: amplitude contrast Q0, between 0 and 1.
        is_ctf_premultiplied: whether the images were multiplied by their CTF (rlnCtfDataAreCtfPremultiplied).
    """

    name: str
    pixel_size_angstrom: float
    voltage_kv: float
    spherical_aberration_mm: float
    amplitude_contrast: float
    is_ctf_premultiplied: bool = False


@dataclass(frozen=True)
class CtfParameters:
    """Parameters of the contrast transfer function, one value per particle.

    Args:
        defocus_u_angstrom: larger defocus, positive under focus.
        defocus_v_angstrom: smaller defocus.
        defocus_angle_rad: angle from the x axis to the direction of defocus_u.
        phase_shift_rad: phase shift of a phase plate, 0 without one.
        bfactor_angstrom2: B-factor of the envelope exp(-B s^2 / 4), 0 without one.
        scale: factor on the whole function, 1 by default.
        voltage_kv: acceleration voltage.
        spherical_aberration_mm: spherical aberration Cs.
        amplitude_contrast: amplitude contrast Q0, between 0 and 1.
        is_premultiplied: 1 where the image was multiplied by this CTF, so that the forward model needs its square; else
            0.
        is_phase_flipped: 1 where the image was multiplied by the sign of a CTF, so that the forward model needs that
            factor too; else 0.
        flipped_by: the CTF whose sign that was, where these parameters were refined since; None for these themselves,
            so that the factor makes their absolute value.
    """

    defocus_u_angstrom: Float[Tensor, " batch"]
    defocus_v_angstrom: Float[Tensor, " batch"]
    defocus_angle_rad: Float[Tensor, " batch"]
    phase_shift_rad: Float[Tensor, " batch"]
    bfactor_angstrom2: Float[Tensor, " batch"]
    scale: Float[Tensor, " batch"]
    voltage_kv: Float[Tensor, " batch"]
    spherical_aberration_mm: Float[Tensor, " batch"]
    amplitude_contrast: Float[Tensor, " batch"]
    is_premultiplied: Float[Tensor, " batch"]
    is_phase_flipped: Float[Tensor, " batch"]
    flipped_by: "CtfParameters | None" = None

    def __len__(self) -> int:
        return len(self.defocus_u_angstrom)

    def __getitem__(self, rows: slice | Int[Tensor, " rows"]) -> "CtfParameters":
        return self.each(lambda values: values[rows])

    def to(self, device: torch.device) -> "CtfParameters":
        """The same parameters on another device."""
        return self.each(lambda values: values.to(device))

    def each(self, change: Callable[[Tensor], Tensor]) -> "CtfParameters":
        """The same parameters after a change of each."""
        names = [field.name for field in fields(self) if field.name != "flipped_by"]
        flipped_by = None if self.flipped_by is None else self.flipped_by.each(change)
        return CtfParameters(**{name: change(getattr(self, name)) for name in names}, flipped_by=flipped_by)
