"""Errors of defocus: told apart between micrographs and particles, with standard deviations that hold."""

import pytest
import torch
from torch import Tensor

from cryoeq.reconstruction.defocus_posterior import defocus_posterior

GRID = torch.arange(-2000.0, 2001.0, 20.0)


def curves(errors: Tensor, sigma: Tensor) -> Tensor:
    """Log-likelihoods of normal measurements of these errors."""
    measured = errors + sigma * torch.randn(len(errors), generator=torch.Generator().manual_seed(1))
    return -0.5 * ((GRID - measured[:, None]) / sigma[:, None]).square()


def drawn(micrographs: float, heights: float, count: int = 2000, size: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    group = torch.arange(count) // size
    of_group = micrographs * torch.randn(count // size, generator=generator)
    return of_group[group] + heights * torch.randn(count, generator=generator), group


@pytest.mark.parametrize(("micrographs", "heights"), [(400.0, 150.0), (150.0, 400.0), (300.0, 300.0)])
def test_both_widths_are_found_and_errors_are_as_large_as_told(micrographs: float, heights: float) -> None:
    errors, group = drawn(micrographs, heights)
    found = defocus_posterior(curves(errors, torch.full((2000,), 300.0)), GRID, group)
    assert found.micrograph_sigma_angstrom == pytest.approx(micrographs, rel=0.25)
    assert found.particle_sigma_angstrom == pytest.approx(heights, rel=0.25)
    z = (errors - found.mean_angstrom) / found.sigma_angstrom
    assert float(z.square().mean().sqrt()) == pytest.approx(1, abs=0.1)
    assert float((errors - found.mean_angstrom).square().mean()) < float(errors.square().mean())


def test_particles_that_tell_nothing_follow_their_micrograph() -> None:
    errors, group = drawn(500.0, 100.0)
    likelihood = curves(errors, torch.full((2000,), 100.0))
    mute = torch.arange(2000) % 20 == 7
    likelihood[mute] = 0.0
    found = defocus_posterior(likelihood, GRID, group)
    means = torch.zeros(100).index_add(0, group, errors) / 20
    assert float((found.mean_angstrom - means[group])[mute].square().mean().sqrt()) < 60
    assert float(found.sigma_angstrom[mute].min()) > float(found.sigma_angstrom[~mute].max())


def test_a_defocus_that_is_right_is_left_alone() -> None:
    found = defocus_posterior(curves(torch.zeros(2000), torch.full((2000,), 300.0)), GRID, torch.arange(2000) // 20)
    assert float(found.mean_angstrom.square().mean().sqrt()) < 60  # 300 by the maxima


def test_particles_of_one_micrograph_each_have_errors_of_their_own() -> None:
    errors, group = drawn(0.0, 400.0, size=1)
    found = defocus_posterior(curves(errors, torch.full((2000,), 200.0)), GRID, group)
    assert float((errors - found.mean_angstrom).square().mean().sqrt()) < 200
