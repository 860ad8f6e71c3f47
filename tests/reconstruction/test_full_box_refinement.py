"""Refinement at the full box: where it ends, how far it reads, and that the half sets stay apart."""

import math
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import pytest
import torch

from cryoeq.domain.events import Event, Note, result_of
from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.so3 import rotation_angle_rad, rotation_from_vector
from cryoeq.reconstruction import full_box_refinement
from cryoeq.reconstruction.full_box_refinement import FullBoxPoses, FullBoxSettings, refine_at_full_box
from cryoeq.reconstruction.maximization import SolventMask
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.state import RefinementSettings
from pipeline_events import events_and_result

Make = Callable[..., Any]
COUNT, N, LAST = 60, 16, 7
HALF_SET = torch.arange(COUNT) % 2 + 1

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def few_shells_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_box_refinement, "_SHELLS_BEYOND", 2)
    monkeypatch.setattr(full_box_refinement, "_RESERVE", 1)
    monkeypatch.setattr(full_box_refinement, "_BOX_STEP", 2)


def settings(**changes: Any) -> FullBoxSettings:
    refinement = RefinementSettings(
        consensus_shells=(3,), max_extra_iterations=0, max_particles=COUNT, iterations=1, max_exhaustive_shell=4,
        local_iterations=0, n_offsets=1, shift_sigma_px=1.2, mask_radius=0.42, symmetry=torch.eye(3)[None],
        box_side_angstrom=80.0,
    )  # fmt: skip
    return replace(FullBoxSettings(refinement, N, 4, LAST, 4), **changes)


class Reader:
    """Reads particles up to a radius, and remembers which."""

    def __init__(self, particles: ParticleTransforms) -> None:
        self.particles, self.radii = particles, list[int]()

    def __call__(self, radius: int) -> Generator[Event, None, ParticleTransforms]:
        self.radii.append(radius)
        yield Note("reading")
        return self.particles.within(radius, N)


def off_by(poses: PoseSet, angle_deg: float) -> PoseSet:
    """Poses rotated by an angle about random axes."""
    axes = torch.nn.functional.normalize(torch.randn(COUNT, 3, generator=torch.Generator().manual_seed(3)), dim=1)
    return replace(poses, rotations=rotation_from_vector(math.radians(angle_deg) * axes) @ poses.rotations)


def median_deg(found: PoseSet, true: PoseSet) -> float:
    return math.degrees(float(rotation_angle_rad(found.rotations, true.rotations).median()))


def refine(particles: ParticleTransforms, poses: PoseSet, chosen: FullBoxSettings) -> FullBoxPoses:
    return result_of(refine_at_full_box(poses, HALF_SET, Reader(particles), chosen))


def test_poses_are_refined_in_the_pixels_of_the_full_box(make_known: Make, observe: Make) -> None:
    known = make_known(COUNT, sigma=0.3)
    start, true = off_by(known.pose_set, 5.0), known.pose_set
    found = refine(observe(known.dataset), start, settings())
    assert median_deg(found.half_poses, true) < 0.5 * median_deg(start, true)
    assert median_deg(found.refined.poses, true) < 0.5 * median_deg(start, true)
    for poses in (found.half_poses, found.refined.poses):
        assert poses.box_size_px == N
        assert float((poses.shifts_px - true.shifts_px).norm(dim=1).median()) < 0.2


def test_it_reads_as_far_as_the_correlation_needs_and_no_limit_is_passed(make_known: Make, observe: Make) -> None:
    known = make_known(COUNT, sigma=0.3)
    for last in (5, LAST):
        reader = Reader(observe(known.dataset))
        chosen = settings(last_shell=last, first_shell=3)
        found = result_of(refine_at_full_box(known.pose_set, HALF_SET, reader, chosen))
        assert reader.radii == sorted(set(reader.radii)), "each time further"
        assert reader.radii[-1] == last
        assert found.resolution_shell <= last


