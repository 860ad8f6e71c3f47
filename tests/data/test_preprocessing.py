"""Contrast, scale and background."""

import math
from pathlib import Path

import pytest
import torch

from cryoeq.data.preprocessing import (
    Preprocessing,
    background_mask,
    background_radius,
    crop,
    decide_contrast,
    decide_scale,
    normalise_background,
)
from cryoeq.geometry.fourier import crop_centred, fft_image
from cryoeq.io.particles import read_particles

BOX = 32


def _blobs(n: int, generator: torch.Generator, *, snr: float, shift_px: float = 0.0) -> torch.Tensor:
    """Round particles somewhat off centre, on noise of standard deviation 1."""
    axis = torch.arange(BOX) - BOX // 2
    centres = shift_px * torch.randn(n, 2, 1, 1, generator=generator)
    squared = (axis[:, None] - centres[:, 0]) ** 2 + (axis - centres[:, 1]) ** 2
    signal = torch.exp(-squared / (2 * 4.0**2))
    signal = signal * math.sqrt(snr) / signal.std()
    return signal + torch.randn(n, BOX, BOX, generator=generator)


@pytest.mark.parametrize(("snr", "n", "shift_px"), [(1.0, 20, 2.0), (0.1, 100, 2.0), (0.01, 500, 0.0)])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("offset", "gain"), [(0.0, 1.0), (1000.0, 0.02)])
def test_contrast_is_found(
    generator: torch.Generator, snr: float, n: int, shift_px: float, sign: int, offset: float, gain: float
) -> None:
    decision = decide_contrast(offset + sign * gain * _blobs(n, generator, snr=snr, shift_px=shift_px))
    assert decision.sign == sign
    assert ("bright" if sign == 1 else "dark") in decision.reason


def test_contrast_of_pure_noise_is_left_undecided() -> None:
    decisions = []
    for seed in range(50):
        noise = torch.randn(50, BOX, BOX, generator=torch.Generator().manual_seed(seed))
        decisions.append(decide_contrast(noise))
    assert all(decision.sign == 1 for decision in decisions)
    assert sum("undecided" in decision.reason for decision in decisions) >= 49
    assert "--invert-data" in decisions[0].reason


@pytest.mark.parametrize("n", [1, 2])
def test_contrast_of_too_few_images_is_left_undecided(generator: torch.Generator, n: int) -> None:
    decision = decide_contrast(-_blobs(n, generator, snr=10.0))
    assert decision.sign == 1
    assert "too few" in decision.reason


def test_contrast_of_equal_images(generator: torch.Generator) -> None:
    assert decide_contrast(-_blobs(1, generator, snr=10.0).repeat(5, 1, 1)).sign == -1
    assert "undecided" in decide_contrast(torch.ones(5, BOX, BOX)).reason


@pytest.mark.parametrize("diameter_angstrom", [None, 30.0, 96.0, 120.0])
def test_background_becomes_zero_and_one(generator: torch.Generator, diameter_angstrom: float | None) -> None:
    """Whatever the diameter of the particle, up to the whole box."""
    images = 7 + 3 * _blobs(8, generator, snr=1.0)
    before, radius = images.clone(), background_radius(diameter_angstrom, 120.0)
    once = normalise_background(images, radius=radius)
    outside = once[:, background_mask(BOX, radius=radius)]
    torch.testing.assert_close(outside.mean(1), torch.zeros(8), rtol=0, atol=1e-5)
    torch.testing.assert_close(outside.std(1), torch.ones(8))
    torch.testing.assert_close(normalise_background(once, radius=radius), once)
    assert torch.equal(images, before)


