import math

import pytest
import torch

from cryoeq.geometry.fourier import (
    HalfPlane,
    crop_centred,
    fft_image,
    fft_map,
    fourier_crop_images,
    ifft_image,
    ifft_map,
    pad_centred,
    shell_index,
)


@pytest.mark.parametrize("n", [15, 16])
def test_round_trips_and_the_slice_theorem(n: int, generator: torch.Generator) -> None:
    volume = torch.randn(n, n, n, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(ifft_map(fft_map(volume)), volume)
    torch.testing.assert_close(ifft_image(fft_image(volume)), volume)
    torch.testing.assert_close(fft_map(volume)[n // 2], fft_image(volume.sum(0)))
    torch.testing.assert_close(fft_image(volume).abs().square().sum(), volume.square().sum())


@pytest.mark.parametrize("n", [15, 16])
@pytest.mark.parametrize("radius", [3.0, 7.4])
def test_half_plane_is_a_shorter_way(n: int, radius: float, generator: torch.Generator) -> None:
    images = torch.randn(2, 3, n, n, generator=generator, dtype=torch.float64)
    plane = HalfPlane.up_to(n, radius)
    values = plane.transform(images)
    torch.testing.assert_close(values, plane.gather(fft_image(images)))
    filtered = plane.images(values)
    torch.testing.assert_close(filtered, ifft_image(plane.scatter(values)))
    torch.testing.assert_close(plane.transform(filtered), values)
    torch.testing.assert_close((values.abs().square() * plane.weights).sum(-1), filtered.square().sum((-2, -1)))


def test_half_plane_of_a_large_stack_goes_through_fftw(generator: torch.Generator) -> None:
    images = torch.randn(70, 64, 64, generator=generator)
    plane = HalfPlane.up_to(64, 20.0)
    values = plane.transform(images)
    kept = values.clone()
    large = plane.images(values)
    assert torch.equal(values, kept)
    assert large.dtype == torch.float32
    small = torch.cat([plane.images(part) for part in values.split(10)])
    torch.testing.assert_close(large, small, atol=2e-6, rtol=0)
    values.requires_grad_()
    torch.testing.assert_close(plane.images(values), small, atol=2e-6, rtol=0)


def test_half_plane_transforms_are_differentiable(generator: torch.Generator) -> None:
    plane = HalfPlane.up_to(6, 2.9)
    images = torch.randn(2, 6, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: torch.view_as_real(plane.transform(x)), (images,))
    values = torch.randn(2, len(plane), generator=generator, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(plane.images, (values,))


@pytest.mark.parametrize(("n", "m"), [(16, 8), (16, 9), (15, 9), (15, 8), (16, 16)])
def test_crop_keeps_band_limited_grey_values(n: int, m: int) -> None:
    def wave(size: int) -> torch.Tensor:
        x = (torch.arange(size, dtype=torch.float64) - size // 2) / size
        return torch.cos(2 * math.pi * (2 * x[:, None] - 3 * x) + 0.4) + 1.5

    images = wave(n)[None]
    kept = images.clone()
    torch.testing.assert_close(fourier_crop_images(images, m), wave(m)[None])
    assert torch.equal(images, kept)


@pytest.mark.parametrize(("n", "m"), [(16, 9), (15, 9), (16, 11)])
def test_crop_to_odd_is_the_crop_of_the_transform(n: int, m: int, generator: torch.Generator) -> None:
    images = torch.randn(3, n, n, generator=generator, dtype=torch.float64)
    exact = ifft_image(crop_centred(fft_image(images), m, 2)) * (m / n)
    torch.testing.assert_close(fourier_crop_images(images, m), exact)


@pytest.mark.parametrize(("n", "m"), [(7, 8), (8, 11), (8, 8)])
def test_crop_undoes_pad(n: int, m: int, generator: torch.Generator) -> None:
    volume = torch.randn(n, n, n, generator=generator)
    padded = pad_centred(volume, m, 3)
    assert torch.equal(crop_centred(padded, n, 3), volume)
    assert padded[m // 2, m // 2, m // 2] == volume[n // 2, n // 2, n // 2]


def test_shells_round_half_up() -> None:
    shells = shell_index(9, 2)
    assert shells[4, 4] == 0
    assert shells[4, 8] == 4
    assert shells[5, 5] == 1  # sqrt(2) = 1.41
    assert shells[6, 6] == 3  # sqrt(8) = 2.83


def test_shell_sums_of_power_are_those_of_the_whole_transform(generator: torch.Generator) -> None:
    images = torch.randn(2, 3, 12, 12, generator=generator)
    plane = HalfPlane.up_to(12, 5.0)
    power = fft_image(images).abs().square()
    k = torch.arange(12) - 6
    radii = (k[:, None].square() + k.square()).sqrt()
    for shell, sums in enumerate(plane.shell_sums(plane.transform(images).abs().square()).unbind(-1)):
        inside = ((radii + 0.5).floor() == shell) & (radii <= 5.0)
        torch.testing.assert_close(sums, (power * inside).sum((-2, -1)))
