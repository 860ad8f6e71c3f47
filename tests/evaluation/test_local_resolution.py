"""Local resolution: two noise levels come out as two resolutions, as RELION has them."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cryoeq.domain.volume import Volume
from cryoeq.evaluation.local_resolution import (
    SlidingSphere,
    filter_locally,
    sphere_frequencies,
    spread_over_voxels,
    with_randomised,
)
from cryoeq.io.mrc import read_map

N, PIXEL = 64, 3.0
FADING_ANGSTROM = 12.0

# relion_postprocess 3.1.3 --locres --adhoc_bfac 0 on relion_1wcm: sphere (z, y, x) from the centre, resolution.
RELION_SPHERES = {
    (-25, -11, 3): 30,
    (-18, -11, 3): 10.9091,
    (-18, -4, 3): 8.57143,
    (-11, -11, 10): 8.27586,
    (-11, -4, 3): 7.5,
    (-11, 3, -11): 8.27586,
    (-11, 10, 3): 7.74194,
    (-4, -11, -11): 8.88889,
    (-4, -11, 3): 8,
    (-4, -4, -11): 7.74194,
    (-4, -4, 3): 8,
    (-4, 3, 3): 7.74194,
    (-4, 10, -11): 8.27586,
    (-4, 17, -4): 8.27586,
    (3, -11, -11): 8,
    (3, -11, 3): 7.74194,
    (3, -4, -4): 7.74194,
    (3, -4, 10): 8,
    (3, 3, -4): 8,
    (3, 3, 10): 8.27586,
    (3, 10, -11): 8,
    (3, 10, 3): 8.27586,
    (3, 17, -4): 8,
    (10, -11, -4): 8.27586,
    (10, -11, 10): 8,
    (10, -4, -4): 8,
    (10, -4, 10): 7.74194,
    (10, 3, -4): 8.27586,
    (10, 3, 10): 8.27586,
    (10, 10, -11): 8.57143,
    (17, -11, 3): 24,
}
# The same: median of its map inside the mask.
RELION_MEDIAN = 8.549


def radii(n: int) -> Tensor:
    k = torch.fft.fftfreq(n, 1 / n)
    return (k[:, None, None] ** 2 + k[:, None] ** 2 + k[: n // 2 + 1] ** 2).sqrt()


def expected_angstrom(noise: float) -> float:
    """Where exp(-2 (12 / d)^2) = noise^2 / 6: there S / (S + N) is 1 / 7."""
    return FADING_ANGSTROM * math.sqrt(2 / math.log(6 / noise**2))


def two_levels(generator: torch.Generator, left: float, right: float) -> tuple[Volume, Volume]:
    """A signal of known spectrum everywhere, with more noise in one half of the box (by x) than in the other."""
    frequencies = radii(N) / (N * PIXEL)
    fading = torch.exp(-((frequencies * FADING_ANGSTROM) ** 2))
    signal = torch.fft.irfftn(torch.fft.rfftn(torch.randn(N, N, N, generator=generator)) * fading, s=(N, N, N))
    noise = torch.where(torch.arange(N) < N // 2, left, right)
    first, second = (Volume(signal + noise * torch.randn(N, N, N, generator=generator), PIXEL) for _ in range(2))
    return first, second


def resolution_map(first: Volume, second: Volume, generator: torch.Generator) -> Tensor:
    sphere = SlidingSphere.of(first.pixel_size_angstrom)
    centres = sphere.centres(first.box_size_px)
    maps = with_randomised(first, second, generator)
    chunks = centres.split(sphere.batch_size)
    frequencies = [sphere_frequencies(maps, chunk, sphere, first.pixel_size_angstrom) for chunk in chunks]
    return spread_over_voxels(torch.cat(frequencies), centres, sphere, first.box_size_px)


def test_two_noise_levels_come_out_at_two_resolutions(generator: torch.Generator) -> None:
    left, right = 0.05, 0.5
    values = resolution_map(*two_levels(generator, left, right), generator)
    core = slice(N // 2 - 8, N // 2 + 8)
    found = [float(values[core, core, side].median()) for side in (slice(10, 16), slice(N - 16, N - 10))]
    assert found[0] == pytest.approx(expected_angstrom(left), rel=0.08)
    assert found[1] == pytest.approx(expected_angstrom(right), rel=0.08)


def test_the_mask_is_one_inside_and_zero_beyond_its_edge() -> None:
    sphere = SlidingSphere.of(PIXEL)
    assert (sphere.radius_px, sphere.edge_px, sphere.step_px) == (4, 8, 8)
    line = sphere.mask[len(sphere.mask) // 2, len(sphere.mask) // 2, len(sphere.mask) // 2 :]
    assert bool((line[:5] == 1).all())
    assert float(line[8]) == pytest.approx(0.5)
    assert bool((line[12:] == 0).all())


def test_spheres_stand_as_in_relion() -> None:
    """Steps from the first voxel on, cores inside the sphere that fits into the box: 295 on relion_1wcm."""
    centres = SlidingSphere.of(3.75).centres(64) - 32
    assert len(centres) == 295
    assert bool(((centres + 32) % 7 == 0).all())
    assert float(centres.double().norm(dim=1).max()) < 29


def test_a_sphere_alone_is_as_in_a_batch(generator: torch.Generator) -> None:
    first, second = two_levels(generator, 0.1, 0.4)
    sphere, maps = SlidingSphere.of(PIXEL), with_randomised(first, second, generator)
    centres = sphere.centres(N)[::23]  # some at the rim of the box
    batch = sphere_frequencies(maps, centres, sphere, PIXEL)
    alone = [sphere_frequencies(maps, centre[None], sphere, PIXEL) for centre in centres]
    torch.testing.assert_close(torch.cat(alone), batch)


def test_without_a_second_structure_the_resolution_is_that_of_the_sphere(generator: torch.Generator) -> None:
    """Equal maps are good to Nyquist, different ones to nothing."""
    first, second = (Volume(torch.randn(N, N, N, generator=generator), PIXEL) for _ in range(2))
    sphere = SlidingSphere.of(PIXEL)
    centre = torch.tensor([[N // 2] * 3])
    for other, resolution in ((first, 2 * PIXEL), (second, 50.0)):
        maps = torch.stack([first.values, other.values, first.values, second.values])
        found = 1 / float(sphere_frequencies(maps, centre, sphere, PIXEL))
        assert found == pytest.approx(resolution, rel=1e-4)


def test_one_resolution_spreads_to_all_voxels_reached() -> None:
    sphere = SlidingSphere.of(PIXEL)
    centres = sphere.centres(N)
    values = spread_over_voxels(torch.full((len(centres),), 0.1), centres, sphere, N)
    reached = values > 0
    torch.testing.assert_close(values[reached], torch.full_like(values[reached], 10.0))
    assert bool(reached[N // 2, N // 2, 4 : N - 4].all())
    assert not bool(reached[0, 0, 0])


def test_a_uniform_resolution_filters_as_a_low_pass(generator: torch.Generator) -> None:
    volume = Volume(torch.randn(N, N, N, generator=generator), PIXEL)
    known = torch.full((N, N, N), 12.0)
    known[:, :, :5] = 0
    filtered = filter_locally(volume, known).values
    depth = (N * PIXEL / 12 + 1 - radii(N)) / 2
    passed = torch.fft.rfftn(volume.values) * (1 - torch.cos(math.pi * depth.clamp(0, 1))) / 2
    expected = torch.fft.irfftn(passed, s=(N, N, N))
    torch.testing.assert_close(filtered[:, :, 5:], expected[:, :, 5:], atol=1e-5, rtol=0)
    assert not bool(filtered[:, :, :5].any())


def test_two_resolutions_filter_as_two_low_passes(generator: torch.Generator) -> None:
    volume = Volume(torch.randn(N, N, N, generator=generator), PIXEL)
    fine, coarse = (filter_locally(volume, torch.full((N, N, N), value)).values for value in (8.0, 30.0))
    half = torch.where(torch.arange(N) < N // 2, 8.0, 30.0).expand(N, N, N)
    filtered = filter_locally(volume, half).values
    torch.testing.assert_close(filtered[..., : N // 2], fine[..., : N // 2], atol=1e-4, rtol=0)
    torch.testing.assert_close(filtered[..., N // 2 :], coarse[..., N // 2 :], atol=1e-4, rtol=0)


@pytest.mark.realdata
def test_relions_own_half_maps(reference_data: Path) -> None:
    folder = reference_data / "relion_1wcm"
    first, second, mask = (read_map(folder / f"{name}.mrc") for name in ("rec_half1", "rec_half2", "mask"))
    n, pixel = first.box_size_px, first.pixel_size_angstrom
    generator = torch.Generator().manual_seed(0)
    sphere, maps = SlidingSphere.of(pixel), with_randomised(first, second, generator)
    centres = torch.tensor(list(RELION_SPHERES)) + n // 2
    found = sphere_frequencies(maps, centres, sphere, pixel) * n * pixel
    relion = n * pixel / torch.tensor(list(RELION_SPHERES.values()))
    off = (found - relion).abs()
    # Shells. RELION drew other phases; near the rim of the molecule one draw may differ from another by many.
    assert float(off.median()) < 1.01
    assert float((off < 2.5).double().mean()) > 0.8
    values = resolution_map(first, second, generator)
    assert float(values[mask.values > 0.5].median()) == pytest.approx(RELION_MEDIAN, abs=0.15)


@pytest.mark.gpu
def test_cpu_and_gpu_agree(generator: torch.Generator) -> None:
    first, second = two_levels(generator, 0.1, 0.4)
    maps, centre = with_randomised(first, second, generator), torch.tensor([[N // 2] * 3])
    found = [
        sphere_frequencies(maps.to(device), centre, SlidingSphere.of(PIXEL, device=torch.device(device)), PIXEL).cpu()
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(found[0], found[1], atol=1 / (N * PIXEL), rtol=0)
