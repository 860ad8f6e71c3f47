"""Amortized E-step: invariant proposals that are learnt, runs that repeat, and a map that is found."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cryoeq.domain.events import result_of
from cryoeq.domain.volume import Volume
from cryoeq.geometry.disk_harmonics import disk_harmonics
from cryoeq.geometry.shells import fourier_shell_correlation
from cryoeq.geometry.so3 import random_rotations
from cryoeq.maps.alignment import align_map, mirror_map
from cryoeq.reconstruction.expectation import EStep, EStepResult, expectation_step
from cryoeq.reconstruction.half_set_refinement import begin_refinement, refine_consensus
from cryoeq.reconstruction.initial_model import InitialModel, InitialModelSettings, estimate_initial_model
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.pose_likelihood import PoseGrid, PoseLikelihood
from cryoeq.reconstruction.reference import Reference
from cryoeq.reconstruction.state import RefinementSettings
from cryoeq.training.proposals.amortized_e_step import AmortizedEStep
from cryoeq.training.proposals.proposal_network import ProposalSettings

Make = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
RADIUS = 6
COUNT = 200
"""Particles."""


def amortized(group: str = "d4", number: int = 0, **changes: Any) -> AmortizedEStep:
    settings = ProposalSettings(**{"group": group, "channels": 64, "n_likely": 3, "n_random": 2, **changes})
    return AmortizedEStep(settings, 7, seed=5, number=number, device=CPU)


@pytest.fixture(scope="module")
def scene(make_known: Make, observe: Make) -> tuple[ParticleTransforms, PoseLikelihood, Tensor]:
    """Particles, likelihood under their map, their offsets."""
    known = make_known(COUNT, sigma=1.0)
    particles = observe(known.dataset).within(RADIUS, 16)
    grid = PoseGrid.build(1, 24, random_rotations(1, torch.Generator().manual_seed(3))[0])
    precision = torch.full((len(particles.plane),), 1.0)
    harmonics = disk_harmonics(16, RADIUS, 7.5, CPU)
    likelihood = PoseLikelihood.build(Reference.build(known.volume.values, precision), grid, harmonics)
    return particles, likelihood, known.shifts_px[:, None]


def expect(e_step: EStep, scene: tuple[ParticleTransforms, PoseLikelihood, Tensor]) -> EStepResult:
    particles, likelihood, offsets = scene
    return result_of(e_step(particles, likelihood, offsets, shift_sigma_px=1.5))


@pytest.mark.parametrize("group", ["d4", "o2"])
def test_proposals_do_not_change_where_particles_are_turned_or_mirrored(
    scene: tuple[ParticleTransforms, PoseLikelihood, Tensor], group: str
) -> None:
    """To rounding: they are functions of the image alone, and invariant under the network's group."""
    particles, likelihood, offsets = scene
    proposer = amortized(group).proposer
    images = proposer.images(particles, offsets[:, 0], likelihood.precision)[:, 1:, 1:]  # whose centre is a pixel
    posterior = torch.eye(24)[torch.arange(COUNT) % 24]
    directions = likelihood.grid.views[:, 2]

    def logits(values: Tensor) -> Tensor:
        return proposer.logits(torch.nn.functional.pad(values, (1, 0, 1, 0)), directions)

    proposer.learn(torch.nn.functional.pad(images, (1, 0, 1, 0)), posterior, directions)
    before = logits(images)
    assert float(before.std(0).mean()) > 1e-3
    for moved in (images.rot90(1, (1, 2)), images.flip(2), images.transpose(1, 2)):
        torch.testing.assert_close(logits(moved), before, rtol=0, atol=1e-3 * float(before.std()))


def test_the_network_learns_where_posteriors_are(
    scene: tuple[ParticleTransforms, PoseLikelihood, Tensor],
) -> None:
    """The best of all views is among the few that are tried more and more often; at random in 5 of 24 cases."""
    e_step = amortized(n_likely=4, n_random=1)
    best = expect(expectation_step, scene).posterior.best.log_likelihood

    def share(result: EStepResult) -> float:
        return float((result.posterior.best.log_likelihood > best - 1e-2).float().mean())

    found = [share(expect(e_step, scene)) for _ in range(25)]
    assert found[0] < 0.45
    assert found[-1] > 0.7


def test_the_same_number_gives_the_same_posteriors_and_another_one_others(
    scene: tuple[ParticleTransforms, PoseLikelihood, Tensor],
) -> None:
    runs = []
    for number in (1, 1, 2):
        e_step = amortized(number=number)
        expect(e_step, scene)
        runs.append(expect(e_step, scene).sums.cross_term)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_it_is_of_one_map(scene: tuple[ParticleTransforms, PoseLikelihood, Tensor]) -> None:
    particles, likelihood, offsets = scene
    with pytest.raises(ValueError, match="one map only"):
        result_of(amortized()(particles, likelihood, offsets, shift_sigma_px=1.0, null_share=0.2))


def test_a_small_noiseless_set_is_found(make_known: Make, observe: Make, phantom_map: Volume) -> None:
    """From a random map, with 6 of 24 views tried, and 8 of 96."""
    particles = observe(make_known(COUNT, shift_sigma_angstrom=0.0, sigma=0.3).dataset)
    initial = InitialModelSettings(60, 100, 3, 6, 1, 0.0, 0.45)
    e_step = amortized(n_likely=4, n_random=2)
    model: InitialModel = result_of(estimate_initial_model(particles, initial, seed=1, start=0, e_step=e_step))
    refinement = RefinementSettings((6, 6, 7), 0, COUNT, 1, 7, 0, 1, 0.0, 0.45, torch.eye(3)[None], 80.0)
    half_set = torch.arange(COUNT) % 2 + 1
    state = begin_refinement(model, particles, half_set, refinement, 6)
    further = amortized(n_likely=5, n_random=3)
    state = result_of(refine_consensus(state, particles, refinement, seed=1, e_step=further))
    found = Volume(state.reference.mean, 5.0)
    hands = [found, Volume(mirror_map(found.values), 5.0)]
    aligned = [align_map(hand, phantom_map, with_hand=False).apply(hand).values for hand in hands]
    agreement = max(float(fourier_shell_correlation(each, phantom_map.values)[2:6].mean()) for each in aligned)
    assert agreement > 0.8
    assert math.isfinite(float(state.particles.log_evidence.mean()))
