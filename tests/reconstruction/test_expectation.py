"""Posteriors over a grid of poses and offsets, on a grid small enough to write them out."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from cryoeq.domain.events import Progress, result_of
from cryoeq.geometry.disk_harmonics import disk_harmonics
from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad
from cryoeq.geometry.soft_mask import soft_sphere
from cryoeq.reconstruction import expectation
from cryoeq.reconstruction.expectation import EStepResult, disk_offsets, expectation_step, hexagonal_offsets
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.pose_likelihood import PoseGrid, PoseLikelihood
from cryoeq.reconstruction.reference import Reference
from pipeline_events import events_and_result

Make = Callable[..., Any]

RADIUS = 6.0


@dataclass(frozen=True)
class Scene:
    """Particles, likelihood under their map, offsets (the last one of each particle is right), true rotations."""

    particles: ParticleTransforms
    likelihood: PoseLikelihood
    offsets_px: torch.Tensor
    rotations: torch.Tensor

    def log_joint(self, shift_sigma_px: float) -> torch.Tensor:
        """Log-likelihood plus log-prior of each pose and offset: (poses, particles, offsets)."""
        terms = self.particles.at_offsets(self.offsets_px, self.likelihood.harmonics)
        values = self.likelihood.log_likelihoods(terms).flatten(0, 1).unflatten(1, self.offsets_px.shape[:2])
        return values - 0.5 * self.offsets_px.square().sum(-1) / shift_sigma_px**2

    def expect(self, shift_sigma_px: float, temperature: float = 1.0) -> EStepResult:
        steps = expectation_step(
            self.particles, self.likelihood, self.offsets_px, shift_sigma_px=shift_sigma_px, temperature=temperature
        )
        result = result_of(steps)
        assert len(result.posterior.poses) == len(self.particles)
        return result


@pytest.fixture
def make_scene(make_known: Make, observe: Make) -> Callable[..., Scene]:
    def make(count: int = 10, n_offsets: int = 3, sigma: float = 2.0, healpix_order: int = 0) -> Scene:
        generator = torch.Generator().manual_seed(4)
        known = make_known(count, sigma=sigma)
        harmonics = disk_harmonics(16, RADIUS, 7.5, torch.device("cpu"))
        particles = observe(known.dataset).within(RADIUS, 16)
        grid = PoseGrid.build(healpix_order, 12 * 2**healpix_order, random_rotations(1, generator)[0])
        precision = torch.full((len(particles.plane),), 1 / max(sigma, 0.3) ** 2)
        reference = Reference.build(known.volume.values * soft_sphere(16, 6.0, 2.0), precision)
        likelihood = PoseLikelihood.build(reference, grid, harmonics)
        wrong = known.shifts_px[:, None] + 2.5 * torch.randn(count, n_offsets - 1, 2, generator=generator)
        offsets = torch.cat([wrong, known.shifts_px[:, None]], 1)
        return Scene(particles, likelihood, offsets, known.poses.rotations)

    return make


def test_the_summary_is_that_of_the_posterior_written_out(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene()
    found = scene.expect(1.5).posterior
    joint = scene.log_joint(1.5)
    count, offsets = scene.offsets_px.shape[:2]
    posterior = joint.transpose(0, 1).flatten(1).softmax(1).unflatten(1, (-1, offsets))
    torch.testing.assert_close(found.confidence, posterior.amax((1, 2)), rtol=1e-3, atol=1e-6)
    mean_shifts = (posterior.sum(1)[..., None] * scene.offsets_px).sum(1)
    torch.testing.assert_close(found.mean_shifts_px, mean_shifts, rtol=1e-3, atol=1e-3)
    # The mean over the grid, summed over the offsets.
    evidence = joint.logsumexp((0, 2)) - math.log(len(joint))
    torch.testing.assert_close(found.log_evidence, evidence, rtol=1e-3, atol=1e-3)
    best = joint.transpose(0, 1).flatten(1).argmax(1)
    row = torch.arange(count)
    torch.testing.assert_close(found.poses.shifts_px, scene.offsets_px[row, best % offsets])
    assert found.poses.box_size_px == 16
    hypotheses = 2 * len(scene.likelihood.grid.views)
    pose = best // offsets
    rotations = scene.likelihood.grid.rotations(pose // hypotheses, pose % hypotheses)
    torch.testing.assert_close(found.poses.rotations, rotations)


def test_sums_hold_each_image_once(make_scene: Callable[..., Scene]) -> None:
    """At the origin neither rotations nor shifts matter: the sums over views hold the sum over images."""
    scene = make_scene()
    sums = scene.expect(1.5).sums
    centred = scene.particles.at_offsets(scene.offsets_px[:, :1], scene.likelihood.harmonics)
    torch.testing.assert_close(sums.quadratic_term[0].sum(0), centred.quadratic_term[0].sum(0), rtol=1e-3, atol=1e-4)


def test_chunks_make_no_difference(make_scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene()
    whole = scene.expect(1.5)
    hypotheses = len(scene.likelihood.grid.inplane_rad) * 2 * len(scene.likelihood.grid.views)
    monkeypatch.setattr(expectation, "LOG_LIKELIHOODS_ON_CPU", 3 * scene.offsets_px.shape[1] * hypotheses)
    steps = expectation_step(scene.particles, scene.likelihood, scene.offsets_px, shift_sigma_px=1.5)
    events, chunked = events_and_result(steps)
    assert events == [Progress("expectation", done, 10) for done in (3, 6, 9)]
    for name in ("cross_term", "quadratic_term"):
        torch.testing.assert_close(getattr(chunked.sums, name), getattr(whole.sums, name), rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(chunked.posterior.tensors(), whole.posterior.tensors(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_rows_take_part_as_if_they_were_all(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene()
    rows = torch.tensor([7, 2, 5])
    among, alone = (
        result_of(
            expectation_step(particles, scene.likelihood, scene.offsets_px[rows], shift_sigma_px=1.5, rows=chosen)
        )
        for particles, chosen in ((scene.particles, rows), (scene.particles.rows(rows), None))
    )
    assert torch.equal(among.sums.cross_term, alone.sums.cross_term)
    for ours, theirs in zip(among.posterior.tensors(), alone.posterior.tensors(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_right_offset_and_pose_are_chosen(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(sigma=0.3, n_offsets=4, healpix_order=1)
    for shift_sigma_px in (0.0, 3.0):
        found = scene.expect(shift_sigma_px).posterior
        torch.testing.assert_close(found.poses.shifts_px, scene.offsets_px[:, -1])
        # No pose of the grid is nearer than this.
        assert math.degrees(float(rotation_angle_rad(found.poses.rotations, scene.rotations).max())) < 25


def test_a_narrow_prior_pulls_offsets_inwards(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(sigma=20.0)
    means = [scene.expect(sigma).posterior.mean_shifts_px.norm(dim=1).mean() for sigma in (0.3, 1.0, 0.0)]
    assert max(means[:2]) < 0.5 * means[2]


def test_a_higher_temperature_flattens_the_posterior(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene()
    joint = scene.log_joint(1.5).transpose(0, 1).flatten(1)
    for temperature in (1.0, 2.0, 8.0):
        found = scene.expect(1.5, temperature).posterior
        expected = (joint / temperature).softmax(1).amax(1)
        torch.testing.assert_close(found.confidence, expected, rtol=1e-3, atol=1e-6)
    cold, hot = (scene.expect(1.5, temperature).posterior for temperature in (1.0, 8.0))
    assert (hot.confidence < cold.confidence).all()
    torch.testing.assert_close(hot.poses.rotations, cold.poses.rotations)


@pytest.mark.parametrize("radius_px", [0.0, 0.01, 0.3, 5.0])
def test_offsets_over_a_disk_are_within_it_and_one_at_least(radius_px: float, generator: torch.Generator) -> None:
    for _ in range(20):
        offsets = disk_offsets(radius_px, 1.5, 3, generator, torch.device("cpu"))
        assert len(offsets) == 3
        assert offsets.shape[1] >= 1
        assert (offsets.norm(dim=-1) <= radius_px).all()


@pytest.mark.parametrize("count", [1, 4, 7])
def test_offsets_are_the_centre_and_a_polygon(count: int, generator: torch.Generator) -> None:
    centres = torch.randn(5, 2, generator=generator)
    offsets = hexagonal_offsets(centres, 1.7, count, generator)
    assert offsets.shape == (5, count, 2)
    torch.testing.assert_close(offsets[:, 0], centres)
    steps = offsets[:, 1:] - centres[:, None]
    torch.testing.assert_close(steps.norm(dim=-1), torch.full((5, count - 1), 1.7))
    if count > 1:
        torch.testing.assert_close(steps.sum(1), torch.zeros(5, 2), atol=1e-5, rtol=0)
        sides = (steps - steps.roll(1, 1)).norm(dim=-1)
        torch.testing.assert_close(sides, torch.full_like(sides, 2 * 1.7 * math.sin(math.pi / (count - 1))))
    again = hexagonal_offsets(centres, 1.7, count, generator)
    assert torch.equal(again, offsets) == (count == 1)


def test_no_particles_add_nothing(make_scene: Callable[..., Scene]) -> None:
    """As where other processes have them all."""
    scene = make_scene()
    steps = expectation_step(
        scene.particles, scene.likelihood, scene.offsets_px[:0], shift_sigma_px=1.5, rows=torch.arange(0)
    )
    events, none = events_and_result(steps)
    assert events == []
    assert len(none.posterior.poses) == 0
    some = scene.expect(1.5).sums
    for name in ("cross_term", "quadratic_term"):
        torch.testing.assert_close(getattr(none.sums + some, name), getattr(some, name), rtol=0, atol=0)
