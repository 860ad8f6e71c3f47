"""Dips of an FSC curve at zeros of the contrast transfer function (CTF) that all particles share.

Where the CTFs of all particles are near zero no signal was recorded, so the half maps cannot agree there, however well
they agree beyond. Over a narrow range of defocus the first drop below the threshold is then no limit of the resolution.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.optics import CtfParameters
from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD
from cryoeq.physics.ctf import evaluate_ctf

NEAR_ZERO: Final = 0.25
"""Mean |CTF|^2 over that on either side, below which the particles share a zero."""
_MIN_RETURN = 2  # shells above the threshold: one alone is chance
_MAX_PARTICLES, _ANGLES, _RADII = 500, 12, 3  # at which the CTF is evaluated; radii per shell


@dataclass(frozen=True)
class CtfDip:
    """Shells where an FSC curve is below the threshold because the CTF of all particles is near zero.

    Args:
        last_before: last shell before the curve drops below the threshold.
        first_after: shell from which it is above again.
        last_after: last shell before it drops again.
    """

    last_before: int
    first_after: int
    last_after: int


def mean_ctf_power(ctf: CtfParameters, n_shells: int, side_angstrom: float) -> Float[Tensor, " shells"]:
    """Mean |CTF|^2 of the particles in each shell, of 500 particles at most.

    Args:
        ctf: parameters of the particles.
        n_shells: number of shells, shell 0 among them.
        side_angstrom: side of the box: shell k is at k / side.
    """
    rows = torch.linspace(0, len(ctf) - 1, min(_MAX_PARTICLES, len(ctf)), dtype=torch.float64).round().long()
    within = (torch.arange(_RADII) + 0.5) / _RADII - 0.5
    radii = (torch.arange(n_shells)[:, None] + within).clamp(min=0).flatten() / side_angstrom
    angles = torch.arange(_ANGLES) * (torch.pi / _ANGLES)
    directions = torch.stack([angles.cos(), angles.sin()], dim=1)
    frequencies = (radii[:, None, None] * directions).flatten(0, 1)
    power = evaluate_ctf(ctf[rows], frequencies).square().mean(0)
    return power.view(n_shells, -1).mean(1)


def find_ctf_dips(
    fsc: Float[Tensor, " shells"], ctf_power: Float[Tensor, " shells"], threshold: float = HALF_MAP_THRESHOLD
) -> list[CtfDip]:
    """Dips of a curve below the threshold, each at a zero of the CTF, up to the first drop that has another reason.

    Args:
        fsc: correlation per shell; shell 0, the mean density, is ignored.
        ctf_power: mean |CTF|^2 of the particles per shell.
        threshold: correlation at which the resolution is read off.
    """
    above = [True, *(fsc[1:] >= threshold).tolist()]
    dips, start = list[CtfDip](), 1
    while (dip := _next_dip(above, start)) is not None and _is_shared_zero(ctf_power, dip, start):
        dips.append(dip)
        start = dip.first_after
    return dips


def _next_dip(above: list[bool], start: int) -> CtfDip | None:
    """The first run of shells below the threshold from ``start`` on that is left again, for two shells at least."""
    dropped = _first(above, False, start)
    after = dropped
    while after < len(above):
        after = _first(above, True, after)
        end = _first(above, False, after)
        if end - after >= _MIN_RETURN and dropped > 1:
            return CtfDip(dropped - 1, after, end - 1)
        after = end
    return None


def _first(above: list[bool], wanted: bool, start: int) -> int:
    """Index of the first such entry from ``start`` on; the length where there is none."""
    return next((shell for shell in range(start, len(above)) if above[shell] is wanted), len(above))


def _is_shared_zero(ctf_power: Float[Tensor, " shells"], dip: CtfDip, start: int) -> bool:
    """Whether |CTF|^2 has a minimum near zero within a dip, between two maxima outside of it."""
    lowest = float(ctf_power[dip.last_before : dip.first_after + 1].min())
    before, after = ctf_power[start : dip.last_before + 1], ctf_power[dip.first_after : dip.last_after + 1]
    return lowest < NEAR_ZERO * min(float(before.max()), float(after.max()))