def test_it_ends_where_nothing_moves_and_says_where_it_did_not(make_known: Make, observe: Make) -> None:
    known = make_known(COUNT, sigma=0.3)
    particles = observe(known.dataset)
    settled = settings(iterations=20)
    events, found = events_and_result(refine_at_full_box(known.pose_set, HALF_SET, Reader(particles), settled))
    assert found.iterations < 20
    assert not [event for event in events if isinstance(event, Note) and event.level == "warning"]
    start = off_by(known.pose_set, 8.0)
    events, _ = events_and_result(refine_at_full_box(start, HALF_SET, Reader(particles), settings(iterations=1)))
    assert [event.text for event in events if isinstance(event, Note) and event.level == "warning"] == [
        "The full-box refinement was still moving after 1 iterations; --set full_box.iterations=N allows more."
    ]


@pytest.mark.parametrize("half", [1, 2])
def test_no_pose_of_a_half_set_depends_on_the_particles_of_the_other(
    make_known: Make, observe: Make, monkeypatch: pytest.MonkeyPatch, half: int
) -> None:
    """Not in one bit, where the two numbers per shell that the half sets share are equal: noise variance and FSC."""
    monkeypatch.setattr(
        "cryoeq.reconstruction.maximization.fourier_shell_correlation",
        lambda first, _: torch.linspace(1.0, 0.2, len(first) // 2 + 1),
    )
    known = make_known(COUNT, sigma=1.0)
    particles, start = observe(known.dataset), off_by(known.pose_set, 5.0)
    signs = 1 - 2.0 * torch.randint(2, particles.ctf_squared.shape, generator=torch.Generator().manual_seed(1))
    is_other = (half != HALF_SET)[:, None]
    scrambled = replace(particles, ctf_multiplied=torch.where(is_other, signs, 1.0) * particles.ctf_multiplied)
    chosen = settings(iterations=2)
    ours, theirs = (refine(images, start, chosen) for images in (particles, scrambled))
    own = half == HALF_SET
    assert torch.equal(ours.half_poses.rotations[own], theirs.half_poses.rotations[own])
    assert not torch.equal(ours.half_poses.rotations[~own], theirs.half_poses.rotations[~own])
    assert not torch.equal(ours.refined.poses.rotations[own], theirs.refined.poses.rotations[own]), "all see all"


def test_poses_from_elsewhere_count_for_the_first_shells_only(make_known: Make, observe: Make) -> None:
    """The first half maps of poses that were not refined apart may agree by their noise."""
    known, radii = make_known(COUNT, sigma=0.3), dict[bool, int]()
    for is_independent in (True, False):

        def keep(name: str, step: Any, is_independent: bool = is_independent) -> Any:
            state = yield from step
            if name == "full_box_0":
                radii[is_independent] = state.radius
            return state

        chosen = settings(first_shell=3, is_independent=is_independent)
        result_of(refine_at_full_box(known.pose_set, HALF_SET, Reader(observe(known.dataset)), chosen, checkpoint=keep))
    assert radii[False] == 3 < radii[True]


def test_the_solvent_is_flattened_by_the_mask_that_is_found(make_known: Make, observe: Make) -> None:
    """The correlation within the mask sets the resolution, and an empty one flattens all: no pose moves."""
    known = make_known(COUNT, sigma=0.3)
    start = off_by(known.pose_set, 3.0)

    def nothing(halves: tuple[torch.Tensor, torch.Tensor]) -> SolventMask:
        n = len(halves[0])
        return SolventMask(torch.zeros(n, n, n), torch.where(torch.arange(n // 2 + 1) <= 4, 1.0, 0.0))

    flat = refine(observe(known.dataset), start, settings(iterations=2, find_solvent=nothing))
    assert flat.resolution_shell == 4
    torch.testing.assert_close(flat.half_poses.rotations, start.rotations)
    unmasked = refine(observe(known.dataset), start, settings(iterations=2, find_solvent=lambda _: None))
    assert median_deg(unmasked.half_poses, known.pose_set) < median_deg(start, known.pose_set)
