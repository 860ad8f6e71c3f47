"""Proposals: the right one is found and trusted, a missing one is noticed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.training.synthetic.candidate_selection import RankedPoses, rank_candidates

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT, RADIUS, LEAST = 64, 6, 0.9


@pytest.fixture(scope="module")
def known(make_known: Callable, observe: Callable) -> tuple[ParticleTransforms, Tensor, Tensor, Tensor]:
    made = make_known(COUNT, sigma=0.5)
    return observe(made.dataset), made.volume.values, made.poses.rotations.float(), made.shifts_px.float()


def _judge(known: tuple[ParticleTransforms, Tensor, Tensor, Tensor], rotations: Tensor) -> RankedPoses:
    images, volume, _, shifts = known
    part = images.within(RADIUS, images.plane.box_size_px)
    each = rotations.shape[1]
    return rank_candidates(images, part, volume, (rotations, shifts[:, None].repeat(1, each, 1)), shift_sigma_px=1.2)


def test_the_right_pose_is_found_among_others(known: tuple[ParticleTransforms, Tensor, Tensor, Tensor]) -> None:
    truth = known[2]
    others = random_rotations(5 * COUNT, torch.Generator().manual_seed(3)).view(COUNT, 5, 3, 3)
    judged = _judge(known, torch.cat([others, truth[:, None]], 1))
    errors = rotation_angle_rad(judged.refined.rotations, truth).rad2deg()
    assert float(errors.median()) < 8
    assert float(judged.fit.median()) == pytest.approx(0.0, abs=1.0)
    assert float((~judged.doubtful(LEAST)).float().mean()) > 0.6


def test_twins_are_one_witness(known: tuple[ParticleTransforms, Tensor, Tensor, Tensor]) -> None:
    judged = _judge(known, known[2][:, None].repeat(1, 2, 1, 1))
    assert torch.equal(judged.confidence, torch.ones(COUNT))


def test_wrong_poses_are_doubtful(known: tuple[ParticleTransforms, Tensor, Tensor, Tensor]) -> None:
    rotations = known[2].clone()
    rotations[:16] = random_rotations(16, torch.Generator().manual_seed(4))
    judged = _judge(known, rotations[:, None])
    errors = rotation_angle_rad(judged.refined.rotations, known[2]).rad2deg()
    is_wrong = errors > 30
    assert int(is_wrong.sum()) >= 6
    doubtful = judged.doubtful(LEAST)
    assert float(doubtful[is_wrong].float().mean()) > 0.7
    assert float(doubtful[~is_wrong].float().mean()) < 0.2
