"""Pose candidates: the right one is chosen and trusted, its absence is noticed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad
from cryoeq.models.pose_encoder import PoseEncoder
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.reference import Reference
from cryoeq.training.synthetic import candidate_selection
from cryoeq.training.synthetic.candidate_selection import RankedPoses, propose_poses_for_all, rank_candidates
from cryoeq.training.synthetic.encoder_input import EncoderInput, encoder_box_px

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT, RADIUS, MIN_CONFIDENCE = 64, 6, 0.9
Known = tuple[ParticleTransforms, Tensor, PoseSet]


@pytest.fixture(scope="module")
def known(make_known: Callable, observe: Callable) -> Known:
    """Particles, their map and their poses."""
    made = make_known(COUNT, sigma=0.5)
    return observe(made.dataset), made.volume.values, made.pose_set.each(torch.Tensor.float)


def rank(known: Known, rotations: Tensor) -> RankedPoses:
    """Rotations with the true shifts as candidates."""
    particles, volume, poses = known
    box = particles.plane.box_size_px
    candidates = PoseSet(rotations, poses.shifts_px[:, None].repeat(1, rotations.shape[1], 1), box)
    reference = Reference.prepare(volume, particles)
    return rank_candidates(particles.within(RADIUS, box), reference, candidates, shift_sigma_px=1.2)


def test_the_right_pose_is_found_among_others(known: Known) -> None:
    truth = known[2].rotations
    others = random_rotations(5 * COUNT, torch.Generator().manual_seed(3)).view(COUNT, 5, 3, 3)
    ranked = rank(known, torch.cat([others, truth[:, None]], 1))
    errors = rotation_angle_rad(ranked.refined.poses.rotations, truth).rad2deg()
    assert float(errors.median()) < 8
    assert float(ranked.fit.median()) == pytest.approx(0.0, abs=1.0)
    assert float((~ranked.low_confidence(MIN_CONFIDENCE)).float().mean()) > 0.6


def test_equal_candidates_do_not_compete(known: Known) -> None:
    ranked = rank(known, known[2].rotations[:, None].repeat(1, 2, 1, 1))
    assert torch.equal(ranked.confidence, torch.ones(COUNT))


def test_wrong_poses_are_of_low_confidence(known: Known) -> None:
    truth = known[2].rotations
    rotations = truth.clone()
    rotations[:16] = random_rotations(16, torch.Generator().manual_seed(4))
    ranked = rank(known, rotations[:, None])
    is_wrong = rotation_angle_rad(ranked.refined.poses.rotations, truth).rad2deg() > 30
    assert int(is_wrong.sum()) >= 6
    is_doubtful = ranked.low_confidence(MIN_CONFIDENCE)
    assert float(is_doubtful[is_wrong].float().mean()) > 0.7
    assert float(is_doubtful[~is_wrong].float().mean()) < 0.2


def test_a_process_without_particles_proposes_nothing(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    particles, volume, _ = known
    encoder = PoseEncoder("c4", encoder_box_px(RADIUS), 2, (32,), trunk="dense", low_passes=False).eval()
    encoder_input = EncoderInput.from_map(particles, volume, RADIUS, 0.0)
    monkeypatch.setattr(candidate_selection, "shard", lambda rows: rows[:0])
    monkeypatch.setattr(candidate_selection, "all_gather", lambda table, rows, count: table)
    assert len(propose_poses_for_all(encoder, particles, encoder_input).rotations) == 0
