"""Posteriors over a grid of poses and trial shifts, on a grid small enough to write them out."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from cryoeq.geometry.disk_harmonics import disk_harmonics
from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad
from cryoeq.geometry.soft_mask import soft_sphere
from cryoeq.reconstruction import expectation
from cryoeq.reconstruction.expectation import EStepResult, expectation_step, hexagonal_offsets
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.pose_likelihood import PoseGrid, PoseLikelihood

Make = Callable[..., Any]

RADIUS = 6.0


@dataclass(frozen=True)
class Scene:
    """Images, scores of the map that they show, trial shifts (the last one of each image is right) and true poses."""

    images: ParticleTransforms
    scores: PoseLikelihood
    trials_px: torch.Tensor
    rotations: torch.Tensor

    def log_joint(self, shift_sigma_px: float) -> torch.Tensor:
        """Log-likelihood plus log-prior of each pose and trial: (poses, particles, trials)."""
        matched = self.images.at_offsets(self.trials_px, self.scores.harmonics)
        scores = self.scores.score(matched).flatten(0, 1).unflatten(1, self.trials_px.shape[:2])
        return scores - 0.5 * self.trials_px.square().sum(-1) / shift_sigma_px**2

    def expectation_step(self, shift_sigma_px: float, temperature: float = 1.0) -> EStepResult:
        *_, (done, result) = expectation_step(
            self.images, self.scores, self.trials_px, shift_sigma_px=shift_sigma_px, temperature=temperature
        )
        assert done == len(self.images)
        assert result is not None
        return result


@pytest.fixture
def make_scene(make_known: Make, observe: Make) -> Callable[..., Scene]:
    def make(count: int = 10, n_trials: int = 3, sigma: float = 2.0, healpix_order: int = 0) -> Scene:
        generator = torch.Generator().manual_seed(4)
        known = make_known(count, sigma=sigma)
        harmonics = disk_harmonics(16, RADIUS, 7.5, torch.device("cpu"))
        images = observe(known.dataset).within(RADIUS, 16)
        grid = PoseGrid.build(healpix_order, 12 * 2**healpix_order, random_rotations(1, generator)[0])
        precision = torch.full((len(images.plane),), 1 / max(sigma, 0.3) ** 2)
        scores = PoseLikelihood.build(known.volume.values * soft_sphere(16, 6.0, 2.0), grid, harmonics, precision)
        wrong = known.shifts_px[:, None] + 2.5 * torch.randn(count, n_trials - 1, 2, generator=generator)
        return Scene(images, scores, torch.cat([wrong, known.shifts_px[:, None]], 1), known.poses.rotations)

    return make


def test_the_summary_is_that_of_the_posterior_written_out(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene()
    found = scene.expect(1.5).posterior
    joint = scene.log_joint(1.5)
    count, trials = scene.trials_px.shape[:2]
    posterior = joint.transpose(0, 1).flatten(1).softmax(1).unflatten(1, (-1, trials))
    torch.testing.assert_close(found.confidence, posterior.amax((1, 2)), rtol=1e-3, atol=1e-6)
    mean_shifts = (posterior.sum(1)[..., None] * scene.trials_px).sum(1)
    torch.testing.assert_close(found.mean_shifts_px, mean_shifts, rtol=1e-3, atol=1e-3)
    # The mean over the grid, summed over the trial shifts.
    evidence = joint.logsumexp((0, 2)) - math.log(len(joint))
    torch.testing.assert_close(found.log_evidence, evidence, rtol=1e-3, atol=1e-3)
    best = joint.transpose(0, 1).flatten(1).argmax(1)
    row = torch.arange(count)
    torch.testing.assert_close(found.shifts_px, scene.trials_px[row, best % trials])
    hypotheses = 2 * len(scene.scores.grid.views)
    pose = best // trials
    torch.testing.assert_close(found.rotations, scene.scores.grid.rotations(pose // hypotheses, pose % hypotheses))


def test_sums_hold_each_image_once(make_scene: Callable[..., Scene]) -> None:
    """At the origin neither turns nor shifts matter: the sums over views hold the sum over images."""
    scene = make_scene()
    sums = scene.expect(1.5).sums
    centred = scene.images.at_offsets(scene.trials_px[:, :1], scene.scores.harmonics)
    torch.testing.assert_close(sums.power[0].sum(0), centred.power[0].sum(0), rtol=1e-3, atol=1e-4)


def test_chunks_make_no_difference(make_scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene()
    whole = scene.expect(1.5)
    hypotheses = len(scene.scores.grid.inplane_rad) * 2 * len(scene.scores.grid.views)
    monkeypatch.setattr(expectation, "_SCORES_CPU", 3 * scene.trials_px.shape[1] * hypotheses)
    steps = list(expectation_step(scene.images, scene.scores, scene.trials_px, shift_sigma_px=1.5))
    assert [done for done, _ in steps] == [3, 6, 9, 10]
    assert [result is None for _, result in steps] == [True, True, True, False]
    chunked = steps[-1][1]
    assert chunked is not None
    for name in ("linear", "power"):
        torch.testing.assert_close(getattr(chunked.sums, name), getattr(whole.sums, name), rtol=1e-4, atol=1e-4)
    for name in whole.posterior.__dataclass_fields__:
        torch.testing.assert_close(getattr(chunked.posterior, name), getattr(whole.posterior, name))


def test_the_right_shift_and_pose_are_chosen(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(sigma=0.3, n_trials=4, healpix_order=1)
    for shift_sigma_px in (0.0, 3.0):
        found = scene.expect(shift_sigma_px).posterior
        torch.testing.assert_close(found.shifts_px, scene.trials_px[:, -1])
        # No pose of the grid is nearer than this.
        assert math.degrees(float(rotation_angle_rad(found.rotations, scene.rotations).max())) < 25


def test_a_prior_draws_shifts_inwards(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(sigma=20.0)
    means = [scene.expect(sigma).posterior.mean_shifts_px.norm(dim=1).mean() for sigma in (0.3, 1.0, 0.0)]
    assert max(means[:2]) < 0.5 * means[2]


def test_heat_flattens_the_posterior(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene()
    joint = scene.log_joint(1.5).transpose(0, 1).flatten(1)
    for temperature in (1.0, 2.0, 8.0):
        found = scene.expect(1.5, temperature).posterior
        expected = (joint / temperature).softmax(1).amax(1)
        torch.testing.assert_close(found.confidence, expected, rtol=1e-3, atol=1e-6)
    cold, hot = (scene.expect(1.5, temperature).posterior for temperature in (1.0, 8.0))
    assert (hot.confidence < cold.confidence).all()
    torch.testing.assert_close(hot.rotations, cold.rotations)


@pytest.mark.parametrize("count", [1, 4, 7])
def test_trials_are_the_centre_and_a_polygon(count: int, generator: torch.Generator) -> None:
    centres = torch.randn(5, 2, generator=generator)
    trials = hexagonal_offsets(centres, 1.7, count, generator)
    assert trials.shape == (5, count, 2)
    torch.testing.assert_close(trials[:, 0], centres)
    steps = trials[:, 1:] - centres[:, None]
    torch.testing.assert_close(steps.norm(dim=-1), torch.full((5, count - 1), 1.7))
    if count > 1:
        torch.testing.assert_close(steps.sum(1), torch.zeros(5, 2), atol=1e-5, rtol=0)
        sides = (steps - steps.roll(1, 1)).norm(dim=-1)
        torch.testing.assert_close(sides, torch.full_like(sides, 2 * 1.7 * math.sin(math.pi / (count - 1))))
    again = hexagonal_offsets(centres, 1.7, count, generator)
    assert torch.equal(again, trials) == (count == 1)
