"""Features of particles: right poses correlate best, the scale of images does not count, a grid finds the pose."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cryoeq.domain.particles import ParticleBatch
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import Volume
from cryoeq.evaluation.particle_features import ReferenceProjections, measure_particle_features
from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad
from cryoeq.simulation.density import sample_atoms
from cryoeq.simulation.particles import NoiseFreeStack
from phantoms import chiral_phantom

N, PIXEL, COUNT = 24, 6.0, 20


@pytest.fixture(scope="module")
def volume() -> Volume:
    return sample_atoms(chiral_phantom(45.0), N, PIXEL)


@pytest.fixture(scope="module")
def references(volume: Volume) -> ReferenceProjections:
    noise = torch.randn(64, N, N, generator=torch.Generator().manual_seed(1))
    return ReferenceProjections.from_maps((volume, Volume(-volume.values, PIXEL)), noise, N * PIXEL, 20.0)


def particles(volume: Volume, rotations: Tensor, generator: torch.Generator) -> tuple[ParticleBatch, Poses]:
    poses = Poses(rotations, 4 * torch.randn(len(rotations), 2, generator=generator))
    images = torch.cat(list(NoiseFreeStack.from_map(volume, poses, None).batches()))
    return ParticleBatch(torch.arange(len(rotations)), images, None), poses


def test_the_right_pose_agrees_and_the_wrong_map_disagrees(
    volume: Volume, references: ReferenceProjections, generator: torch.Generator
) -> None:
    batch, poses = particles(volume, random_rotations(COUNT, generator), generator)
    transforms, right = references.transform(batch, poses), torch.zeros(COUNT, dtype=torch.long)
    found = measure_particle_features(references, transforms, poses, batch.indices, right)
    assert found.errors.max() < 0.02
    torch.testing.assert_close(found.features[:, 3], torch.ones(COUNT), atol=0.03, rtol=0)  # amplitude
    opposite = measure_particle_features(references, transforms, poses, batch.indices, right + 1)
    assert opposite.errors.min() > 1.98
    rotated = replace(poses, rotations=random_rotations(COUNT, generator))
    wrong = measure_particle_features(references, transforms, rotated, batch.indices, right)
    assert wrong.errors.mean() > found.errors.mean() + 0.1
    assert (wrong.features[:, 4] > found.features[:, 4]).all()  # other poses agree better than the one given


def test_the_scale_of_an_image_does_not_change_its_correlation(
    volume: Volume, references: ReferenceProjections, generator: torch.Generator
) -> None:
    batch, poses = particles(volume, random_rotations(COUNT, generator), generator)
    map_index = torch.zeros(COUNT, dtype=torch.long)
    both = [
        measure_particle_features(references, references.transform(some, poses), poses, batch.indices, map_index)
        for some in (batch, replace(batch, images=7 * batch.images))
    ]
    torch.testing.assert_close(both[1].errors, both[0].errors, atol=1e-5, rtol=0)
    torch.testing.assert_close(both[1].features[:, 3], 7 * both[0].features[:, 3])


def test_the_best_pose_of_the_grid_is_near_the_true_one(
    volume: Volume, references: ReferenceProjections, generator: torch.Generator
) -> None:
    batch, poses = particles(volume, random_rotations(COUNT, generator), generator)
    transforms = references.transform(batch, poses)
    best = references.best_rotations(transforms, torch.zeros(COUNT, dtype=torch.long))
    assert rotation_angle_rad(best, poses.rotations).rad2deg().median() < 20
