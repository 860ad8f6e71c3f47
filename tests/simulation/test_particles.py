"""Random draws follow their stated distributions; images obey the signs of the conventions page."""

import math

import pytest
import torch

from cryoeq.domain.optics import Optics
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError
from cryoeq.geometry.fourier import fft_image, shell_index
from cryoeq.geometry.so3 import random_rotations
from cryoeq.simulation.particles import (
    PREFERRED_KAPPA,
    PREFERRED_SHARE,
    DefocusRange,
    NoiseFreeStack,
    SignalStatistics,
    draw_ctf,
    draw_noise,
    draw_poses,
    noise_amplitudes,
)

OPTICS = Optics("test", 5.0, 300.0, 2.7, 0.1)


def stack_images(stack: NoiseFreeStack) -> torch.Tensor:
    return torch.cat(list(stack.batches()))


def test_uniform_views_have_no_mean(generator: torch.Generator) -> None:
    count = 4000
    rotations = draw_poses(count, "uniform", 0.0, generator).rotations
    # Under uniformity the nine entries are uncorrelated, of mean 0 and variance 1/3: chi squared of 9 (Rayleigh).
    statistic = 3 * count * rotations.mean(0).square().sum()
    assert 0.5 < statistic < 27.9  # 99.9 %
    # And second moments: the mean of r r^T over views is 1/3 of the identity.
    views = rotations[:, 2]
    assert (views.T @ views / count - torch.eye(3) / 3).abs().max() < 0.02


def test_preferred_views_follow_the_stated_mixture(generator: torch.Generator) -> None:
    count = 20000
    rotations = draw_poses(count, "preferred", 0.0, generator).rotations
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(count))
    views = rotations[:, 2]
    expected = PREFERRED_SHARE * (1 / math.tanh(PREFERRED_KAPPA) - 1 / PREFERRED_KAPPA)
    assert float(views[:, 2].mean()) == pytest.approx(expected, abs=0.01)
    assert views[:, :2].mean(0).norm() < 0.01
    near = views[:, 2] > math.cos(math.radians(21))
    uniform_part = (1 - PREFERRED_SHARE) * (1 - math.cos(math.radians(21))) / 2
    share = PREFERRED_SHARE * (1 - math.exp(-PREFERRED_KAPPA * (1 - math.cos(math.radians(21)))))
    assert float(near.float().mean()) == pytest.approx(share + uniform_part, abs=0.01)
    # In the plane of the image nothing is preferred.
    assert rotations[:, :2].mean(0).norm() < 0.03


def test_shifts_have_the_asked_spread(generator: torch.Generator) -> None:
    shifts = draw_poses(20000, "uniform", 4.0, generator).shifts_angstrom
    assert shifts.std(0).sub(4.0).abs().max() < 0.08
    assert shifts.mean(0).abs().max() < 0.1


def test_defocus_is_within_its_range_and_astigmatic_as_asked(generator: torch.Generator) -> None:
    ctf = draw_ctf(5000, OPTICS, DefocusRange(1e4, 2.5e4, 300.0), generator)
    mean, difference = (
        (ctf.defocus_u_angstrom + ctf.defocus_v_angstrom) / 2,
        ctf.defocus_u_angstrom - ctf.defocus_v_angstrom,
    )
    assert mean.min() >= 9999
    assert mean.max() <= 25001
    assert float(mean.mean()) == pytest.approx(17500, rel=0.02)
    assert difference.min() >= 0
    assert float(difference.square().mean().sqrt()) == pytest.approx(300, rel=0.05)
    assert 0 <= ctf.defocus_angle_rad.min() < ctf.defocus_angle_rad.max() < math.pi


@pytest.mark.parametrize("a", [(10.0, 0.0), (0.0, -15.0)])
def test_a_particle_with_origin_a_lies_at_minus_a(a: tuple[float, float], phantom_map: Volume) -> None:
    stack = NoiseFreeStack.from_map(phantom_map, Poses(torch.eye(3)[None], torch.tensor([a])), None)
    image = stack_images(stack)[0]
    x = (torch.arange(32) - 16) * 5.0
    centre = torch.stack([(image * x).sum(), (image * x[:, None]).sum()]) / image.sum()
    torch.testing.assert_close(centre, -torch.tensor(a), rtol=0.0, atol=0.2)


