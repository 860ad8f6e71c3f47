"""A map is what its atoms say, and its projections obey the conventions page."""

import math

import pytest
import torch
from torch import Tensor

from cryoeq.domain.atoms import Atoms
from cryoeq.domain.volume import Volume
from cryoeq.geometry.fourier import HalfPlane, fft_image, fft_map
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.simulation.density import (
    ATOM_BFACTOR_ANGSTROM2,
    replicate_atoms,
    resample_map,
    sample_atoms,
    symmetrise_map,
)
from cryoeq.simulation.slicing import FourierSampler
from phantoms import gaussian_blobs, random_phantom

SIDE_ANGSTROM = 32 * 5.0


@pytest.fixture
def plane() -> HalfPlane:
    return HalfPlane.up_to(32, 0.8 * 16)


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Smallest correlation over the batch of two sets of coefficients."""
    products = (first * second.conj()).sum(-1).real
    return (products / (first.norm(dim=-1) * second.norm(dim=-1))).min()


def exact_slice(atoms: Atoms, rotation: Tensor, coords: Tensor, box_size_px: int) -> Tensor:
    """The Fourier integral of the atoms, written down as it stands in the textbook."""
    frequencies = coords.double() / SIDE_ANGSTROM
    in_image = atoms.positions_angstrom.double() @ rotation.double().T
    widths = atoms.bfactors_angstrom2.double() + ATOM_BFACTOR_ANGSTROM2
    envelopes = torch.exp(-widths / 4 * frequencies.square().sum(-1, keepdim=True))
    waves = torch.exp(-2j * math.pi * (frequencies @ in_image[:, :2].T))
    return (atoms.weights.double() * envelopes * waves).sum(-1) / box_size_px


@pytest.mark.parametrize("n", [32, 33])
def test_coefficients_of_a_map_are_the_fourier_integral_of_its_atoms(n: int, generator: torch.Generator) -> None:
    atoms = random_phantom(40, 55.0, generator)
    volume = sample_atoms(atoms, n, SIDE_ANGSTROM / n)
    plane = HalfPlane.up_to(n, 15.0)
    on_grid = plane.gather(fft_map(volume.values)[n // 2])  # the plane kz = 0 is the slice of the identity
    expected = exact_slice(atoms, torch.eye(3), plane.coords, n)
    assert (on_grid - expected).abs().max() < 1e-5 * expected.abs().max()


def test_axes_of_a_map_are_z_y_x() -> None:
    blob = Atoms(torch.tensor([[10.0, 20.0, -15.0]]), torch.ones(1), torch.full((1,), 8000.0))
    peak = int(sample_atoms(blob, 32, 5.0).values.argmax())
    assert (peak // 1024, peak // 32 % 32, peak % 32) == (16 - 3, 16 + 4, 16 + 2)


def test_voxels_add_up_to_the_weights(phantom: Atoms, phantom_map: Volume) -> None:
    torch.testing.assert_close(phantom_map.values.sum(), phantom.weights.sum(), rtol=1e-5, atol=0.0)


def test_projection_along_z_is_the_slice_of_the_identity(phantom_map: Volume) -> None:
    plane = HalfPlane.up_to(32, 15.0)
    projection = plane.gather(fft_image(phantom_map.values.sum(0)))
    sliced = FourierSampler(phantom_map.values).slices(torch.eye(3)[None], plane)[0]
    assert (projection - sliced).norm() < 2e-3 * projection.norm()


def test_slices_are_those_of_the_atoms_at_any_rotation(
    phantom: Atoms, phantom_map: Volume, plane: HalfPlane, generator: torch.Generator
) -> None:
    rotations = random_rotations(8, generator)
    exact = torch.stack([exact_slice(phantom, rotation, plane.coords, 32) for rotation in rotations])
    ours = FourierSampler(phantom_map.values).slices(rotations, plane)
    trilinear = extract_slices(prepare_slices(phantom_map.values), rotations, plane)
    assert (ours - exact).norm() < 2e-3 * exact.norm()
    # The point of this module: data that are simulated here do not share the error of the slices that decode them.
    assert (trilinear - exact).norm() > 5 * (ours - exact).norm()


def test_turning_the_molecule_composes_with_the_pose(
    phantom: Atoms, phantom_map: Volume, plane: HalfPlane, generator: torch.Generator
) -> None:
    turn, *poses = random_rotations(5, generator)
    rotations = torch.stack(poses)
    turned = FourierSampler(sample_atoms(phantom.rotated(turn), 32, 5.0).values)
    still = FourierSampler(phantom_map.values)
    assert correlation(turned.slices(rotations, plane), still.slices(rotations @ turn, plane)) > 0.9999
    assert correlation(turned.slices(rotations, plane), still.slices(turn @ rotations, plane)) < 0.99


def test_mirror_image_gives_the_same_images_at_mirrored_poses_only(
    phantom: Atoms, phantom_map: Volume, plane: HalfPlane, generator: torch.Generator
) -> None:
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    rotations = random_rotations(6, generator)
    mirrored = FourierSampler(sample_atoms(phantom.rotated(mirror), 32, 5.0).values)
    still = FourierSampler(phantom_map.values)
    images = still.slices(rotations, plane)
    assert correlation(mirrored.slices(mirror @ rotations @ mirror, plane), images) > 0.9999
    assert correlation(mirrored.slices(rotations, plane), images) < 0.99


def test_the_phantom_has_no_symmetry_and_is_chiral(phantom: Atoms, generator: torch.Generator) -> None:
    positions = phantom.positions_angstrom
    variance = float(phantom.bfactors_angstrom2[0]) / (8 * math.pi**2)

    def overlap(other: Tensor) -> Tensor:
        """Correlation of the phantom with blobs at other places, in closed form."""
        products = phantom.weights[:, None] * phantom.weights
        terms = products * torch.exp(-torch.cdist(positions, other).square() / (4 * variance))
        own = products * torch.exp(-torch.cdist(positions, positions).square() / (4 * variance))
        return terms.sum((-2, -1)) / own.sum()

    rotations = random_rotations(5000, generator)
    far = rotation_angle_rad(rotations, torch.eye(3).expand_as(rotations)) > 0.5
    assert overlap(positions @ rotations[far].mT).max() < 0.8
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    assert overlap(positions @ mirror @ rotations.mT).max() < 0.8


@pytest.mark.parametrize(("box", "angpix"), [(32, 5.0), (40, 4.0), (24, 20 / 3), (28, 5.0)])
def test_resampling_a_map_is_sampling_its_atoms_on_the_other_grid(box: int, angpix: float) -> None:
    atoms = gaussian_blobs(torch.tensor([[10.0, -5.0, 20.0], [-20.0, 15.0, 0.0]]), torch.tensor([1.0, 2.0]), 9.0)
    resampled = resample_map(sample_atoms(atoms, 32, 5.0), box, angpix)
    expected = sample_atoms(atoms, box, angpix).values * (5.0 / angpix) ** 3  # densities, not sums per voxel
    assert resampled.pixel_size_angstrom == angpix
    assert (resampled.values - expected).norm() < 2e-3 * expected.norm()


def test_resampling_leaves_zeros_outside_the_old_box() -> None:
    resampled = resample_map(Volume(torch.ones(16, 16, 16), 4.0), 32, 4.0).values
    assert resampled[8:24, 8:24, 8:24].sub(1).abs().max() < 1e-5
    assert resampled.sum() == pytest.approx(16**3, rel=1e-5)


@pytest.mark.parametrize("group", ["C3", "D2", "O"])
def test_symmetrising_a_map_is_replicating_its_atoms(group: str, phantom: Atoms, phantom_map: Volume) -> None:
    operators = symmetry_rotations(group)
    symmetrised = symmetrise_map(phantom_map, operators)
    expected = sample_atoms(replicate_atoms(phantom, operators), 32, 5.0)
    assert (symmetrised.values - expected.values).norm() < 5e-3 * expected.values.norm()


def test_a_symmetric_density_looks_the_same_at_symmetric_poses(
    phantom: Atoms, plane: HalfPlane, generator: torch.Generator
) -> None:
    operators = symmetry_rotations("D2").float()
    sampler = FourierSampler(sample_atoms(replicate_atoms(phantom, operators), 32, 5.0).values)
    rotation = random_rotations(1, generator)
    copies = sampler.slices(rotation @ operators, plane)
    assert correlation(copies, copies[:1].expand_as(copies)) > 0.9999


def test_atoms_are_centred_on_their_centre_of_mass(generator: torch.Generator) -> None:
    atoms = Atoms(torch.randn(50, 3, generator=generator) + 400.0, torch.rand(50, generator=generator), torch.zeros(50))
    centred = atoms.centred()
    assert (centred.weights[:, None] * centred.positions_angstrom).sum(0).abs().max() < 1e-3
