"""Fourier completeness: all of it under even views, little under few, and what cannot be."""

import math

import pytest
import torch
from torch import Tensor

from cryoeq.domain.optics import Optics
from cryoeq.evaluation.completeness import fourier_completeness
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.geometry.so3 import random_rotations
from cryoeq.simulation.particles import DefocusRange, draw_ctf

N, PIXEL = 24, 4.0
SHELLS = N // 2 + 1


def completeness(rotations: Tensor, ssnr: Tensor, symmetry: str = "C1", *, with_ctf: bool = False) -> Tensor:
    optics = Optics("one", PIXEL, 300.0, 2.7, 0.1)
    generator = torch.Generator().manual_seed(5)
    ctf = draw_ctf(len(rotations), optics, DefocusRange(9000.0, 20000.0, 900.0), generator) if with_ctf else None
    return fourier_completeness(rotations, ctf, ssnr, box_size_px=N, pixel_size_angstrom=PIXEL, symmetry=symmetry)


def about_z(count: int) -> Tensor:
    turns = torch.linspace(0, 2 * math.pi, count)
    rows = [[turns.cos(), turns.sin(), torch.zeros(count)], [-turns.sin(), turns.cos(), torch.zeros(count)]]
    rows.append([torch.zeros(count), torch.zeros(count), torch.ones(count)])
    return torch.stack([torch.stack(row, -1) for row in rows], 1)


@pytest.mark.parametrize("with_ctf", [False, True])
def test_even_views_determine_what_has_signal(generator: torch.Generator, with_ctf: bool) -> None:
    found = completeness(random_rotations(3000, generator), torch.full((SHELLS,), 8.0), with_ctf=with_ctf)
    assert (found[1 : N // 2 - 1] > 0.97).all()


def test_views_along_one_axis_determine_one_plane(generator: torch.Generator) -> None:
    """Two layers of coefficients about it, since a sample lies between them."""
    found = completeness(about_z(500), torch.full((SHELLS,), 3.0))
    shells = torch.arange(6, 11)
    on_plane = 2 * math.pi * shells / (4 * math.pi * shells**2)
    assert (found[6:11] < 1.6 * on_plane).all()
    assert (found[6:11] > 0.5 * on_plane).all()


def test_no_more_coefficients_reach_the_mean_than_it_allows(generator: torch.Generator) -> None:
    """The mean of all is the ratio of the shell, so that at most that share is 1 or more (Markov)."""
    ssnr = torch.linspace(3.0, 0.0, SHELLS)
    for symmetry in ("C1", "D3"):
        found = completeness(random_rotations(20, generator), ssnr, symmetry)
        assert (found <= ssnr + 1e-6).all()
        assert (found[ssnr < 0.1] == 0).all()


def test_a_symmetry_is_as_many_more_particles(generator: torch.Generator) -> None:
    few, ssnr = random_rotations(10, generator), torch.full((SHELLS,), 3.0)
    every = (few[:, None] @ symmetry_rotations("D3").float()).flatten(0, 1)
    torch.testing.assert_close(completeness(few, ssnr, "D3"), completeness(every, ssnr), atol=5e-3, rtol=0)
    assert completeness(few, ssnr)[5:10].mean() < completeness(few, ssnr, "D3")[5:10].mean()


def test_nothing_determines_nothing(generator: torch.Generator) -> None:
    assert not completeness(random_rotations(5, generator), torch.zeros(SHELLS)).any()
    assert not completeness(torch.zeros(0, 3, 3), torch.ones(SHELLS)).any()
