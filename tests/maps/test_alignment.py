"""Alignment of maps: rotation, shift and hand come back, whatever they were."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cryoeq.domain.volume import Volume
from cryoeq.errors import MapFileError
from cryoeq.geometry.shells import fourier_shell_correlation
from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad, rotation_from_vector
from cryoeq.io.mrc import read_map
from cryoeq.maps.alignment import align_map, mirror_map, rotate_map

QUARTER = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])


def phantom(n: int, generator: torch.Generator) -> Tensor:
    """Blobs at random places inside 0.3 of the box: chiral, without symmetry."""
    places = torch.randn(30, 3, generator=generator)
    places = places / places.norm(dim=1, keepdim=True) * torch.rand(30, 1, generator=generator) ** (1 / 3) * 0.3 * n
    k = torch.arange(n) - n // 2
    lines = [torch.exp(-((k - places[:, axis, None]) ** 2) / (2 * 1.2**2)) for axis in range(3)]
    return torch.einsum("bx,by,bz->zyx", *lines)


def moved(values: Tensor, rotation: Tensor, shift: Tensor, is_mirrored: bool) -> Tensor:
    """The map for which ``rotation`` and ``shift`` are the answer."""
    back = rotate_map(values, rotation.T, -rotation.T @ shift)
    return mirror_map(back) if is_mirrored else back


@pytest.mark.parametrize("n", [16, 17])
def test_mirror_keeps_the_centre_voxel(n: int) -> None:
    values = torch.arange(n**3, dtype=torch.float32).reshape(n, n, n)
    mirrored = mirror_map(values)
    centre = n // 2
    assert mirrored[centre, 3, 4] == values[centre, 3, 4]
    assert mirrored[centre + 2, 3, 4] == values[centre - 2, 3, 4]
    torch.testing.assert_close(mirror_map(mirrored), values)


@pytest.mark.parametrize("n", [24, 25])
def test_turning_by_nothing_keeps_a_band_limited_map(n: int, generator: torch.Generator) -> None:
    values = phantom(n, generator)
    turned = rotate_map(values, torch.eye(3), torch.zeros(3))
    assert float((turned - values).norm() / values.norm()) < 2e-3


@pytest.mark.parametrize("n", [24, 25])
def test_a_quarter_turn_and_a_whole_shift_only_move_voxels(n: int, generator: torch.Generator) -> None:
    values = phantom(n, generator)
    turned = rotate_map(values, QUARTER, torch.tensor([1.0, -2.0, 3.0]))
    # x' = -y + 1, y' = x - 2, z' = z + 3 about voxel n // 2: a voxel (z, y, x) goes to (z + 3, x - 2, -y + 1).
    expected = values.transpose(1, 2).flip(2).roll((3, -2, 1 + (n + 1) % 2), (0, 1, 2))
    assert float((turned - expected).norm() / values.norm()) < 1e-2


def test_turns_compose(generator: torch.Generator) -> None:
    values = phantom(28, generator)
    first, second = random_rotations(2, generator)
    step = rotate_map(rotate_map(values, first, torch.tensor([1.0, 0.5, 0])), second, torch.zeros(3))
    at_once = rotate_map(values, second @ first, second @ torch.tensor([1.0, 0.5, 0]))
    assert float((step - at_once).norm() / values.norm()) < 2e-2


@pytest.mark.parametrize(("seed", "is_mirrored"), [(0, False), (1, True)])
def test_rotation_shift_and_hand_are_found(seed: int, is_mirrored: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = phantom(32, generator)
    rotation, shift = random_rotations(1, generator)[0], torch.tensor([2.0, -1.0, 2.0])
    other = Volume(moved(values, rotation, shift, is_mirrored), 3.0)
    noise = torch.randn(values.shape, generator=generator) * values.std()
    alignment = align_map(Volume(other.values + noise, 3.0), Volume(values, 3.0), with_hand=True)
    assert alignment.is_mirrored == is_mirrored
    assert math.degrees(float(rotation_angle_rad(alignment.rotation, rotation))) < 0.5
    torch.testing.assert_close(alignment.shift_angstrom, shift * 3.0, atol=0.3, rtol=0)
    fsc = fourier_shell_correlation(alignment.apply(other).values, values)
    assert float(fsc[: round(0.7 * 16)].min()) > 0.99


def test_a_start_saves_the_search_and_the_hand_may_be_known(generator: torch.Generator) -> None:
    values = phantom(32, generator)
    rotation, shift = random_rotations(1, generator)[0], torch.tensor([2.0, -1.0, 2.0])
    other = Volume(moved(values, rotation, shift, is_mirrored=False), 3.0)
    rough = rotation_from_vector(torch.tensor([0.1, -0.05, 0.05])) @ rotation
    alignment = align_map(other, Volume(values, 3.0), with_hand=False, start=rough)
    assert not alignment.is_mirrored
    assert math.degrees(float(rotation_angle_rad(alignment.rotation, rotation))) < 0.2
    torch.testing.assert_close(alignment.shift_angstrom, shift * 3.0, atol=0.15, rtol=0)
    assert alignment.correlation > 0.99


def test_maps_that_do_not_fit_are_refused() -> None:
    volume = Volume(torch.rand(16, 16, 16), 2.0)
    with pytest.raises(MapFileError, match="boxes of 16 and 18"):
        align_map(volume, Volume(torch.rand(18, 18, 18), 2.0), with_hand=False)
    with pytest.raises(MapFileError, match="pixel sizes of 2 and 3"):
        align_map(volume, Volume(torch.rand(16, 16, 16), 3.0), with_hand=False)
    with pytest.raises(MapFileError, match="reference is the same everywhere"):
        align_map(volume, Volume(torch.ones(16, 16, 16), 2.0), with_hand=False)


@pytest.mark.realdata
def test_a_real_structure_moved_by_three_pixels_and_mirrored(reference_data: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    truth = read_map(reference_data / "relion_1wcm" / "truth_1WCM_64p_3.75A.mrc")
    rotation, shift = random_rotations(1, generator)[0], torch.tensor([1.0, -2.0, 2.0])
    other = Volume(moved(truth.values, rotation, shift, is_mirrored=True), truth.pixel_size_angstrom)
    alignment = align_map(other, truth, with_hand=True)
    assert alignment.is_mirrored
    assert math.degrees(float(rotation_angle_rad(alignment.rotation, rotation))) < 0.05
    torch.testing.assert_close(alignment.shift_angstrom / 3.75, shift, atol=0.01, rtol=0)
    assert float(fourier_shell_correlation(alignment.apply(other).values, truth.values)[:23].min()) > 0.999


@pytest.mark.realdata
def test_a_noisy_half_map_finds_its_truth(reference_data: Path) -> None:
    folder = reference_data / "relion_1wcm"
    truth, half = read_map(folder / "truth_1WCM_64p_3.75A.mrc"), read_map(folder / "rec_half1.mrc")
    rotation = random_rotations(1, torch.Generator().manual_seed(5))[0]
    other = Volume(moved(half.values, rotation, torch.tensor([1.0, -2.0, 2.0]), is_mirrored=True), 3.75)
    alignment = align_map(other, truth, with_hand=True)
    assert alignment.is_mirrored
    assert math.degrees(float(rotation_angle_rad(alignment.rotation, rotation))) < 0.5
    before = fourier_shell_correlation(half.values, truth.values)
    after = fourier_shell_correlation(alignment.apply(other).values, truth.values)
    torch.testing.assert_close(after[1:26], before[1:26], atol=0.02, rtol=0)
