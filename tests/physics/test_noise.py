import torch

from cryoeq.geometry.fourier import HalfPlane, fft_image, ifft_image, shell_index
from cryoeq.physics.noise import background_noise_variance, background_spectrum, shell_means


def test_white_noise_has_a_flat_spectrum(generator: torch.Generator) -> None:
    images = 3 * torch.randn(400, 32, 32, generator=generator)
    spectrum = background_spectrum(images, 12.0)
    assert spectrum.shape == (400, 17)
    # Shell 0 is one coefficient: a relative deviation of sqrt(2 / 400).
    assert ((spectrum.mean(0) / 9 - 1).abs() < torch.tensor([0.3] + [0.06] * 16)).all()


def test_the_particle_does_not_count(generator: torch.Generator) -> None:
    noise = torch.randn(200, 32, 32, generator=generator)
    x = torch.arange(32) - 16
    inside = (x[:, None] ** 2 + x**2) < 11**2
    torch.testing.assert_close(
        background_noise_variance(noise + 5 * inside, 12.0), background_noise_variance(noise, 12.0)
    )


def test_coloured_noise_and_premultiplication(generator: torch.Generator) -> None:
    shells = shell_index(32, 2)
    colour = 1 / (1 + 0.2 * shells.float())
    noise = ifft_image(fft_image(torch.randn(500, 32, 32, generator=generator)) * colour.sqrt())
    expected = 1 / (1 + 0.2 * torch.arange(17))
    assert ((background_noise_variance(noise, 12.0) / expected)[1:] - 1).abs().max() < 0.15
    power = torch.full((500, 17), 0.25)
    assert ((background_noise_variance(noise, 12.0, power) / expected)[1:] / 4 - 1).abs().max() < 0.15


def test_noise_free_images_keep_finite_weights() -> None:
    assert torch.equal(background_noise_variance(torch.zeros(3, 16, 16), 6.0), torch.ones(9))


def test_shell_means() -> None:
    plane = HalfPlane.up_to(16, 7.999)
    means = shell_means(plane.radii[None], plane)
    assert means.shape == (1, 9)
    assert (means[0, :8] - torch.arange(8)).abs().max() < 0.3
