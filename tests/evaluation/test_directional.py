"""Resolution by direction: laws of conical curves."""

import math

import pytest
import torch
from torch import Tensor

from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError
from cryoeq.evaluation.directional import DirectionalFsc, directional_fsc, fsc_volume
from cryoeq.geometry.shells import fourier_shell_correlation

N, PIXEL = 48, 2.0
K = torch.fft.fftfreq(N, 1 / N)
KZ, KY, KX = torch.meshgrid(K, K, K[: N // 2 + 1].abs(), indexing="ij")
RADII = (KX**2 + KY**2 + KZ**2).sqrt()


def pair(gain: Tensor, generator: torch.Generator) -> tuple[Volume, Volume]:
    """A signal that fades with frequency, times a gain in Fourier space, under two white noises."""
    signal = torch.fft.rfftn(torch.randn(N, N, N, generator=generator)) * 8 * torch.exp(-((RADII / 10) ** 2)) * gain
    values = torch.fft.irfftn(signal, s=(N, N, N))
    first, second = (Volume(values + torch.randn(N, N, N, generator=generator), PIXEL) for _ in range(2))
    return first, second


def top_views(tilt_deg: float) -> Tensor:
    """What views within so many degrees of z reach: the complement of a cone about z."""
    return (KZ.abs() <= RADII * math.sin(math.radians(tilt_deg))).float()


def resolution_along(directional: DirectionalFsc, x: float, y: float, z: float) -> float:
    nearest = int((directional.axes @ torch.tensor([x, y, z], dtype=torch.float64)).argmax())
    return float(directional.resolutions_angstrom[nearest])


def test_an_isotropic_pair_has_a_ratio_near_one(generator: torch.Generator) -> None:
    first, second = pair(torch.ones_like(RADII), generator)
    directional = directional_fsc(first, second)
    assert directional.area_ratio > 0.9
    assert directional.sphericity > 0.93
    overall = fourier_shell_correlation(first.values, second.values)
    torch.testing.assert_close(directional.overall, overall, atol=1e-6, rtol=0)
    side = N * PIXEL
    middle = float(directional.resolutions_angstrom.median())
    assert abs(side / middle - int((overall >= 0.143).nonzero().max())) <= 1


def test_top_views_leave_a_missing_cone_along_z(generator: torch.Generator) -> None:
    directional = directional_fsc(*pair(top_views(20), generator))
    assert directional.area_ratio < 0.4
    assert directional.sphericity < 0.9
    assert float(directional.worst_axis[2]) > math.cos(math.radians(15))
    assert resolution_along(directional, 0, 0, 1) > 2 * resolution_along(directional, 1, 0, 0)
    assert resolution_along(directional, 0, 1, 0) == pytest.approx(resolution_along(directional, 1, 0, 0), rel=0.15)


def test_directions_turn_with_the_map(generator: torch.Generator) -> None:
    """A missing cone along z is one along x when the axes of the array are exchanged."""
    volumes = [Volume(volume.values.transpose(0, 2), PIXEL) for volume in pair(top_views(20), generator)]
    directional = directional_fsc(volumes[0], volumes[1])
    assert abs(float(directional.worst_axis[0])) > math.cos(math.radians(15))


def test_equal_maps_are_as_good_in_all_directions(generator: torch.Generator) -> None:
    volume = pair(top_views(20), generator)[0]
    directional = directional_fsc(volume, volume)
    assert directional.area_ratio == pytest.approx(1.0)
    assert directional.sphericity == pytest.approx(1.0)
    assert bool((directional.resolutions_angstrom == 2 * PIXEL).all())


def test_a_curve_is_the_correlation_inside_its_cone(generator: torch.Generator) -> None:
    first, second = pair(torch.ones_like(RADII), generator)
    directional = directional_fsc(first, second)
    one, other = torch.fft.rfftn(first.values), torch.fft.rfftn(second.values)
    vectors = torch.stack([KX, KY, KZ], -1).double()
    for place in (0, 700, 1400):
        cosine = (vectors @ directional.axes[place]).abs() / RADII.clamp(min=1)
        for shell in (12, 20):
            inside = ((RADII + 0.5).long() == shell) & (cosine >= math.cos(math.radians(20)))
            powers = one[inside].abs().square().sum() * other[inside].abs().square().sum()
            exact = float((one[inside] * other[inside].conj()).real.sum() / powers.sqrt())
            # Coefficients at the rim of the cone are told apart to a pixel of 1.8 degrees.
            assert float(directional.curves[place, shell]) == pytest.approx(exact, abs=0.08)


def test_work_in_slabs_changes_nothing(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = pair(top_views(40), generator)
    whole = directional_fsc(*volumes)
    painted = fsc_volume(whole).values
    monkeypatch.setattr("cryoeq.geometry.shells._SLAB_COEFFICIENTS", 5000)
    torch.testing.assert_close(directional_fsc(*volumes).curves, whole.curves)
    torch.testing.assert_close(fsc_volume(whole).values, painted)


def test_the_volume_holds_the_curves(generator: torch.Generator) -> None:
    directional = directional_fsc(*pair(top_views(40), generator))
    values, middle = fsc_volume(directional).values, N // 2
    for x, y, z in ((15, 0, 0), (0, 12, 5), (-3, 4, 18)):
        nearest = int((directional.axes @ torch.tensor([x, y, z], dtype=torch.float64)).argmax())
        shell = int((x**2 + y**2 + z**2) ** 0.5 + 0.5)
        # A point on the border of two pixels may go to either.
        value, mate = (float(values[middle + s * z, middle + s * y, middle + s * x]) for s in (1, -1))
        assert value == pytest.approx(float(directional.curves[nearest, shell]), abs=0.15)
        assert value == pytest.approx(mate, abs=0.15)
    assert float(values[0, 0, 0]) == 0


def test_a_mask_counts(generator: torch.Generator) -> None:
    first, second = pair(torch.ones_like(RADII), generator)
    k = torch.arange(N) - N // 2
    ball = ((20 - (k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).sqrt()) / 6).clamp(0, 1)
    masked = directional_fsc(first, second, Volume(ball, PIXEL))
    by_hand = directional_fsc(*(Volume(volume.values * ball, PIXEL) for volume in (first, second)))
    torch.testing.assert_close(masked.curves, by_hand.curves)


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(MapFileError, match="boxes of 16 and 12 pixels"):
        directional_fsc(Volume(torch.rand(16, 16, 16), 1.0), Volume(torch.rand(12, 12, 12), 1.0))


@pytest.mark.gpu
def test_cpu_and_gpu_agree(generator: torch.Generator) -> None:
    volumes = pair(top_views(40), generator)
    on_gpu = directional_fsc(*(Volume(volume.values.cuda(), PIXEL) for volume in volumes))
    torch.testing.assert_close(on_gpu.curves, directional_fsc(*volumes).curves, atol=2e-3, rtol=0)
