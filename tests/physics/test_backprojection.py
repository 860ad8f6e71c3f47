import pytest
import torch

from cryoeq.geometry.fourier import HalfPlane, fft_map, shell_index
from cryoeq.geometry.so3 import random_rotations
from cryoeq.physics.backprojection import WienerBackprojection, wiener_filter
from cryoeq.physics.projection import extract_slices, prepare_slices


def ball_of_blobs(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.arange(n, dtype=torch.float64) - n // 2
    centres = (torch.rand(12, 3, generator=generator, dtype=torch.float64) - 0.5) * n / 2.5
    axes = torch.exp(-((x - centres[:, :, None]) ** 2) / 2)
    return torch.einsum("bz,by,bx->zyx", axes[:, 0], axes[:, 1], axes[:, 2])


def project(n: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, HalfPlane]:
    volume = ball_of_blobs(n)
    plane = HalfPlane.up_to(n, n / 2 - 1e-3)
    rotations = random_rotations(count, torch.Generator().manual_seed(7)).double()
    return volume, extract_slices(prepare_slices(volume), rotations, plane), rotations, plane


@pytest.mark.parametrize("n", [23, 24])
def test_map_comes_back_from_its_own_projections(n: int) -> None:
    volume, slices, rotations, plane = project(n, 400)
    transfer = torch.rand(slices.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sums = WienerBackprojection.empty(n, dtype=torch.float64)
    sums = sums.add(slices * transfer.square(), transfer.square(), rotations, plane)
    found = sums.reconstruct()
    assert found.dtype == torch.float64
    x = torch.arange(n) - n // 2
    ball = (x[:, None, None] ** 2 + x[:, None] ** 2 + x**2) < (0.45 * n) ** 2
    assert (found - volume)[ball].norm() / volume[ball].norm() < 0.06
    assert ((found * volume)[ball].sum() / volume[ball].square().sum()).item() == pytest.approx(1, abs=0.02)


def test_sums_add_up_and_leave_their_parts_alone() -> None:
    n = 16
    _, slices, rotations, plane = project(n, 20)
    power = torch.ones(slices.shape, dtype=torch.float64)
    empty = WienerBackprojection.empty(n, dtype=torch.float64)
    first = empty.add(slices[:7], power[:7], rotations[:7], plane)
    second = empty.add(slices[7:], power[7:], rotations[7:], plane)
    assert empty.sums.abs().max() == 0
    whole = empty.add(slices, power, rotations, plane)
    torch.testing.assert_close((first + second).sums, whole.sums)
    assert not torch.allclose(first.sums, whole.sums)


def test_weights_do_not_change_the_scale() -> None:
    n = 16
    _, slices, rotations, plane = project(n, 100)
    power = torch.ones(slices.shape, dtype=torch.float64)
    maps = [
        WienerBackprojection.empty(n, dtype=torch.float64)
        .add(slices * weight, power * weight, rotations, plane)
        .reconstruct()
        for weight in (1.0, 1e-4)
    ]
    torch.testing.assert_close(maps[0], maps[1])


def test_unseen_views_give_finite_numbers() -> None:
    n = 16
    _, slices, rotations, plane = project(n, 1)
    power = torch.ones(slices.shape, dtype=torch.float64)
    found = WienerBackprojection.empty(n, dtype=torch.float64).add(slices, power, rotations, plane).reconstruct()
    assert found.isfinite().all()
    assert found.abs().max() < 10 * ball_of_blobs(n).max()
    assert WienerBackprojection.empty(n).reconstruct().abs().max() == 0


@pytest.mark.parametrize("n", [15, 16])
def test_wiener_filter_scales_shells(n: int) -> None:
    volume = ball_of_blobs(n)
    ratio = torch.linspace(9, 0, n // 2 + 1, dtype=torch.float64)
    filtered = fft_map(wiener_filter(volume, ratio))
    shells = shell_index(n, 3).clamp(max=n // 2)
    torch.testing.assert_close(filtered, fft_map(volume) * (ratio / (1 + ratio))[shells])
