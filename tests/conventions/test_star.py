"""Euler angles, offsets, axes and units of star files, against frozen numbers of scipy and pixels of RELION."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad
from cryoeq.io.euler import relion_euler_deg, rotations_from_euler_deg, view_angles_deg
from cryoeq.io.mrc import read_map
from cryoeq.io.particles import ParticleStack, read_particles

# scipy 1.17: from_euler("ZYZ", [rot, tilt, psi], degrees=True).as_matrix().T; the first is row 1 of relion_1wcm
FROZEN = [
    (
        [-74.36054, 120.18639, 61.16473],
        [
            [0.7782025808, 0.4696832677, -0.4168913182],
            [0.5831805804, -0.2941450956, 0.7572179828],
            [0.2330260799, -0.8323919093, -0.5028146332],
        ],
    ),
    (
        [10.0, 20.0, 30.0],
        [
            [0.7146101771, 0.6337183609, -0.2961981327],
            [-0.6130920224, 0.7712805764, 0.1710100717],
            [0.3368240888, 0.0593911746, 0.9396926208],
        ],
    ),
    (
        [-150.0, 75.5, -95.25],
        [
            [-0.4780616697, 0.8738474523, 0.0885870762],
            [-0.2616766131, -0.0454220947, -0.9640861909],
            [-0.8384404512, -0.4840738202, 0.2503800041],
        ],
    ),
    ([0.0, 0.0, 40.0], [[0.7660444431, 0.6427876097, 0.0], [-0.6427876097, 0.7660444431, 0.0], [0.0, 0.0, 1.0]]),
]


@pytest.mark.parametrize(("euler", "matrix"), FROZEN)
def test_matrix_of_euler_angles(euler: list[float], matrix: list[list[float]]) -> None:
    ours = rotations_from_euler_deg(torch.tensor([euler], dtype=torch.float64))
    torch.testing.assert_close(ours[0], torch.tensor(matrix, dtype=torch.float64), rtol=0, atol=1e-9)
    scipy = Rotation.from_euler("ZYZ", euler, degrees=True).as_matrix().T
    np.testing.assert_allclose(ours[0].numpy(), scipy, rtol=0, atol=1e-12)


@given(st.floats(-180, 180), st.floats(0, 180), st.floats(-180, 180))
def test_the_matrix_survives_the_way_through_the_angles(rot: float, tilt: float, psi: float) -> None:
    rotations = rotations_from_euler_deg(torch.tensor([[rot, tilt, psi]], dtype=torch.float64))
    euler = relion_euler_deg(rotations)
    assert bool((euler.abs() <= 180).all() and (euler[:, 1] >= 0).all())
    torch.testing.assert_close(rotations_from_euler_deg(euler), rotations, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tilt", [0.0, 1e-7, 1e-4, 0.01, 179.99, 180.0])
def test_single_precision_is_enough_also_at_the_poles(tilt: float) -> None:
    euler = torch.tensor([[33.0, tilt, -71.0], [-120.0, tilt, 15.0]])
    rotations = rotations_from_euler_deg(euler.double()).float()
    back = rotations_from_euler_deg(relion_euler_deg(rotations).double()).float()
    assert torch.rad2deg(rotation_angle_rad(back, rotations)).max() < 1e-4


def test_angles_of_random_rotations_agree_with_scipy(generator: torch.Generator) -> None:
    rotations = random_rotations(200, generator).double()
    rotations = torch.linalg.qr(rotations).Q * torch.linalg.det(torch.linalg.qr(rotations).Q)[:, None, None]
    scipy = Rotation.from_matrix(rotations.mT.numpy()).as_euler("ZYZ", degrees=True)
    np.testing.assert_allclose(relion_euler_deg(rotations).numpy(), scipy, rtol=0, atol=1e-6)
    np.testing.assert_allclose(view_angles_deg(rotations[:, 2]).numpy(), scipy[:, :2], rtol=0, atol=1e-6)


def _positions(n: int, n_dims: int) -> torch.Tensor:
    """(x, y) or (x, y, z) of each pixel of a flattened image or map, from pixel n // 2; x is the last axis."""
    axis = torch.arange(n, dtype=torch.float64) - n // 2
    return torch.stack(torch.meshgrid(*[axis] * n_dims, indexing="ij")[::-1], -1).reshape(-1, n_dims)


def _centre_of_mass(images: torch.Tensor) -> torch.Tensor:
    """In pixels from pixel n // 2, of each image or map."""
    weights = images.double().flatten(1)
    return weights @ _positions(images.shape[-1], images.ndim - 1) / weights.sum(1, keepdim=True)


@pytest.fixture(scope="module")
def relion_images(reference_data: Path) -> ParticleStack:
    """RELION's projections without CTF and noise."""
    return read_particles(reference_data / "relion_1wcm" / "noctf105.star", with_poses=True)


@pytest.mark.realdata
def test_the_offset_moves_the_particle_of_relion_to_the_centre(relion_images: ParticleStack) -> None:
    poses = relion_images.table.poses
    assert poses is not None
    found_angstrom = _centre_of_mass(relion_images.images.read(torch.arange(105))) * 3.75
    assert poses.shifts_angstrom.abs().max() > 10
    assert (found_angstrom + poses.shifts_angstrom).abs().max() < 1


@pytest.mark.realdata
def test_the_matrix_turns_the_map_into_the_pixels_of_relion(relion_images: ParticleStack, reference_data: Path) -> None:
    """The skewness of each image is that of the turned map: third moments tell A from its transpose and its mirror."""
    poses = relion_images.table.poses
    assert poses is not None
    volume = read_map(reference_data / "relion_1wcm" / "truth_1WCM_64p_3.75A.mrc").values.double()
    xyz = _positions(64, 3)
    of_map = torch.einsum("p,pi,pj,pk->ijk", volume.flatten() / volume.sum(), xyz, xyz, xyz)
    images = relion_images.images.read(torch.arange(105)).double().flatten(1)
    weights = images / images.sum(1, keepdim=True)
    xy = _positions(64, 2) + poses.shifts_angstrom.double()[:, None] / 3.75
    of_images = torch.einsum("bp,bpi,bpj,bpk->bijk", weights, xy, xy, xy)

    def agreement(rotations: torch.Tensor) -> float:
        turned = torch.einsum("bai,bcj,bdk,ijk->bacd", rotations, rotations, rotations, of_map)[:, :2, :2, :2]
        return float(torch.corrcoef(torch.stack([turned.flatten(), of_images.flatten()]))[0, 1])

    right = poses.rotations.double()
    flip = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    assert agreement(right) > 0.95
    assert agreement(right.mT) < 0.5
    assert agreement(right @ flip) < 0.8


@pytest.mark.realdata
def test_the_truth_of_cryodrgn_is_the_same_matrix(reference_data: Path) -> None:
    folder = reference_data / "toy_cryodrgn"
    truth = np.load(folder / "truth.npz")
    rotations = torch.from_numpy(truth["rotations"]).double()
    euler = relion_euler_deg(rotations)
    assert torch.rad2deg(rotation_angle_rad(rotations_from_euler_deg(euler), rotations)).max() < 1e-4
    stack = read_particles(folder / "toy_projections.star", angpix=1.0)
    volume = read_map(folder / "toymodel_small_nocenter.mrc", angpix=1.0)
    expected = (rotations @ _centre_of_mass(volume.values[None])[0])[:, :2]
    found = _centre_of_mass(stack.images.read(torch.arange(1000))) + torch.from_numpy(truth["shifts_px"])
    assert expected.norm(dim=1).mean() > 2
    assert (found - expected).norm(dim=1).max() < 0.3
