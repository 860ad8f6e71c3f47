"""Iterations of the half sets: how far their sums reach, and that neither half set sees the other's particles."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from cryoeq.domain.events import result_of
from cryoeq.geometry.shells import shell_power
from cryoeq.reconstruction.global_realignment import with_realigned_worst
from cryoeq.reconstruction.half_set_refinement import (
    begin_refinement,
    consensus_rows,
    final_iteration,
    refine_consensus,
    refine_half_sets,
    refine_half_sets_locally,
)
from cryoeq.reconstruction.initial_model import InitialModel
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.state import ConsensusMap, HalfSetMaps, RefinementSettings, RefinementState

Make = Callable[..., Any]
COUNT = 24

pytestmark = pytest.mark.usefixtures("one_thread")


def settings(**changes: Any) -> RefinementSettings:
    made = RefinementSettings(
        consensus_shells=(3,), max_extra_iterations=0, max_particles=COUNT, iterations=1, max_exhaustive_shell=7,
        local_iterations=0, n_offsets=1, shift_sigma_px=0.0, mask_radius=0.42, symmetry=torch.eye(3)[None],
        box_side_angstrom=80.0,
    )  # fmt: skip
    return replace(made, **changes)


def beginning(particles: ParticleTransforms, chosen: RefinementSettings) -> RefinementState:
    """Both half sets at a random map."""
    volume = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(0))
    half_set = torch.arange(len(particles)) % 2 + 1
    model = InitialModel(volume[None], torch.zeros(len(particles), 2), 0.0)
    return begin_refinement(model, particles, half_set, chosen, 3)


def test_sums_reach_the_last_shell_though_the_poses_do_not(make_known: Make, observe: Make) -> None:
    particles, chosen = observe(make_known(COUNT, sigma=30.0).dataset), settings()
    halves = result_of(refine_half_sets(beginning(particles, chosen), particles, chosen, seed=0))
    final = result_of(final_iteration(halves, particles, chosen, seed=0))
    for found in (halves, final):
        assert found.sums is not None
        for sums in found.sums:
            assert (sums.shell_weights[1:8] > 0).all()


@pytest.mark.parametrize("half", [1, 2])
def test_a_half_map_does_not_depend_on_the_particles_of_the_other_half_set(
    make_known: Make, observe: Make, monkeypatch: pytest.MonkeyPatch, half: int
) -> None:
    """Not in one bit, where the two numbers per shell that the half sets share are equal: noise variance and FSC.

    The other half set's coefficients get random signs, which leaves their power and takes all structure out of them.
    """
    fsc = torch.linspace(1.0, 0.2, 9)
    monkeypatch.setattr("cryoeq.reconstruction.maximization.fourier_shell_correlation", lambda *_: fsc.clone())
    chosen = settings(iterations=2, max_exhaustive_shell=5, n_offsets=3, shift_sigma_px=1.2)
    particles = observe(make_known(COUNT, sigma=1.0).dataset)
    state = beginning(particles, chosen)
    signs = 1 - 2.0 * torch.randint(2, particles.ctf_squared.shape, generator=torch.Generator().manual_seed(1))
    is_other = (state.half_set != half)[:, None]
    scrambled = replace(particles, ctf_multiplied=torch.where(is_other, signs, 1.0) * particles.ctf_multiplied)

    def refine(images: ParticleTransforms) -> list[RefinementState]:
        found = result_of(refine_half_sets(state, images, chosen, seed=0))
        realigned = result_of(with_realigned_worst(found, images, chosen, seed=0))
        return [found, realigned, result_of(refine_half_sets_locally(realigned, images, chosen, iterations=2))]

    for original, changed in zip(refine(particles), refine(scrambled), strict=True):
        assert isinstance(changed.reference, HalfSetMaps)
        assert torch.equal(changed.reference.of_half(half), original.reference.of_half(half))
        assert not torch.equal(changed.reference.of_half(3 - half), original.reference.of_half(3 - half))
        own = state.half_set == half
        for ours, theirs in zip(changed.particles.tensors(), original.particles.tensors(), strict=True):
            assert torch.equal(ours[own], theirs[own])
            assert not torch.equal(ours[~own], theirs[~own])


def test_a_consensus_map_depends_on_all_particles(make_known: Make, observe: Make) -> None:
    """The control of the law above: before the half sets part, scrambling one of them changes the map of both."""
    chosen, particles = settings(), observe(make_known(COUNT, sigma=1.0).dataset)
    state = beginning(particles, chosen)
    signs = torch.where((state.half_set == 2)[:, None], -1.0, 1.0)
    flipped = replace(particles, ctf_multiplied=signs * particles.ctf_multiplied)
    first, second = (
        result_of(refine_consensus(state, images, chosen, seed=0)).reference.of_half(1)
        for images in (particles, flipped)
    )
    assert not torch.allclose(first, second, rtol=1e-2)


def test_half_sets_share_a_reference_up_to_the_consensus_radius_and_part_for_good(
    make_known: Make, observe: Make
) -> None:
    """A split state stays split; the final iteration alone joins all particles again."""
    chosen, particles = settings(consensus_shells=(3, 4)), observe(make_known(COUNT, sigma=1.0).dataset)
    consensus = result_of(refine_consensus(beginning(particles, chosen), particles, chosen, seed=0))
    assert isinstance(consensus.reference, ConsensusMap)
    power = shell_power(consensus.reference.mean)
    assert float(power[chosen.shared_shell + 2 :].max()) < 1e-6 * float(power.max())
    halves = result_of(refine_half_sets(consensus, particles, chosen, seed=0))
    assert isinstance(halves.reference, HalfSetMaps)
    assert isinstance(halves.split().reference, HalfSetMaps)
    assert isinstance(result_of(final_iteration(halves, particles, chosen, seed=0)).reference, ConsensusMap)


def test_offsets_of_particles_that_take_no_part_in_a_consensus_stay(make_known: Make, observe: Make) -> None:
    """They have no view yet: refined at any other they would be wrong, and would cost as much as the others."""
    chosen = settings(max_particles=COUNT // 3, n_offsets=3, shift_sigma_px=1.2)
    particles = observe(make_known(COUNT, sigma=1.0).dataset)
    state = beginning(particles, chosen)
    found = result_of(refine_consensus(state, particles, chosen, seed=0))
    moved = (found.poses.shifts_px != state.poses.shifts_px).any(1)
    assert torch.equal(moved.nonzero().squeeze(1), consensus_rows(particles, chosen, seed=0).sort().values)