def test_images_are_real_band_limited_and_bright(phantom_map: Volume, generator: torch.Generator) -> None:
    poses = draw_poses(6, "uniform", 5.0, generator)
    plain = stack_images(NoiseFreeStack.from_map(phantom_map, poses, None))
    assert (plain.amax((1, 2)) > 5 * plain.amin((1, 2)).abs()).all()
    transforms = fft_image(plain)
    assert transforms[:, shell_index(32, 2) > 16].abs().max() < 1e-5 * transforms.abs().max()
    total = phantom_map.values.sum()
    torch.testing.assert_close(plain.sum((1, 2)), total.expand(6), rtol=2e-3, atol=0.0)


def test_ctf_passes_amplitude_contrast_at_the_origin(phantom_map: Volume, generator: torch.Generator) -> None:
    poses = Poses(random_rotations(4, generator), torch.zeros(4, 2))
    ctf = draw_ctf(4, OPTICS, DefocusRange(1e4, 2.5e4), generator)
    images = stack_images(NoiseFreeStack.from_map(phantom_map, poses, ctf))
    torch.testing.assert_close(images.sum((1, 2)), 0.1 * phantom_map.values.sum().expand(4), rtol=5e-3, atol=0.0)
    # Positive up to the first zero under focus: at low resolution the particle is bright.
    plain = stack_images(NoiseFreeStack.from_map(phantom_map, poses, None))
    low = shell_index(32, 2) <= 3  # below 1 / 53 Angstrom, where the first zero lies beyond 1 / 22 Angstrom
    assert ((fft_image(images) * fft_image(plain).conj()).real[:, low] > 0).all()


@pytest.mark.parametrize("noise", ["white", "coloured"])
def test_noise_has_variance_one_and_the_stated_spectrum(noise: str, generator: torch.Generator) -> None:
    amplitudes = noise_amplitudes(32, noise)  # type: ignore[arg-type]
    images = draw_noise(2000, amplitudes, generator)
    assert float(images.var()) == pytest.approx(1.0, rel=0.01)
    power = fft_image(images).abs().square().mean(0)
    shells = shell_index(32, 2)
    ratio = torch.stack([power[shells == s].mean() / amplitudes[shells == s].square().mean() for s in range(17)])
    assert ratio.sub(1).abs().max() < 0.08
    contrast = power[shells == 1].mean() / power[shells == 15].mean()
    expected = {"white": 1.0, "coloured": (0.25 + 1 / (1 + 0.0977)) / (0.25 + 1 / (1 + 21.97))}[noise]
    assert float(contrast) == pytest.approx(expected, rel=0.1)


def test_batches_join_seamlessly(
    phantom_map: Volume, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = NoiseFreeStack.from_map(
        phantom_map, draw_poses(7, "uniform", 5.0, generator), draw_ctf(7, OPTICS, DefocusRange(1e4, 2e4), generator)
    )
    whole = stack_images(stack)
    monkeypatch.setattr("cryoeq.simulation.particles._PIXELS_AT_ONCE", 3 * 32**2)
    batches = list(stack.batches())
    assert [len(batch) for batch in batches] == [3, 3, 1]
    torch.testing.assert_close(torch.cat(batches), whole)


def test_scale_gives_the_signal_the_asked_variance(generator: torch.Generator) -> None:
    images = 3.0 + 2.0 * torch.randn(50, 16, 16, generator=generator)
    statistics = SignalStatistics().including(images[:20]).including(images[20:])
    assert float((images * statistics.scale_for(0.05)).var(unbiased=False)) == pytest.approx(0.05, rel=1e-5)
    assert float((images * statistics.scale_for(math.inf)).var(unbiased=False)) == pytest.approx(1.0, rel=1e-5)


def test_a_flat_map_is_an_error() -> None:
    with pytest.raises(MapFileError, match="flat"):
        SignalStatistics().including(torch.zeros(2, 16, 16)).scale_for(1.0)
