"""An E-step over proposed views is the full one where all are tried, and estimates it where some are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cryoeq.domain.events import result_of
from cryoeq.geometry.disk_harmonics import disk_harmonics
from cryoeq.geometry.so3 import random_rotations
from cryoeq.geometry.soft_mask import soft_sphere
from cryoeq.reconstruction.expectation import expectation_step
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.pose_likelihood import PoseGrid, PoseLikelihood
from cryoeq.reconstruction.proposed_views import ProposedViews, expectation_over_views
from cryoeq.reconstruction.reference import Reference

Make = Callable[..., Any]
RADIUS, COUNT = 6.0, 40


@pytest.fixture
def scene(make_known: Make, observe: Make) -> tuple[ParticleTransforms, PoseLikelihood, torch.Tensor]:
    """Particles, likelihood under their map, offsets."""
    generator = torch.Generator().manual_seed(4)
    known = make_known(COUNT, sigma=2.0)
    harmonics = disk_harmonics(16, RADIUS, 7.5, torch.device("cpu"))
    particles = observe(known.dataset).within(RADIUS, 16)
    grid = PoseGrid.build(1, 24, random_rotations(1, generator)[0], 0.1)
    precision = torch.full((len(particles.plane),), 0.02)
    reference = Reference.build(known.volume.values * soft_sphere(16, 6.0, 2.0), precision)
    offsets = known.shifts_px[:, None] + torch.randn(COUNT, 3, 2, generator=generator)
    return particles, PoseLikelihood.build(reference, grid, harmonics), offsets


def test_with_all_views_it_is_the_full_e_step(scene: tuple[Any, Any, Any]) -> None:
    particles, likelihood, offsets = scene
    logits = torch.randn(COUNT, len(likelihood.grid.views), generator=torch.Generator().manual_seed(1))
    proposed = ProposedViews.draw(logits, 10, 100, torch.Generator().manual_seed(2))
    for temperature in (1.0, 1.7):
        full = result_of(expectation_step(particles, likelihood, offsets, shift_sigma_px=1.5, temperature=temperature))
        found = result_of(
            expectation_over_views(
                particles, likelihood, offsets, proposed, shift_sigma_px=1.5, temperature=temperature
            )
        ).expectation
        scale = float(full.sums.cross_term.abs().max())
        torch.testing.assert_close(found.sums.cross_term, full.sums.cross_term, rtol=1e-3, atol=1e-4 * scale)
        torch.testing.assert_close(found.sums.quadratic_term, full.sums.quadratic_term, rtol=1e-3, atol=1e-3)
        for name in ("mean_shifts_px", "confidence", "log_evidence"):
            torch.testing.assert_close(
                getattr(found.posterior, name), getattr(full.posterior, name), rtol=1e-3, atol=1e-3
            )
        torch.testing.assert_close(found.posterior.poses.rotations, full.posterior.poses.rotations)
        torch.testing.assert_close(found.posterior.best.log_likelihood, full.posterior.best.log_likelihood)
