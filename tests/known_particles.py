"""Fixtures: particles of known pose that were never written to a file."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.preprocessing import Preprocessing
from cryoeq.domain.events import result_of
from cryoeq.domain.optics import CtfParameters, Optics
from cryoeq.domain.particles import ParticleTable
from cryoeq.domain.pose import Poses, PoseSet
from cryoeq.domain.volume import Volume
from cryoeq.geometry.fourier import HalfPlane, ifft_image
from cryoeq.io.images import LazyImages
from cryoeq.physics.ctf import image_transfer
from cryoeq.physics.image_formation import form_images
from cryoeq.physics.projection import prepare_slices
from cryoeq.reconstruction.particle_transforms import ParticleTransforms, load_transforms
from cryoeq.simulation.density import sample_atoms
from cryoeq.simulation.particles import DefocusRange, draw_ctf, draw_poses
from phantoms import chiral_phantom

N, ANGPIX = 16, 5.0
MakeDataset = Callable[..., ParticleDataset]


@dataclass(frozen=True)
class Known:
    """Particles with the map and the poses that they were made of."""

    dataset: ParticleDataset
    volume: Volume
    poses: Poses

    @property
    def pose_set(self) -> PoseSet:
        return PoseSet.from_angstrom(self.poses, ANGPIX, N)

    @property
    def shifts_px(self) -> Tensor:
        return self.pose_set.shifts_px


@pytest.fixture(scope="session")
def phantom_map() -> Volume:
    return sample_atoms(chiral_phantom(28.0), N, ANGPIX)


@pytest.fixture(scope="session")
def make_dataset() -> MakeDataset:
    """From images as the model sees them."""

    def make(images: Tensor, ctf: CtfParameters | None = None) -> ParticleDataset:
        rows = torch.arange(len(images))
        zeros = torch.zeros_like(rows)
        optics = Optics("one", ANGPIX, 300.0, 2.7, 0.1)
        table = ParticleTable((), zeros, rows, N, ANGPIX, (optics,), zeros, ctf)
        return ParticleDataset(table, N, ANGPIX, (), LazyImages((), zeros, rows), Preprocessing(N, 1.0, 1), images)

    return make


@pytest.fixture(scope="session")
def make_known(phantom_map: Volume, make_dataset: MakeDataset) -> Callable[..., Known]:
    """Particles by ``cryoeq.physics``, 16 px of 5 Angstrom: noise-free, shifted and with astigmatic CTFs by default."""

    def make(
        count: int,
        *,
        shift_sigma_angstrom: float = 6.0,
        with_ctf: bool = True,
        sigma: float = 0.0,
        shown: Volume = phantom_map,
    ) -> Known:
        generator = torch.Generator().manual_seed(11)
        poses = draw_poses(count, "uniform", shift_sigma_angstrom, generator)
        drawn = draw_ctf(count, Optics("one", ANGPIX, 300.0, 2.7, 0.1), DefocusRange(9000.0, 20000.0, 900.0), generator)
        ctf = drawn if with_ctf else None
        plane = HalfPlane.up_to(N, N / 2 - 1)
        transfer = None if ctf is None else image_transfer(ctf, plane.frequencies_per_angstrom(ANGPIX))
        padded = prepare_slices(shown.values)
        coefficients = form_images(
            padded, poses.rotations, PoseSet.from_angstrom(poses, ANGPIX, N).shifts_px, transfer, plane
        )
        images = ifft_image(plane.scatter(coefficients))
        scale = 1 / float(images.square().mean().sqrt())
        noise = sigma * torch.randn(images.shape, generator=generator)
        volume = Volume(shown.values * scale, ANGPIX)
        return Known(make_dataset(images * scale + noise, ctf), volume, poses)

    return make


@pytest.fixture(scope="session")
def observe() -> Callable[[ParticleDataset], ParticleTransforms]:
    """CTF-multiplied transforms of all images of a dataset."""

    def read(dataset: ParticleDataset) -> ParticleTransforms:
        return result_of(load_transforms(dataset, torch.device("cpu")))

    return read
