"""Classes refined one by one: without what is probably junk, and from new random starts where one stalls."""

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import pytest
import torch

from cryoeq.domain.events import Note, result_of
from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.pipelines.reconstruct import class_junk, class_parts
from cryoeq.reconstruction.class_refinement import begin_classes
from cryoeq.reconstruction.half_set_refinement import begin_refinement
from cryoeq.reconstruction.initial_model import InitialModel, InitialModelSettings
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.settings import AbInitioSettings
from cryoeq.reconstruction.state import HalfSetMaps, RefinementSettings, RefinementState, no_checkpoints

Make = Callable[..., Any]
COUNT = 80

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def particles(make_known: Make, observe: Make) -> ParticleTransforms:
    made: ParticleTransforms = observe(make_known(COUNT, with_ctf=False).dataset)
    return made


@pytest.fixture
def part(make_known: Make, particles: ParticleTransforms) -> class_parts.ClassPart:
    refinement = RefinementSettings(
        consensus_shells=(5, 6), max_extra_iterations=0, max_particles=COUNT, iterations=1, max_exhaustive_shell=6,
        local_iterations=2, n_offsets=4, shift_sigma_px=1.2, mask_radius=0.42, symmetry=torch.eye(3)[None],
        box_side_angstrom=80.0,
    )  # fmt: skip
    initial = InitialModelSettings(2, 4, 3, 6, 1, 2.0, 0.42)
    settings = AbInitioSettings(1, 1, initial, refinement, "C1", 5.0, 0)
    model = InitialModel(make_known(COUNT).volume.values[None], torch.zeros(COUNT, 2), 0.0)
    state = begin_refinement(model, particles, torch.arange(COUNT) % 2 + 1, refinement, 6)
    return class_parts.ClassPart(1, torch.arange(COUNT), settings, state, torch.ones(COUNT, dtype=torch.bool), 6)


def without(part: class_parts.ClassPart, particles: ParticleTransforms, is_junk: torch.Tensor) -> class_parts.ClassPart:
    return result_of(class_junk.refine_without_junk(part, particles, is_junk, no_checkpoints))


def test_maps_do_not_depend_on_what_was_left_out(part: class_parts.ClassPart, particles: ParticleTransforms) -> None:
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
    part: class_parts.ClassPart, particles: ParticleTransforms, is_junk: torch.Tensor
) -> None:
    assert without(part, particles, is_junk) is part


def test_all_particles_of_a_class_are_in_one_of_its_half_sets(
    part: class_parts.ClassPart, particles: ParticleTransforms
) -> None:
    clean = without(part, particles, torch.arange(COUNT) < 20)
    assert torch.equal(clean.halves.half_set, part.halves.half_set)
    assert len(clean.halves.poses) == COUNT


def in_two(part: class_parts.ClassPart, first: int) -> list[class_parts.ClassPart]:
    """The same map twice: a class of the first particles, and one of the others."""
    found = []
    for number, rows in enumerate(torch.arange(COUNT).split([first, COUNT - first]), 1):
        halves = replace(part.halves, half_set=part.halves.half_set[rows], particles=part.halves.particles.rows(rows))
        is_in_map = torch.ones(len(rows), dtype=torch.bool)
        found.append(replace(part, number=number, rows=rows, halves=halves, is_in_map=is_in_map))
    return found


@pytest.mark.parametrize(("good", "kept"), [(0, [1]), (19, [1]), (20, [0, 1])])
def test_a_class_of_junk_is_no_structure(part: class_parts.ClassPart, good: int, kept: list[int]) -> None:
    """However many particles it has: 40 here."""
    is_junk = (torch.arange(COUNT) >= good) & (torch.arange(COUNT) < 40)
    parts = in_two(part, 40)
    assert result_of(class_junk.structures_among(parts, is_junk)) == kept
    assert result_of(class_junk.structures_among(parts, None)) == [0, 1], "nothing is known of junk"
    everything = torch.ones(COUNT, dtype=torch.bool)
    assert len(result_of(class_junk.structures_among(parts, everything))) >= 1, "one is left"


