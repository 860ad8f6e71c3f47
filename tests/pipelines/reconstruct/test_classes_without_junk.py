"""Junk in a class: its maps are made again without what is probably junk, and nothing of that is left in them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from cryoeq.domain.events import result_of
from cryoeq.pipelines.reconstruct import classes
from cryoeq.reconstruction.half_set_refinement import begin_refinement
from cryoeq.reconstruction.initial_model import InitialModel, InitialModelSettings
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.settings import AbInitioSettings
from cryoeq.reconstruction.state import RefinementSettings, no_checkpoints

Make = Callable[..., Any]
COUNT = 80

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def particles(make_known: Make, observe: Make) -> ParticleTransforms:
    made: ParticleTransforms = observe(make_known(COUNT, with_ctf=False).dataset)
    return made


@pytest.fixture
def part(make_known: Make, particles: ParticleTransforms) -> classes._ClassPart:
    refinement = RefinementSettings(
        consensus_shells=(5, 6), max_extra_iterations=0, max_particles=COUNT, iterations=1, max_exhaustive_shell=6,
        local_iterations=2, n_offsets=4, shift_sigma_px=1.2, mask_radius=0.42, symmetry=torch.eye(3)[None],
        box_side_angstrom=80.0,
    )  # fmt: skip
    initial = InitialModelSettings(2, 4, 3, 6, 1, 2.0, 0.42)
    settings = AbInitioSettings(1, 1, initial, refinement, "C1", 5.0, 0)
    model = InitialModel(make_known(COUNT).volume.values[None], torch.zeros(COUNT, 2), 0.0)
    state = begin_refinement(model, particles, torch.arange(COUNT) % 2 + 1, refinement, 6)
    return classes._ClassPart(1, torch.arange(COUNT), settings, state, torch.ones(COUNT, dtype=torch.bool))


def without(part: classes._ClassPart, particles: ParticleTransforms, is_junk: torch.Tensor) -> classes._ClassPart:
    return result_of(classes._refine_without_junk(part, particles, is_junk, no_checkpoints))


def test_maps_do_not_depend_on_what_was_left_out(part: classes._ClassPart, particles: ParticleTransforms) -> None:
    is_junk = torch.arange(COUNT) < 20
    generator = torch.Generator().manual_seed(1)
    signs = 1 - 2.0 * torch.randint(2, particles.ctf_squared.shape, generator=generator)
    others = replace(particles, ctf_multiplied=torch.where(is_junk[:, None], signs, 1.0) * particles.ctf_multiplied)
    clean, scrambled = (without(part, images, is_junk) for images in (particles, others))
    assert torch.equal(clean.is_in_map, ~is_junk)
    for half in (1, 2):
        assert torch.equal(clean.halves.reference.of_half(half), scrambled.halves.reference.of_half(half))
    assert torch.equal(clean.halves.poses.rotations[~is_junk], scrambled.halves.poses.rotations[~is_junk])
    everything = without(part, others, torch.arange(COUNT) >= COUNT - 20)
    assert not torch.equal(everything.halves.reference.of_half(1), clean.halves.reference.of_half(1))


@pytest.mark.parametrize(
    "is_junk",
    [None, torch.arange(COUNT) < 3, torch.arange(COUNT) < COUNT - 20, torch.arange(COUNT) % 2 == 0],
    ids=["not known", "hardly any", "most", "one half set"],
)
def test_a_class_stays_as_it_is_where_there_is_nothing_to_gain(
    part: classes._ClassPart, particles: ParticleTransforms, is_junk: torch.Tensor
) -> None:
    assert without(part, particles, is_junk) is part


def test_all_particles_of_a_class_are_in_one_of_its_half_sets(
    part: classes._ClassPart, particles: ParticleTransforms
) -> None:
    clean = without(part, particles, torch.arange(COUNT) < 20)
    assert torch.equal(clean.halves.half_set, part.halves.half_set)
    assert len(clean.halves.poses) == COUNT