def test_a_ring_around_a_small_particle_is_background(generator: torch.Generator) -> None:
    """Neighbours at the edge of the box count less where more of the box is background."""
    radii = torch.cartesian_prod(*[torch.arange(BOX) - BOX // 2] * 2).float().norm(dim=1).reshape(BOX, BOX)
    images = torch.randn(8, BOX, BOX, generator=generator) + 3.0 * (radii > 0.46 * BOX)
    levels = [
        normalise_background(images, 1.0, background_radius(diameter, 120.0))[:, radii < 0.2 * BOX].mean()
        for diameter in (None, 48.0)
    ]
    assert float(levels[0]) < float(levels[1]) < 0


def test_one_scale_keeps_the_amplitudes(generator: torch.Generator) -> None:
    """Differences between images survive, up to one factor for all."""
    images = _blobs(200, generator, snr=1.0) * (1 + 0.05 * torch.randn(200, 1, 1, generator=generator))
    scale = decide_scale(images)
    assert scale.value == pytest.approx(1.0, rel=0.02)
    done = normalise_background(images, scale.value)
    torch.testing.assert_close(done[:, 3, 4] - done[:, 16, 16], (images[:, 3, 4] - images[:, 16, 16]) / scale.value)


def test_backgrounds_that_differ_are_scaled_one_by_one(generator: torch.Generator) -> None:
    gains = torch.exp(0.5 * torch.randn(200, 1, 1, generator=generator))
    images = gains * _blobs(200, generator, snr=0.1)
    scale = decide_scale(images)
    assert scale.value is None
    assert "each image" in scale.reason
    outside = normalise_background(images, scale.value)[:, background_mask(BOX)]
    torch.testing.assert_close(outside.std(1), torch.ones(200))
    assert decide_scale(images, is_premultiplied=True).value is not None


def test_images_without_noise_do_not_explode() -> None:
    images = torch.zeros(20, BOX, BOX)
    images[:, 12:20, 12:20] = torch.arange(1.0, 21.0)[:, None, None]
    scale = decide_scale(images)
    assert "noise-free" in scale.reason
    done = normalise_background(images, scale.value)
    assert done.square().mean().sqrt() == pytest.approx(1.0, rel=0.2)
    assert torch.isfinite(normalise_background(images)).all(), "a constant background has no scale of its own"
    constant = torch.ones(4, BOX, BOX)
    assert decide_scale(constant).value == 1.0
    assert normalise_background(constant, 1.0).abs().max() == 0


def test_the_crop_keeps_the_low_frequencies(generator: torch.Generator) -> None:
    images = _blobs(3, generator, snr=1.0)
    small = crop(images, 24)
    kept = crop_centred(fft_image(images), 24, 2)[:, 1:, 1:] * (24 / BOX)
    torch.testing.assert_close(fft_image(small)[:, 1:, 1:], kept, rtol=0, atol=1e-5)
    assert crop(images, BOX) is images


def test_all_steps_together(generator: torch.Generator) -> None:
    images = 5 - 2 * _blobs(50, generator, snr=0.1)
    done = Preprocessing(24, None, -1).apply(images)
    assert done.shape == (50, 24, 24)
    assert decide_contrast(done).sign == 1
    torch.testing.assert_close(done, -normalise_background(crop(images, 24)))


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "sign", "said"),
    [
        ("relion_1wcm/particles.star", 1, "bright"),
        ("relion_1wcm/clean105.star", 1, "bright"),
        ("bench_6msm/s1/particles.star", 1, "bright"),
        ("bench_6msm/s01/particles.star", 1, "bright"),
        ("bench_6msm/s01sh/particles.star", 1, "bright"),
        ("toy_cryodrgn/toy_projections.star", 1, "bright"),
        ("real_70s_tilts/particles.star", 1, "bright"),
        ("empiar_10076_seven/empiar_10076_7.star", -1, "dark"),
        ("relion31_segments/relion31.star", 1, "undecided"),
    ],
)
def test_contrast_of_real_stacks(reference_data: Path, name: str, sign: int, said: str) -> None:
    images = read_particles(reference_data / name, angpix=1.0).images
    sample = images.read(torch.arange(min(200, len(images))))
    decision = decide_contrast(sample)
    assert decision.sign == sign
    assert said in decision.reason
    if said != "undecided":
        assert decide_contrast(-sample).sign == -sign


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "said", "value"),
    [
        ("relion_1wcm/particles.star", "common background", 0.994),
        ("bench_6msm/s01/particles.star", "common background", 1.0),
        ("toy_cryodrgn/toy_projections.star", "noise-free", 0.872),
        ("empiar_10076_seven/empiar_10076_7.star", "common background", 1.0),
    ],
)
def test_scale_of_real_stacks(reference_data: Path, name: str, said: str, value: float) -> None:
    images = read_particles(reference_data / name, angpix=1.0).images
    scale = decide_scale(images.read(torch.arange(len(images))))
    assert said in scale.reason
    assert scale.value == pytest.approx(value, rel=0.01)
