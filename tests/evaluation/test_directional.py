"""Resolution by direction: laws of conical curves."""

import math

import pytest
import torch
from torch import Tensor

from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError
from cryoeq.evaluation.directional import ANISOTROPIC_CFAR, DirectionalFsc, directional_fsc, fsc_volume
from cryoeq.evaluation.orientations import UNEVEN_SCF, summarise_orientations
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.shells import fourier_shell_correlation
from cryoeq.physics.backprojection import WienerBackprojection
from cryoeq.physics.projection import extract_slices, prepare_slices

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


def looking(heights: Tensor, generator: torch.Generator) -> Tensor:
    """Rotations whose view directions (third rows) have these z components, evenly around z."""
    azimuth = 2 * math.pi * torch.arange(len(heights)) / len(heights)
    turn = 2 * math.pi * torch.rand(len(heights), generator=generator)
    radius, zero = (1 - heights.square()).sqrt(), torch.zeros_like(heights)
    views = torch.stack([radius * azimuth.cos(), radius * azimuth.sin(), heights], 1)
    across = torch.stack([-azimuth.sin(), azimuth.cos(), zero], 1)
    along = torch.linalg.cross(views, across)
    cosine, sine = turn.cos()[:, None], turn.sin()[:, None]
    return torch.stack([cosine * across + sine * along, cosine * along - sine * across, views], 1)


def reconstructed(rotations: Tensor, generator: torch.Generator) -> DirectionalFsc:
    """Directions of two maps, each back-projected from the noisy projections of one map along half of the views.

    The map has little at low resolution: what is strong there leaks into an empty cone of both halves alike.
    """
    n = 32
    k, z = torch.arange(n) - n // 2, torch.fft.fftfreq(n, 1 / n)
    radii = (z[:, None, None].square() + z[:, None].square() + z[: n // 2 + 1].square()).sqrt()
    ball = ((12 - (k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).sqrt()) / 4).clamp(0, 1)
    gain = (radii / 4).clamp(max=1).square() * torch.exp(-radii / 12)
    truth = torch.fft.irfftn(torch.fft.rfftn(torch.randn(n, n, n, generator=generator)) * gain) * ball
    plane = HalfPlane.up_to(n, n / 2 - 1e-3)
    slices = extract_slices(prepare_slices(truth), rotations, plane)
    noise = torch.complex(*torch.randn(2, *slices.shape, generator=generator))
    noisy, ones = slices + 2 * slices.abs().mean() * noise, torch.ones(slices.shape)
    halves = []
    for half in (slice(0, None, 2), slice(1, None, 2)):
        sums = WienerBackprojection.empty(n).add_(noisy[half], ones[half], rotations[half], plane)
        halves.append(Volume(sums.reconstruct(), PIXEL))
    return directional_fsc(*halves)


def mean_area(directional: DirectionalFsc, lowest_z: float, highest_z: float) -> float:
    heights = directional.axes[:, 2].abs()
    return float(directional.areas[(heights >= lowest_z) & (heights <= highest_z)].mean())


def test_maps_from_top_views_lack_a_cone_along_z(generator: torch.Generator) -> None:
    """Views within 20 degrees of z say nothing of what lies within 70 degrees of z in Fourier space."""
    rotations = looking(1 - torch.rand(800, generator=generator) * (1 - math.cos(math.radians(20))), generator)
    directional = reconstructed(rotations, generator)
    assert directional.area_ratio < ANISOTROPIC_CFAR
    assert float(directional.worst_axis[2].abs()) > math.cos(math.radians(60))
    assert mean_area(directional, math.cos(math.radians(45)), 1) < 0.9 * mean_area(directional, 0, 0.34)
    summary = summarise_orientations(rotations, torch.zeros(800), generator=generator)
    assert summary.unsampled_share > 0.5
    assert summary.is_uneven


def test_maps_from_side_views_lack_nothing(generator: torch.Generator) -> None:
    """Even views about the equator reach all of Fourier space, the axis z most: SCF is 8 / pi^2."""
    rotations = looking(torch.zeros(800), generator)
    directional = reconstructed(rotations, generator)
    assert directional.area_ratio > 0.7
    assert mean_area(directional, math.cos(math.radians(20)), 1) > mean_area(directional, 0, 0.34)
    summary = summarise_orientations(rotations, torch.zeros(800), generator=generator)
    assert summary.unsampled_share == 0
    assert summary.scf == pytest.approx(8 / math.pi**2, abs=0.01)
    assert pytest.approx(summary.scf, abs=0.01) == UNEVEN_SCF


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
