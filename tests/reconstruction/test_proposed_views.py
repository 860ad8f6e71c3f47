"""An E-step over proposed views is the full one where all are tried, and estimates it where some are."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from cryoeq.domain.events import Progress, result_of
from cryoeq.geometry.disk_harmonics import disk_harmonics
from cryoeq.geometry.so3 import random_rotations
from cryoeq.geometry.soft_mask import soft_sphere
from cryoeq.reconstruction import proposed_views
from cryoeq.reconstruction.expectation import expectation_step
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.pose_likelihood import PoseGrid, PoseLikelihood
from cryoeq.reconstruction.proposed_views import ProposalResult, ProposedViews, expectation_over_views
from cryoeq.reconstruction.reference import Reference
from pipeline_events import events_and_result

Make = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("one_thread")
RADIUS, COUNT, SIGMA_PX = 6.0, 40, 1.5


@dataclass(frozen=True)
class Scene:
    """Particles, likelihood under their map, offsets."""

    particles: ParticleTransforms
    likelihood: PoseLikelihood
    offsets_px: Tensor

    @property
    def n_views(self) -> int:
        return len(self.likelihood.grid.views)

    def draw(self, n_likely: int, n_random: int, seed: int = 1) -> ProposedViews:
        """Logits are the same for any seed."""
        logits = torch.randn(COUNT, self.n_views, generator=torch.Generator().manual_seed(1))
        return ProposedViews.draw(logits, n_likely, n_random, torch.Generator().manual_seed(seed))

    def expect(self, proposed: ProposedViews, rows: Tensor | None = None, temperature: float = 1.0) -> ProposalResult:
        offsets = self.offsets_px if rows is None else self.offsets_px[rows]
        steps = expectation_over_views(
            self.particles, self.likelihood, offsets, proposed if rows is None else proposed.rows(rows),
            shift_sigma_px=SIGMA_PX, rows=rows, temperature=temperature,
        )  # fmt: skip
        return result_of(steps)


@pytest.fixture(scope="module")
def scene(make_known: Make, observe: Make) -> Scene:
    generator = torch.Generator().manual_seed(4)
    known = make_known(COUNT, sigma=2.0)
    harmonics = disk_harmonics(16, RADIUS, 7.5, torch.device("cpu"))
    particles = observe(known.dataset).within(RADIUS, 16)
    grid = PoseGrid.build(1, 24, random_rotations(1, generator)[0])
    precision = torch.full((len(particles.plane),), 0.02)
    reference = Reference.build(known.volume.values * soft_sphere(16, 6.0, 2.0), precision)
    offsets = known.shifts_px[:, None] + torch.randn(COUNT, 3, 2, generator=generator)
    return Scene(particles, PoseLikelihood.build(reference, grid, harmonics), offsets)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_with_all_views_it_is_the_full_e_step(scene: Scene, temperature: float) -> None:
    steps = expectation_step(
        scene.particles, scene.likelihood, scene.offsets_px, shift_sigma_px=SIGMA_PX, temperature=temperature
    )
    full, found = result_of(steps), scene.expect(scene.draw(10, 100), temperature=temperature).expectation
    for name in ("cross_term", "quadratic_term"):
        ours, theirs = getattr(found.sums, name), getattr(full.sums, name)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
    for name in ("mean_shifts_px", "confidence", "log_evidence", "class_probability"):
        torch.testing.assert_close(getattr(found.posterior, name), getattr(full.posterior, name), rtol=1e-3, atol=1e-3)
    assert torch.equal(found.posterior.poses.rotations, full.posterior.poses.rotations)
    assert torch.equal(found.posterior.poses.shifts_px, full.posterior.poses.shifts_px)
    torch.testing.assert_close(found.posterior.best.log_likelihood, full.posterior.best.log_likelihood)


def test_no_view_is_tried_twice_and_all_are_stood_for(scene: Scene) -> None:
    for n_likely, n_random in ((5, 3), (1, 7), (24, 4), (30, 30), (5, 0)):
        proposed = scene.draw(n_likely, n_random)
        assert all(len(set(row)) == len(row) for row in proposed.views.tolist())
        stood_for = proposed.log_weight.exp().sum(1)
        wanted = scene.n_views if n_random or n_likely >= scene.n_views else n_likely
        torch.testing.assert_close(stood_for, torch.full((COUNT,), float(wanted)))


def test_the_likely_views_are_those_of_the_highest_logits(scene: Scene) -> None:
    logits = torch.rand(COUNT, scene.n_views, generator=torch.Generator().manual_seed(8))
    proposed = ProposedViews.draw(logits, 6, 3, torch.Generator().manual_seed(0))
    likely, drawn = (logits.gather(1, views) for views in (proposed.views[:, :6], proposed.views[:, 6:]))
    assert bool((likely.amin(1) >= drawn.amax(1)).all())


def test_the_likelihood_over_all_views_is_estimated_without_bias(scene: Scene) -> None:
    """Whatever proposed the likely ones: here chance."""
    full = scene.expect(scene.draw(24, 0)).expectation.posterior.log_evidence
    draws = [scene.expect(scene.draw(4, 6, seed)).expectation.posterior.log_evidence for seed in range(400)]
    ratios = (torch.stack(draws) - full).exp()
    error = ratios.std(0) / math.sqrt(len(draws))
    assert bool(((ratios.mean(0) - 1).abs() < 4.5 * error + 1e-3).all())
    assert float(error.max()) > 1e-3, "where nothing is left to chance, nothing is tested"


def test_particles_do_not_depend_on_each_other(scene: Scene) -> None:
    """Sums add up, and the posterior of a particle is the same in any company."""
    proposed, rows = scene.draw(5, 3), torch.arange(COUNT)
    whole, parts = scene.expect(proposed), [scene.expect(proposed, some) for some in rows.split([7, 33])]
    sums = parts[0].expectation.sums + parts[1].expectation.sums
    torch.testing.assert_close(sums.cross_term, whole.expectation.sums.cross_term, rtol=1e-4, atol=1e-3)
    by_view = torch.cat([part.by_view for part in parts])
    torch.testing.assert_close(by_view, whole.by_view, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(by_view.sum(1), torch.ones(COUNT))


@pytest.mark.parametrize(("quarter", "mirrored"), [(1, False), (2, False), (0, True), (3, True)])
def test_turned_and_mirrored_particles_give_the_same_statistics(scene: Scene, quarter: int, *, mirrored: bool) -> None:
    """Sums are in the frames of the views, and angles of the grid are mapped to each other."""
    act = quarter_turn(quarter, mirrored=mirrored)
    turned = Scene(moved(scene.particles, act), scene.likelihood, scene.offsets_px @ act.T)
    proposed = scene.draw(6, 4)
    before, after = scene.expect(proposed), turned.expect(proposed)
    torch.testing.assert_close(after.by_view, before.by_view, rtol=1e-2, atol=1e-4)
    for name in ("cross_term", "quadratic_term"):
        ours, theirs = (getattr(each.expectation.sums, name) for each in (after, before))
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3 * float(theirs.abs().max()))
    shifts = before.expectation.posterior.mean_shifts_px @ act.T
    torch.testing.assert_close(after.expectation.posterior.mean_shifts_px, shifts, rtol=1e-2, atol=1e-3)


def test_progress_counts_particles(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposed_views, "_AT_A_TIME", 15)
    proposed = scene.draw(2, 1)
    steps = expectation_over_views(
        scene.particles, scene.likelihood, scene.offsets_px, proposed, shift_sigma_px=SIGMA_PX
    )
    events, _ = events_and_result(steps)
    assert [event.done for event in events if isinstance(event, Progress)] == [15, 30]


def quarter_turn(quarter: int, *, mirrored: bool) -> Tensor:
    """Mirrored at the x axis, then turned."""
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    act = torch.diag(torch.tensor([1.0, -1.0 if mirrored else 1.0]))
    for _ in range(quarter):
        act = turn @ act
    return act


def moved(particles: ParticleTransforms, act: Tensor) -> ParticleTransforms:
    """The particles and their CTFs, moved by an element of the group of the square."""
    coords = particles.plane.coords
    source = (coords.float() @ act).round().long()  # g^-1 k
    index = {tuple(point): row for row, point in enumerate(coords.tolist())}
    here = torch.tensor([index.get(tuple(point), -1) for point in source.tolist()])
    mate = torch.tensor([index.get((-x, -y), -1) for x, y in source.tolist()])
    place = torch.where(here >= 0, here, mate)
    images = particles.ctf_multiplied[:, place]
    real, imag = particles.ctf_squared_harmonics.unbind(-1)
    quarters = torch.tensor([1.0, -1.0 if act[0, 0].abs() < 0.5 else 1.0, 1.0])[:, None, None]
    imag = imag if act.det() > 0 else -imag
    return ParticleTransforms(
        particles.plane,
        torch.where(here >= 0, images, images.conj()),
        particles.ctf_squared[:, place],
        torch.stack([real * quarters, imag * quarters], -1),
    )
