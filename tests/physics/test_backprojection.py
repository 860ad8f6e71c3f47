import pytest
import torch

from cryoeq.geometry.fourier import HalfPlane, fft_map, ifft_map, shell_index
from cryoeq.geometry.pointgroup import split_over_lattice, symmetry_rotations
from cryoeq.geometry.so3 import random_rotations
from cryoeq.physics.backprojection import WienerBackprojection, wiener_filter
from cryoeq.physics.projection import extract_slices, gridding_correction, prepare_slices, spread_slices


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
    sums.add_(slices * transfer.square(), transfer.square(), rotations, plane)
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

    def sums(rows: slice) -> WienerBackprojection:
        empty = WienerBackprojection.empty(n, dtype=torch.float64)
        return empty.add_(slices[rows], power[rows], rotations[rows], plane)

    first, second, whole = sums(slice(7)), sums(slice(7, None)), sums(slice(None))
    torch.testing.assert_close((first + second).sums, whole.sums)
    assert torch.equal(first.sums, sums(slice(7)).sums)
    place = first.sums.data_ptr()
    first += second
    torch.testing.assert_close(first.sums, whole.sums)
    assert first.sums.data_ptr() == place, "in place"


@pytest.mark.parametrize("n", [15, 16])
def test_half_sums_are_those_of_both_coefficients_of_each_pair(n: int) -> None:
    _, slices, rotations, plane = project(n, 30)
    power = torch.rand(slices.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    full = spread_slices(torch.stack([slices.real, slices.imag, power]), rotations, plane, 2 * n)
    ours = WienerBackprojection.empty(n, dtype=torch.float64).add_(slices, power, rotations, plane)
    inside = (fft_radius(2 * n) < n)[..., n:]  # what lies beyond Nyquist belongs to no map
    for found in (ours, WienerBackprojection.from_full(n, 2, full)):
        for channel, sign in ((0, 1), (1, -1), (2, 1)):
            mates = torch.nn.functional.pad(full[channel, 1:, 1:, 1:].flip((0, 1, 2)), (1, 0) * 3)
            torch.testing.assert_close(
                complete(found)[channel, :-1, :-1, :-1] * inside, (full[channel] + sign * mates)[..., n:] * inside
            )


def complete(sums: WienerBackprojection) -> torch.Tensor:
    """The sums, in the plane x = 0 too those of each coefficient and its mate."""
    found = sums.sums.clone()
    found[..., 0] += sums.sums[..., 0].flip((1, 2)) * torch.tensor([1, -1, 1])[:, None, None]
    return found


def test_weights_do_not_change_the_scale() -> None:
    n = 16
    _, slices, rotations, plane = project(n, 100)
    power = torch.ones(slices.shape, dtype=torch.float64)
    maps = [
        WienerBackprojection.empty(n, dtype=torch.float64)
        .add_(slices * weight, power * weight, rotations, plane)
        .reconstruct()
        for weight in (1.0, 1e-4)
    ]
    torch.testing.assert_close(maps[0], maps[1])


def test_unseen_views_give_finite_numbers() -> None:
    n = 16
    _, slices, rotations, plane = project(n, 1)
    power = torch.ones(slices.shape, dtype=torch.float64)
    found = WienerBackprojection.empty(n, dtype=torch.float64).add_(slices, power, rotations, plane).reconstruct()
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


def sums_of(volume: torch.Tensor, weight: float) -> WienerBackprojection:
    """As many images as it takes to give each coefficient within Nyquist the same weight."""
    n = volume.shape[-1]
    # Nothing is spread over neighbours here, so both gridding corrections are taken out.
    padded = prepare_slices(volume * gridding_correction(n, 2, volume.dtype).square())
    inside = (fft_radius(2 * n) < n).to(volume.dtype) * weight
    full = torch.stack([padded.real, padded.imag, torch.ones_like(padded.real)]) * inside
    return WienerBackprojection.from_full(n, 2, full)


def fft_radius(m: int) -> torch.Tensor:
    k = torch.arange(m, dtype=torch.float64) - m // 2
    return (k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).sqrt()


def test_shell_weights_are_means_over_each_shell() -> None:
    n = 16
    _, slices, rotations, plane = project(n, 50)
    sums = WienerBackprojection.empty(n, dtype=torch.float64).add_(
        slices, torch.rand(slices.shape, generator=torch.Generator().manual_seed(1)).double(), rotations, plane
    )
    weights = sums.shell_weights
    assert weights.shape == (n // 2,)
    # Each image counts with its Friedel mates too.
    shells, of_half = ((radius / 2 + 0.5).long() for radius in (fft_radius(2 * n), fft_radius(2 * n + 1)[..., n:]))
    means = [2 * sums.sums[2][of_half == shell].sum() / (shells == shell).sum() for shell in range(n // 2)]
    torch.testing.assert_close(weights, torch.stack(means))
    torch.testing.assert_close(sums_of(ball_of_blobs(n), 3.0).shell_weights[:-1], torch.full((7,), 6.0).double())


@pytest.mark.parametrize("n", [15, 16])
def test_the_most_probable_map_of_many_images_is_the_truth(n: int) -> None:
    volume, slices, rotations, plane = project(n, 600)
    power = torch.rand(slices.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    sums = WienerBackprojection.empty(n, dtype=torch.float64).add_(slices * power, power, rotations, plane)
    found = sums.most_probable(1e-4 * sums.shell_weights)
    ball = fft_radius(n) < 0.4 * n
    assert (found - volume)[ball].norm() / volume[ball].norm() < 0.1


@pytest.mark.parametrize("ratio", [0.1, 1.0, 20.0])
def test_a_prior_damps_by_its_ratio_to_the_data(ratio: float) -> None:
    """s / (1 + s), the same everywhere where all weights are alike."""
    volume = ball_of_blobs(16)
    sums = sums_of(volume, 3.0)
    weights = torch.full((8,), 6.0, dtype=torch.float64)
    free, damped = sums.most_probable(1e-9 * weights), sums.most_probable(weights / ratio)
    torch.testing.assert_close(damped, free * (ratio / (1 + ratio)))
    # And the map is that of the data, but for the corners of the transform.
    low_passed = ifft_map(fft_map(volume) * (fft_radius(16) < 8))
    assert (free - low_passed).norm() / volume.norm() < 0.03


def test_a_prior_damps_its_shell_alone() -> None:
    sums = sums_of(ball_of_blobs(16), 3.0)
    weights = torch.full((8,), 6.0, dtype=torch.float64)
    weights[5] *= 1e6
    shells = shell_index(16, 3)
    free, damped = (fft_map(sums.most_probable(prior)) for prior in (torch.full_like(weights, 6.0), weights))
    change = (damped - free).abs().square()
    kept, lost = (change[shells == shell].sum() / free[shells == shell].abs().square().sum() for shell in (2, 5))
    assert float(kept) < 1e-3
    assert float(lost) > 0.5


def test_nothing_seen_is_a_map_of_zeros() -> None:
    empty = WienerBackprojection.empty(16)
    assert empty.shell_weights.abs().max() == 0
    assert empty.most_probable(torch.ones(8)).abs().max() == 0


@pytest.mark.parametrize("name", ["C1", "C2", "C4", "D3", "O", "I"])
def test_rotating_the_sums_is_inserting_each_image_once_for_each_element(name: str) -> None:
    n = 12
    volume = ball_of_blobs(n)
    plane = HalfPlane.up_to(n, n / 2 - 1)
    rotations = random_rotations(5, torch.Generator().manual_seed(7)).double()
    slices = extract_slices(prepare_slices(volume), rotations, plane)
    power = slices.abs()
    group = symmetry_rotations(name)
    cosets, on_lattice = split_over_lattice(group)
    fast, slow = (WienerBackprojection.empty(n, dtype=torch.float64) for _ in range(2))
    for element in cosets:
        fast.add_(slices, power, rotations @ element, plane)
    for element in group:
        slow.add_(slices, power, rotations @ element, plane)
    torch.testing.assert_close(complete(fast.symmetrised(on_lattice)), complete(slow))


def test_without_symmetry_the_sums_take_no_more_memory() -> None:
    sums = sums_of(ball_of_blobs(16), 3.0)
    assert sums.symmetrised(symmetry_rotations("C1")).sums.data_ptr() == sums.sums.data_ptr()