def test_particles_of_a_class_that_is_left_out_go_to_the_others_with_a_pose_of_their_own(
    part: class_parts.ClassPart, particles: ParticleTransforms, make_known: Make
) -> None:
    """Found by search: the pose that they had is of another map."""
    true, refinement = make_known(COUNT, with_ctf=False), part.settings.refinement
    model = InitialModel(true.volume.values.expand(2, -1, -1, -1), torch.zeros(COUNT, 2), 0.0)
    state = begin_classes(model, particles, part.halves.half_set, refinement, 6)
    state = replace(state, probability=torch.eye(2)[(torch.arange(COUNT) >= 20).long()])
    (only,) = class_junk.keep_classes(in_two(part, 20), [1], state, particles)
    assert (only.number, sorted(only.rows.tolist())) == (1, list(range(COUNT)))
    assert torch.equal(only.halves.half_set, part.halves.half_set[only.rows])
    added = only.rows < 20
    assert torch.equal(only.halves.poses.rotations[~added], part.halves.poses.rotations[20:])
    errors = rotation_angle_rad(
        only.halves.poses.rotations[added].double(), true.poses.rotations[only.rows[added]].double()
    )
    assert float(errors.median().rad2deg()) < 20
    parts = in_two(part, 20)
    assert class_junk.keep_classes(parts, [0, 1], state, particles) == parts


def noise_map() -> torch.Tensor:
    return torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(2))


def with_map(part: class_parts.ClassPart, volume: torch.Tensor) -> class_parts.ClassPart:
    halves = replace(part.halves, reference=HalfSetMaps(volume, volume), radius=6)
    return replace(part, halves=halves, searched_shell=halves.resolution_shell)


def test_a_class_is_stalled_where_local_refinement_gains_no_shell(part: class_parts.ClassPart) -> None:
    for shell, searched, is_stalled in ((5, 5, True), (4, 5, True), (6, 5, False), (7, 7, False)):
        fsc = (torch.arange(9) <= shell).float()  # the last shell of all is 7, beyond which nothing can be gained
        found = replace(part, halves=replace(part.halves, fsc=fsc), searched_shell=searched)
        assert found.halves.resolution_shell == shell
        assert found.is_stalled == is_stalled, (shell, searched)


def test_held_out_particles_tell_a_right_map_from_a_wrong_one(
    part: class_parts.ClassPart, particles: ParticleTransforms, make_known: Make
) -> None:
    true = make_known(COUNT, with_ctf=False)
    poses = PoseSet.from_angstrom(true.poses, 5.0, 16)
    right = with_map(part, true.volume.values)
    right = replace(right, halves=right.halves.with_poses(poses.each(torch.Tensor.float)))
    wrong = replace(right, halves=with_map(part, noise_map() * float(true.volume.values.std())).halves)
    first, second = (class_parts.held_out_log_likelihood(each, particles, 6) for each in (right, wrong))
    assert float((first > second).float().mean()) > 0.95


def test_no_particle_is_judged_by_a_map_of_its_own_half_set(
    part: class_parts.ClassPart, particles: ParticleTransforms
) -> None:
    volume = part.halves.reference.mean
    found = [
        class_parts.held_out_log_likelihood(
            replace(part, halves=replace(part.halves, reference=HalfSetMaps(first, volume))), particles, 6
        )
        for first in (volume, noise_map())
    ]
    is_first = part.halves.half_set == 1
    assert torch.equal(found[0][is_first], found[1][is_first])
    assert not torch.equal(found[0][~is_first], found[1][~is_first])


@pytest.mark.parametrize("alone", ["right", "wrong", None])
def test_a_stalled_class_has_the_map_that_explains_held_out_particles_better(
    part: class_parts.ClassPart,
    particles: ParticleTransforms,
    make_known: Make,
    monkeypatch: pytest.MonkeyPatch,
    alone: str | None,
) -> None:
    """That of new random starts with its particles alone, or the one that it had."""
    right = make_known(COUNT).volume.values
    maps = {"right": right, "wrong": noise_map() * float(right.std())}
    start = with_map(part, maps["wrong" if alone == "right" else "right"]).halves
    steps = class_parts.refine_class(particles, part.rows, start, part.settings, 1, no_checkpoints)
    before = result_of(steps)

    def search(*_: object) -> Generator[Note, None, RefinementState | None]:
        yield Note("new random starts")
        return None if alone is None else with_map(part, maps[alone]).halves

    monkeypatch.setattr(class_parts, "search_alone", search)
    monkeypatch.setattr(class_parts.ClassPart, "is_stalled", True)
    found = result_of(class_parts.refine_again_where_stalled(before, particles, no_checkpoints))
    assert (found is before) == (alone != "right")
    monkeypatch.setattr(class_parts.ClassPart, "is_stalled", False)
    assert result_of(class_parts.refine_again_where_stalled(before, particles, no_checkpoints)) is before
