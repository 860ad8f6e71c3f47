import pytest
import torch
from scipy.ndimage import map_coordinates

from cryoeq.geometry.fourier import HalfPlane, fft_image, ifft_image, pad_centred
from cryoeq.geometry.so3 import random_rotations, rotation_from_vector
from cryoeq.physics import projection
from cryoeq.physics.projection import (
    extract_slices,
    gridding_correction,
    prepare_slices,
    sample_slices,
    sample_slices_with_gradient,
    slice_coordinates,
)


def blobs(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Six Gaussians in a box: the map, their centres in pixels from the origin, their amplitudes."""
    generator = torch.Generator().manual_seed(seed)
    centres = (torch.rand(6, 3, generator=generator, dtype=torch.float64) - 0.5) * n / 3
    amplitudes = torch.rand(6, generator=generator, dtype=torch.float64) + 0.5
    x = torch.arange(n, dtype=torch.float64) - n // 2
    axes = torch.exp(-((x - centres[:, :, None]) ** 2) / (2 * 1.3**2))
    return torch.einsum("b,bz,by,bx->zyx", amplitudes, axes[:, 2], axes[:, 1], axes[:, 0]), centres, amplitudes


@pytest.mark.parametrize("n", [15, 16])
def test_centred_delta_stays_centred(n: int, generator: torch.Generator) -> None:
    volume = torch.zeros(n, n, n)
    volume[n // 2, n // 2, n // 2] = 1
    plane = HalfPlane.up_to(n, (n - 1) / 2)
    slices = extract_slices(prepare_slices(volume), random_rotations(100, generator), plane)
    # A centred delta has a constant transform, 1 / n in the orthonormal convention, from everywhere.
    assert (slices - 1 / n).abs().max() < 1e-6
    assert (plane.images(slices).flatten(1).argmax(1) == (n // 2) * n + n // 2).all()


@pytest.mark.parametrize(("n", "padding"), [(16, 2), (15, 2), (15, 3), (24, 2)])
def test_the_transform_is_that_of_the_padded_map(
    n: int, padding: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few columns are in work at a time."""
    volume = torch.randn(n, n, n, generator=generator, dtype=torch.float64)
    corrected = volume / gridding_correction(n, padding, torch.float64)
    padded = torch.fft.ifftshift(pad_centred(corrected, padding * n, 3))
    expected = torch.fft.fftshift(torch.fft.fftn(padded)) / n
    for coefficients in (1, 2**18):
        monkeypatch.setattr(projection, "_SLAB_COEFFICIENTS", coefficients)
        torch.testing.assert_close(prepare_slices(volume, padding), expected)


@pytest.mark.parametrize("n", [23, 24])
def test_slices_are_the_analytic_transform(n: int, generator: torch.Generator) -> None:
    volume, centres, amplitudes = blobs(n)
    plane = HalfPlane.up_to(n, 0.7 * n / 2)
    rotations = random_rotations(20, generator).double()
    # Gaussian at c, seen from A: its image lies at (A c)_xy.
    seen = torch.einsum("pij,bj->pbi", rotations[:, :2], centres)
    phases = torch.exp(-2j * torch.pi / n * torch.einsum("pbi,ki->pbk", seen, plane.coords.double()))
    sigma = 1.3
    envelope = (2 * torch.pi * sigma**2) ** 1.5 / n * torch.exp(-2 * (torch.pi * sigma * plane.radii.double() / n) ** 2)
    exact = torch.einsum("b,pbk->pk", amplitudes.to(phases.dtype), phases) * envelope
    errors = [
        ((extract_slices(prepare_slices(volume, padding), rotations, plane) - exact).norm() / exact.norm()).item()
        for padding in (1, 2, 4)
    ]
    # Trilinear sampling is of second order in the spacing.
    assert errors[1] < 0.015
    assert errors[0] > 2 * errors[1] > 6 * errors[2]


@pytest.mark.parametrize("n", [23, 24])
def test_untilted_slice_is_the_sum_along_z(n: int) -> None:
    volume, _, _ = blobs(n)
    plane = HalfPlane.up_to(n, 0.8 * n / 2)
    identity = torch.eye(3, dtype=torch.float64)[None]
    # Without a gridding correction a slice along the grid is exact.
    padded = prepare_slices(volume * gridding_correction(n, 2, torch.float64))
    exact = plane.gather(fft_image(volume.sum(0)[None]))
    torch.testing.assert_close(extract_slices(padded, identity, plane), exact)


def test_in_plane_rotation_turns_the_image(generator: torch.Generator) -> None:
    n = 25
    volume, _, _ = blobs(n)
    plane = HalfPlane.up_to(n, 0.8 * n / 2)
    rotations = random_rotations(4, generator).double()
    quarter = rotation_from_vector(torch.tensor([[0.0, 0.0, torch.pi / 2]], dtype=torch.float64))
    padded = prepare_slices(volume)
    image, turned = (plane.images(extract_slices(padded, a, plane)) for a in (rotations, quarter @ rotations))
    # A quarter turn takes x to y: of an odd box, a quarter turn of the array.
    torch.testing.assert_close(turned, image.rot90(-1, (1, 2)), atol=1e-9, rtol=0)


def test_odd_and_even_padding_agree_inside() -> None:
    volume, _, _ = blobs(16)
    larger = pad_centred(volume, 17, 3)
    rotations = random_rotations(5, torch.Generator().manual_seed(1)).double()
    images = []
    for map_ in (volume, larger):
        n = len(map_)
        plane = HalfPlane.up_to(n, 0.7 * n / 2)
        images.append(ifft_image(plane.scatter(extract_slices(prepare_slices(map_), rotations, plane))))
    inside = images[1][:, :16, :16]
    assert (images[0] - inside).abs().max() / inside.abs().max() < 0.01


@pytest.mark.parametrize(("threads", "n_channels"), [(2, 2), (3, 8), (4, 1)])
def test_threads_make_no_difference(
    threads: int, n_channels: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the images cannot be shared evenly."""
    channels = torch.randn(n_channels, 32, 32, 32, generator=generator)
    plane, rotations = HalfPlane.up_to(16, 7.0), random_rotations(7, generator)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = sample_slices(channels, rotations, plane)
        torch.set_num_threads(threads)
        few = sample_slices(channels, rotations, plane)
        monkeypatch.setattr(projection, "_PARALLEL_NUMBERS", 1)
        shared = sample_slices(channels, rotations, plane)
    finally:
        torch.set_num_threads(before)
    assert alone.shape == (n_channels, 7, len(plane))
    torch.testing.assert_close(few, alone)
    torch.testing.assert_close(shared, alone)


def test_samples_of_real_and_imaginary_parts_are_slices(generator: torch.Generator) -> None:
    padded = prepare_slices(torch.randn(16, 16, 16, generator=generator))
    plane, rotations = HalfPlane.up_to(16, 7.0), random_rotations(5, generator)
    real, imag = sample_slices(torch.stack([padded.real, padded.imag]), rotations, plane)
    torch.testing.assert_close(torch.complex(real, imag), extract_slices(padded, rotations, plane))


def test_slices_with_gradient_are_the_slices(generator: torch.Generator) -> None:
    padded = prepare_slices(torch.randn(16, 16, 16, generator=generator, dtype=torch.float64))
    plane, rotations = HalfPlane.up_to(16, 7.0), random_rotations(5, generator).double()
    slices, _ = sample_slices_with_gradient(padded, rotations, plane)
    torch.testing.assert_close(slices, extract_slices(padded, rotations, plane))


def test_the_gradient_is_the_difference_of_interpolations_one_sample_apart(generator: torch.Generator) -> None:
    """The mean slope over a length is the difference of its ends. scipy interpolates."""
    m, plane = 16, HalfPlane.up_to(8, 3.0)
    padded = torch.randn(m, m, m, generator=generator, dtype=torch.complex128)
    rotations = random_rotations(6, generator).double()
    _, gradient = sample_slices_with_gradient(padded, rotations, plane)
    centres = slice_coordinates(rotations, plane.coords).flip(-1).permute(2, 0, 1) * 2 + m // 2
    for axis in range(3):  # x, y, z; the first axis of the map is z
        ends = []
        for sign in (1, -1):
            places = centres.clone()
            places[2 - axis] += 0.5 * sign
            ends.append(torch.from_numpy(map_coordinates(padded.numpy(), places.numpy(), order=1)))
        torch.testing.assert_close(gradient[axis], 2 * (ends[0] - ends[1]))


def test_the_gradient_of_a_linear_transform_is_its_slope(generator: torch.Generator) -> None:
    """On the samples too, where the derivative of the interpolation has a jump."""
    m, slope = 16, torch.tensor([0.3, -0.2 + 0.5j, 1.0j], dtype=torch.complex128)
    k = torch.arange(m, dtype=torch.float64) - m // 2
    z, y, x = torch.meshgrid(k, k, k, indexing="ij")
    padded = slope[0] * x + slope[1] * y + slope[2] * z
    plane, rotations = HalfPlane.up_to(8, 3.0), torch.stack([torch.eye(3), *random_rotations(4, generator)]).double()
    _, gradient = sample_slices_with_gradient(padded, rotations, plane)
    torch.testing.assert_close(gradient, (2 * slope[:, None, None]).expand_as(gradient))
