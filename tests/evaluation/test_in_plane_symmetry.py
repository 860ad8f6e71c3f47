"""Laws of the test of in-plane symmetry, on simulated images with known poses and half sets."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.preprocessing import Preprocessing
from cryoeq.domain.optics import CtfParameters, Optics
from cryoeq.domain.particles import ParticleTable
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.equivariance.actions import act_on_rotations
from cryoeq.equivariance.groups import permute_pixels
from cryoeq.evaluation.in_plane_symmetry import InPlaneSymmetry, measure_in_plane_symmetry
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.io.images import LazyImages
from cryoeq.physics.ctf import evaluate_ctf, image_transfer
from cryoeq.physics.image_formation import form_images
from cryoeq.physics.projection import prepare_slices
from cryoeq.simulation.density import sample_atoms
from cryoeq.simulation.particles import DefocusRange, draw_ctf, draw_poses
from phantoms import chiral_phantom

N, ANGPIX, COUNT = 25, 4.0, 400
"""The centre of rotation of an odd box is a pixel."""
DIRECTION_DEG = 30.0


@pytest.fixture(scope="module")
def volume() -> Volume:
    return sample_atoms(chiral_phantom(28.0), N, ANGPIX)


def round_ctf(ctf: CtfParameters) -> CtfParameters:
    """The CTF of a star file without astigmatism."""
    mean = (ctf.defocus_u_angstrom + ctf.defocus_v_angstrom) / 2
    return replace(ctf, defocus_u_angstrom=mean, defocus_v_angstrom=mean)


def particles(
    volume: Volume,
    seed: int,
    *,
    astigmatism_angstrom: float = 0.0,
    coma_rad: float = 0.0,
    stored: str = "plain",
) -> tuple[ParticleDataset, Poses, CtfParameters]:
    """At a signal-to-noise ratio of 1, with CTFs all astigmatic in one direction; the true CTFs come last."""
    generator = torch.Generator().manual_seed(seed)
    poses = draw_poses(COUNT, "uniform", ANGPIX, generator)
    optics = Optics("one", ANGPIX, 300.0, 2.7, 0.1)
    drawn = round_ctf(draw_ctf(COUNT, optics, DefocusRange(1e4, 2.5e4), generator))
    half = torch.full((COUNT,), astigmatism_angstrom / 2)
    ctf = replace(
        drawn,
        defocus_u_angstrom=drawn.defocus_u_angstrom + half,
        defocus_v_angstrom=drawn.defocus_v_angstrom - half,
        defocus_angle_rad=torch.full((COUNT,), math.radians(DIRECTION_DEG)),
    )
    plane = HalfPlane.up_to(N, N / 2 - 1e-3)
    frequencies = plane.frequencies_per_angstrom(ANGPIX)
    shifts_px = poses.shifts_angstrom.float() / ANGPIX
    clean = form_images(
        prepare_slices(volume.values.float()),
        poses.rotations.float(),
        shifts_px,
        image_transfer(ctf, frequencies),
        plane,
    )
    direction = plane.coords[:, 0] * plane.radii.square() / plane.radii.max() ** 3
    images = plane.images(clean * torch.exp(1j * coma_rad * direction))
    images = images / images.std()
    images = images + torch.randn(images.shape, generator=generator)
    recorded = round_ctf(ctf)
    if stored == "premultiplied":
        images = plane.images(plane.transform(images) * evaluate_ctf(recorded, frequencies))
        recorded = replace(recorded, is_premultiplied=torch.ones(COUNT))
    if stored == "phase-flipped":
        images = plane.images(plane.transform(images) * evaluate_ctf(recorded, frequencies).sign())
        recorded = replace(recorded, is_phase_flipped=torch.ones(COUNT))
    return dataset_of(images, recorded), poses, ctf


def dataset_of(images: Tensor, ctf: CtfParameters | None) -> ParticleDataset:
    rows = torch.arange(COUNT)
    zeros = torch.zeros_like(rows)
    table = ParticleTable((), zeros, rows, N, ANGPIX, (Optics("one", ANGPIX, 300.0, 2.7, 0.1),), zeros, ctf)
    return ParticleDataset(table, N, ANGPIX, (), LazyImages((), zeros, rows), Preprocessing(N, 1.0, 1), images)


def measure(dataset: ParticleDataset, poses: Poses, volume: Volume) -> InPlaneSymmetry:
    half_set = torch.arange(COUNT) % 2 + 1
    generator = torch.Generator().manual_seed(1)
    return measure_in_plane_symmetry(
        dataset, poses, half_set, HalfMaps(volume, volume), resolution_angstrom=9.0, generator=generator
    )


@pytest.mark.parametrize("stored", ["plain", "premultiplied", "phase-flipped"])
def test_an_astigmatism_missing_in_the_star_file_is_found(volume: Volume, stored: str) -> None:
    dataset, poses, _ = particles(volume, 0, astigmatism_angstrom=1500.0, stored=stored)
    found = measure(dataset, poses, volume)
    assert found.is_broken
    assert found.p_value == pytest.approx(0.01)
    assert int(found.strengths.argmax()) == 1, "order 2"
    assert found.astigmatism_angstrom is not None
    assert found.astigmatism_sigma_angstrom is not None
    assert found.astigmatism_angle_deg is not None
    assert abs(found.astigmatism_angstrom - 1500) < 4 * found.astigmatism_sigma_angstrom < 750
    assert found.astigmatism_angle_deg == pytest.approx(DIRECTION_DEG, abs=8)
    assert float(found.likelihood.mean()) == pytest.approx(1)
    assert float(found.likelihood[0]) > float(found.likelihood.max()) - 0.05, "the identity is the mode"


@pytest.mark.parametrize("seed", range(5))
def test_an_astigmatism_in_the_star_file_is_not(volume: Volume, seed: int) -> None:
    dataset, poses, ctf = particles(volume, seed, astigmatism_angstrom=1500.0)
    assert dataset.cache is not None
    found = measure(dataset_of(dataset.cache, ctf), poses, volume)
    assert not found.is_broken
    assert found.astigmatism_angstrom is not None
    assert found.astigmatism_sigma_angstrom is not None
    assert found.astigmatism_angstrom < 4 * found.astigmatism_sigma_angstrom


def test_coma_is_of_odd_order(volume: Volume) -> None:
    dataset, poses, _ = particles(volume, 0, coma_rad=1.0)
    found = measure(dataset, poses, volume)
    assert found.is_broken
    assert int(found.strengths.argmax()) == 0, "order 1"


def test_particles_without_a_ctf_have_no_astigmatism(volume: Volume) -> None:
    dataset, poses, _ = particles(volume, 0)
    assert dataset.cache is not None
    found = measure(dataset_of(dataset.cache, None), poses, volume)
    assert found.astigmatism_angstrom is None
    assert found.count == COUNT


def test_the_result_does_not_depend_on_a_common_rotation(volume: Volume) -> None:
    """A quarter turn of images, poses and CTFs leaves the result as it was, with the direction rotated along."""
    dataset, poses, _ = particles(volume, 0, astigmatism_angstrom=1500.0)
    assert dataset.cache is not None
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    ctf = dataset.table.ctf
    rotated = replace(poses, rotations=act_on_rotations(turn, poses.rotations.float()),
                     shifts_angstrom=poses.shifts_angstrom.float() @ turn.T)  # fmt: skip
    before = measure(dataset, poses, volume)
    after = measure(dataset_of(permute_pixels(dataset.cache, turn), ctf), rotated, volume)
    assert after.divergence == pytest.approx(before.divergence, rel=1e-3)
    assert after.astigmatism_angle_deg is not None
    assert before.astigmatism_angle_deg is not None
    difference = (after.astigmatism_angle_deg - before.astigmatism_angle_deg) % 180
    assert difference == pytest.approx(90, abs=0.1)
    torch.testing.assert_close(after.rotated_divergences, before.rotated_divergences, rtol=5e-2, atol=2e-3)
