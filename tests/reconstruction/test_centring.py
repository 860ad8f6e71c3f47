"""First offsets, from the images and their own round average."""

import math

import pytest
import torch

from cryoeq.geometry.fourier import HalfPlane
from cryoeq.physics.shift import shift_phases
from cryoeq.reconstruction.centring import centre_images
from cryoeq.reconstruction.particle_transforms import POWER_ORDERS, ParticleTransforms, power_radii

N, SIGMA_PX = 16, 1.5


def blobs(count: int, noise: float) -> tuple[ParticleTransforms, torch.Tensor]:
    """Round blobs, shifted, in white noise; what shifts would centre them."""
    generator = torch.Generator().manual_seed(2)
    plane = HalfPlane.up_to(N, 4.0)
    shifts = SIGMA_PX * torch.randn(count, 2, generator=generator)
    signal = 3 * torch.exp(-2 * (math.pi * 2.0 * plane.radii / N).square()) * shift_phases(shifts, plane.coords, N)
    matched = signal + noise * plane.transform(torch.randn(count, N, N, generator=generator))
    hats = torch.zeros(POWER_ORDERS, count, len(power_radii(4.0)), 2)
    return ParticleTransforms(plane, matched, torch.ones(count, len(plane)), hats), shifts


def rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


def test_blobs_without_noise_are_centred() -> None:
    images, shifts = blobs(100, 0.0)
    assert rms(centre_images(images, SIGMA_PX).shifts_px - shifts) < 0.3


@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_noisy_blobs_are_nearer_than_their_prior_and_the_sigma_is_right(noise: float) -> None:
    images, shifts = blobs(300, noise)
    found = centre_images(images, SIGMA_PX)
    error = rms(found.shifts_px - shifts)
    assert error < 0.6 * SIGMA_PX
    # It counts what other shells hold of the signal as noise, and so errs on the safe side.
    assert 0.8 < found.sigma_px / error < 1.6


def test_noise_alone_stays_where_it_is() -> None:
    images, _ = blobs(200, 1.0)
    noise = ParticleTransforms(
        images.plane,
        images.plane.transform(torch.randn(200, N, N, generator=torch.Generator().manual_seed(3))),
        images.ctf_squared,
        images.ctf_squared_harmonics,
    )
    found = centre_images(noise, SIGMA_PX)
    assert rms(found.shifts_px) < 0.5 * SIGMA_PX


def test_centred_particles_are_left_alone() -> None:
    found = centre_images(blobs(5, 1.0)[0], 0.0)
    assert found.sigma_px == 0
    assert torch.equal(found.shifts_px, torch.zeros(5, 2))
