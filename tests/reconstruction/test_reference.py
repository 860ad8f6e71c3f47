"""References: each map is prepared once for all comparisons of an iteration and the next."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cryoeq.domain.events import result_of
from cryoeq.physics.projection import prepare_slices
from cryoeq.reconstruction import reference
from cryoeq.reconstruction.global_realignment import realign_worst
from cryoeq.reconstruction.half_set_refinement import (
    begin_refinement,
    final_iteration,
    refine_consensus,
    refine_half_sets,
    refine_half_sets_locally,
)
from cryoeq.reconstruction.initial_model import InitialModel
from cryoeq.reconstruction.noise_model import noise_precision
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.reference import References
from cryoeq.reconstruction.state import RefinementSettings, RefinementState

Make = Callable[..., Any]
COUNT = 24
SETTINGS = RefinementSettings(
    consensus_shells=(3, 4), max_extra_iterations=0, max_particles=COUNT, iterations=3, max_exhaustive_shell=5,
    local_iterations=2, n_offsets=3, shift_sigma_px=1.2, mask_radius=0.42, symmetry=torch.eye(3)[None],
    box_side_angstrom=80.0,
)  # fmt: skip


@pytest.fixture
def particles(make_known: Make, observe: Make) -> ParticleTransforms:
    return observe(make_known(COUNT, sigma=1.0).dataset)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The maps that were transformed, in order."""
    seen: list[Tensor] = []

    def count(volume: Tensor) -> Tensor:
        seen.append(volume)
        return prepare_slices(volume)

    monkeypatch.setattr(reference, "prepare_slices", count)
    return seen


def beginning(particles: ParticleTransforms) -> RefinementState:
    volume = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(0))
    model = InitialModel(volume[None], torch.zeros(COUNT, 2), 0.0)
    return begin_refinement(model, particles, torch.arange(COUNT) % 2 + 1, SETTINGS, 3)


def test_a_reference_holds_the_transform_and_the_noise_of_its_map(particles: ParticleTransforms) -> None:
    volume = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0))
    found = References(particles).of(volume)
    torch.testing.assert_close(found.padded, prepare_slices(volume))
    torch.testing.assert_close(found.precision, noise_precision([found.padded], particles))
    plane = particles.within(4.0, 16).plane
    torch.testing.assert_close(found.weights(plane), found.precision[: len(plane)] * plane.weights)


def test_a_map_is_prepared_once_while_it_is_in_use(particles: ParticleTransforms, prepared: list[Tensor]) -> None:
    references, maps = References(particles), [torch.randn(16, 16, 16) for _ in range(3)]
    first = [references.of(volume) for volume in maps[:2]]
    assert [references.of(volume) for volume in (*maps[:2], *maps[:2])] == [*first, *first]
    assert len(prepared) == 2
    references.of(maps[2])
    assert references.of(maps[1]) is first[1], "the maps of two half sets are kept"
    assert len(prepared) == 3
    assert references.of(maps[1].clone()) is not first[1], "an equal map is another map"


def test_one_map_at_a_time_frees_the_other_but_not_its_noise(
    particles: ParticleTransforms, prepared: list[Tensor]
) -> None:
    references, maps = References(particles, max_prepared=1), [torch.randn(16, 16, 16) for _ in range(2)]
    first = weakref.ref(references.of(maps[0]).padded)
    references.of(maps[1])
    assert first() is None
    expected = [References(particles).of(volume) for volume in maps]
    count = len(prepared)
    for volume, found in zip(maps, expected, strict=True):
        assert torch.equal(references.precision_of(volume), found.precision)
    assert len(prepared) == count, "nothing is prepared for the noise alone"
    assert torch.equal(references.of(maps[0]).padded, expected[0].padded)


def test_scales_of_some_particles_leave_those_of_the_others(particles: ParticleTransforms) -> None:
    references, rows = References(particles), torch.arange(COUNT)
    references.rescale(torch.full((3,), 2.0), rows[:3])
    references.rescale(torch.full((2,), 3.0), rows[3:5])
    assert references.particles.scale is not None
    assert references.particles.scale.tolist() == [2.0] * 3 + [3.0] * 2 + [1.0] * (COUNT - 5)


@pytest.mark.usefixtures("one_thread")
def test_an_iteration_prepares_no_map_that_the_one_before_has_prepared(
    particles: ParticleTransforms, prepared: list[Tensor]
) -> None:
    """A map costs one transform, for the E-step and for the refinement of offsets against it."""
    consensus = result_of(refine_consensus(beginning(particles), particles, SETTINGS, seed=0))
    assert len(prepared) == 1 + 2, "the initial model, then the map of each of two iterations"
    prepared.clear()
    halves = result_of(refine_half_sets(consensus, particles, SETTINGS, seed=0))
    assert len(prepared) == 1 + 2 * 3, "one shared map, then two half maps of each of three iterations"
    prepared.clear()
    realign_worst(halves, particles, SETTINGS, 5, seed=0)
    assert len(prepared) == 2, "the two half maps"
    prepared.clear()
    result_of(refine_half_sets_locally(halves, particles, SETTINGS, iterations=2))
    assert len(prepared) == 2 * 2, "the half maps that two iterations began with"
    prepared.clear()
    result_of(final_iteration(halves, particles, SETTINGS, seed=0))
    assert len(prepared) == 2 + 1 + 1, "the half maps, which the scales follow from, the mean map, then the new one"
