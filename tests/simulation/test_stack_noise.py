"""Noise of a stack has the stated variance and spectrum; the background is normalised as RELION does it."""

import pytest
import torch

from cryoeq.domain.optics import Optics
from cryoeq.geometry.fourier import fft_image
from cryoeq.physics.ctf import image_transfer
from cryoeq.simulation.acquisition import GroupNoise
from cryoeq.simulation.particles import DefocusRange, draw_ctf, draw_noise, noise_amplitudes
from cryoeq.simulation.stack_noise import StackNoise, normalise_extracted

OPTICS = Optics("test", 4.0, 300.0, 2.7, 0.1)
N = 48


def seeds() -> tuple[torch.Generator, torch.Generator]:
    return torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)


@pytest.mark.parametrize("noise", ["white", "coloured", "ice"])
def test_the_variance_is_one_in_the_first_group_and_that_of_the_group_in_others(noise: str) -> None:
    ctf = draw_ctf(600, OPTICS, DefocusRange(1e4, 2.5e4), torch.Generator().manual_seed(0))
    groups = [GroupNoise(), GroupNoise(1.3, 0.15, 0.6)]
    model = StackNoise.of_groups(noise, groups, N, 4.0, ctf)  # type: ignore[arg-type]
    images = model.draw(torch.arange(600) % 2, ctf, seeds())
    assert float(images[::2].var()) == pytest.approx(1.0, rel=0.03)
    assert float(images[1::2].var()) == pytest.approx(1.3**2, rel=0.04)


@pytest.mark.parametrize("noise", ["white", "coloured"])
def test_noise_of_one_group_is_the_noise_without_groups(noise: str) -> None:
    """To the last bit: sets of a seed stay what they were."""
    model = StackNoise.of_groups(noise, [GroupNoise()], N, 4.0, None)  # type: ignore[arg-type]
    ours = model.draw(torch.zeros(5, dtype=torch.long), None, seeds())
    assert torch.equal(ours, draw_noise(5, noise_amplitudes(N, noise), seeds()[0]))  # type: ignore[arg-type]


def test_structural_noise_has_passed_the_ctf_and_shot_noise_has_not() -> None:
    """Where the CTF is zero there is shot noise alone."""
    count = 800
    ctf = draw_ctf(1, OPTICS, DefocusRange(1.5e4, 1.5e4), torch.Generator().manual_seed(0))[torch.zeros(count).long()]
    model = StackNoise.of_groups("ice", [GroupNoise(structural_share=0.6)], N, 4.0, ctf)
    power = model.plane.gather(fft_image(model.draw(torch.zeros(count).long(), ctf, seeds()))).abs().square().mean(0)
    passed = image_transfer(ctf[:1], model.plane.frequencies_per_angstrom(4.0))[0].square()
    assert model.structure is not None
    expected = 0.4 + 0.6 * passed * model.structure.square()
    shells = model.plane.shells
    for shell in range(2, N // 2 - 1):
        mine = shells == shell
        assert float(power[mine].mean() / expected[mine].mean()) == pytest.approx(1.0, abs=0.08)
    at_a_zero = (passed < 0.005) & (shells > 6)
    assert float(power[at_a_zero].mean()) == pytest.approx(0.4, rel=0.1)


def test_the_background_is_normalised_whatever_the_ramp(generator: torch.Generator) -> None:
    x = torch.arange(N) - N // 2
    outside = (x[:, None].square() + x.square()).sqrt() > 0.75 * N / 2
    noise = torch.randn(6, N, N, generator=generator)
    ramp = 3.0 + 0.1 * x[:, None] - 0.05 * x
    particle = 5.0 * (~outside)
    images, divisors = normalise_extracted(2.5 * noise + ramp + particle)
    background = images[:, outside]
    torch.testing.assert_close(background.mean(1), torch.zeros(6), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(background.std(1, correction=0), torch.ones(6), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(divisors, torch.full((6,), 2.5), atol=0.0, rtol=0.1)
    again, ones = normalise_extracted(images)
    torch.testing.assert_close(again, images, atol=1e-4, rtol=0.0)
    torch.testing.assert_close(ones, torch.ones(6), atol=1e-4, rtol=0.0)
