"""Dips of FSC curves at zeros of the CTF: found where the particles share a zero, and nowhere else."""

import math

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.optics import CtfParameters
from cryoeq.evaluation.fsc_dips import find_ctf_dips, mean_ctf_power
from cryoeq.evaluation.resolution import HALF_MAP_THRESHOLD, resolution_angstrom
from cryoeq.physics.ctf import evaluate_ctf

SHELLS, SIDE = 41, 428.8  # of the half maps: 80 px of 5.36 Å


def ctf_of(defocus_angstrom: Float[Tensor, " particles"], *, astigmatism_angstrom: float = 0.0) -> CtfParameters:
    def all_(value: float) -> Float[Tensor, " particles"]:
        return torch.full_like(defocus_angstrom, value)

    return CtfParameters(
        defocus_angstrom + astigmatism_angstrom / 2, defocus_angstrom - astigmatism_angstrom / 2, all_(0.4), all_(0.0),
        all_(0.0), all_(1.0), all_(300.0), all_(2.0), all_(0.1), all_(0.0), all_(0.0),
    )  # fmt: skip


def agreement(ctf_power: Float[Tensor, " shells"], *, falls_at: float = 40.0) -> Float[Tensor, " shells"]:
    """FSC of half maps whose signal falls off evenly, seen through the CTF: SNR / (1 + SNR)."""
    snr = ctf_power * 8 * torch.exp(-torch.arange(len(ctf_power)) / falls_at * math.log(20))
    return snr / (1 + snr)


def test_a_zero_that_all_particles_share_is_a_dip_that_ends() -> None:
    power = mean_ctf_power(ctf_of(torch.linspace(17_600, 22_800, 10)), SHELLS, SIDE)
    fsc = agreement(power)
    fsc[1:15] = 0.9  # whatever the amplitude contrast lets through
    (dip, *_) = find_ctf_dips(fsc, power)
    assert SIDE / dip.last_before == pytest.approx(resolution_angstrom(fsc, HALF_MAP_THRESHOLD, 1, SIDE))
    assert dip.last_before < int(power[15:30].argmin()) + 15 < dip.first_after
    assert bool((fsc[dip.last_before + 1 : dip.first_after] < HALF_MAP_THRESHOLD).all())
    assert bool((fsc[dip.first_after : dip.last_after + 1] >= HALF_MAP_THRESHOLD).all())
    assert bool((fsc[dip.last_after + 1 :][:1] < HALF_MAP_THRESHOLD).all())


def test_over_a_wide_range_of_defocus_no_dip_has_this_excuse() -> None:
    """The same curve: zeros of some particles are maxima of others."""
    narrow = mean_ctf_power(ctf_of(torch.linspace(17_600, 22_800, 10)), SHELLS, SIDE)
    wide = mean_ctf_power(ctf_of(torch.linspace(8_000, 30_000, 200)), SHELLS, SIDE)
    fsc = agreement(narrow)
    fsc[1:15] = 0.9
    assert find_ctf_dips(fsc, narrow)
    assert not find_ctf_dips(fsc, wide)


@pytest.mark.parametrize(
    ("below", "zeros", "expected"),
    [
        ([10, 11, 12], [11], [(9, 13, 29)]),
        ([10, 11, 12], [20], []),  # a dip elsewhere
        ([10, 11, 12, 20], [11, 20], [(9, 13, 19), (19, 21, 29)]),
        ([10, 11, 12, 20], [11], [(9, 13, 19)]),  # the second has another reason
        ([10, 11, 13, 14, 15], [11], [(9, 16, 29)]),  # one shell above is chance
        (list(range(10, 30)), [11], []),  # never comes back
        (list(range(10, 29)), [11], []),
        (list(range(1, 12)), [11], []),  # never agreed
        ([], [11], []),
    ],
)
def test_planted_dips(below: list[int], zeros: list[int], expected: list[tuple[int, int, int]]) -> None:
    fsc, power = torch.full((30,), 0.5), torch.full((30,), 0.5)
    fsc[below], power[zeros] = 0.05, 0.01
    assert [(dip.last_before, dip.first_after, dip.last_after) for dip in find_ctf_dips(fsc, power)] == expected


def test_the_mean_power_is_that_of_the_particles() -> None:
    """Of one particle without astigmatism it is the square of its CTF; of many their mean; near zero frequency Q0^2."""
    defocus = torch.tensor([12_000.0, 19_000.0])
    each = [mean_ctf_power(ctf_of(one[None]), SHELLS, SIDE) for one in defocus]
    both = mean_ctf_power(ctf_of(defocus), SHELLS, SIDE)
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)
    frequencies = torch.stack([torch.arange(SHELLS) / SIDE, torch.zeros(SHELLS)], 1)
    at_centre = evaluate_ctf(ctf_of(defocus[:1]), frequencies)[0].square()
    assert float((each[0] - at_centre).abs().max()) < 0.06  # the mean over a shell, of a curve that bends
    assert float(both[0]) == pytest.approx(0.01, abs=1e-3)
    assert bool(((both >= 0) & (both <= 1)).all())


def test_astigmatism_fills_zeros() -> None:
    power, filled = (
        mean_ctf_power(ctf_of(torch.tensor([20_000.0]), astigmatism_angstrom=astigmatism), SHELLS, SIDE)
        for astigmatism in (0.0, 6_000.0)
    )
    assert float(filled[18:24].min()) > 2 * float(power[18:24].min())
