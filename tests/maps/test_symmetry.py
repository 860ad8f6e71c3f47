"""Symmetry of maps: axes and centres come back, imposing removes noise, mixed hands are seen."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cryoeq.domain.volume import Volume
from cryoeq.errors import ConfigError, MapFileError
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad, rotation_from_vector
from cryoeq.io.model import read_atoms
from cryoeq.maps.alignment import mirror_map, rotate_map
from cryoeq.maps.symmetry import MIXED_HANDS_SCORE, find_symmetry, impose_symmetry, planar_symmetry_score
from cryoeq.simulation.density import sample_atoms
from phantoms import random_phantom, symmetric_phantom

N, PIXEL_ANGSTROM = 32, 5.0
MOVE_PX = torch.tensor([1.5, -1.0, 2.0])
REFLECTION = torch.diag(torch.tensor([1.0, 1.0, -1.0]))


def blobs(generator: torch.Generator) -> Tensor:
    """A map of one hand, without symmetry."""
    return sample_atoms(random_phantom(12, 50.0, generator), N, PIXEL_ANGSTROM).values


def symmetric_map(symmetry: str, generator: torch.Generator) -> Tensor:
    """Blobs beside the axes, and their copies."""
    return sample_atoms(symmetric_phantom(symmetry, generator), N, PIXEL_ANGSTROM).values


def noisy(values: Tensor, level: float, generator: torch.Generator) -> Tensor:
    return values + level * values.std() * torch.randn(values.shape, generator=generator)


def with_other_hand(values: Tensor, turn: Tensor, weight: float = 1.0) -> Tensor:
    """V(r) + V(-Q r), for Q its own inverse."""
    return values + weight * rotate_map(mirror_map(values), -turn @ REFLECTION, torch.zeros(3))


def half_turn(generator: torch.Generator) -> Tensor:
    axis = torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0)
    return 2 * axis[:, None] * axis - torch.eye(3)


def correlation(first: Tensor, second: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])


@pytest.mark.parametrize(
    "symmetry",
    ["C2", "c7", "D2", "O", *(pytest.param(name, marks=pytest.mark.slow) for name in ("T", "I", "I1"))],
)
def test_axes_and_centre_are_found_and_imposing_removes_noise(symmetry: str, generator: torch.Generator) -> None:
    truth, rotation = symmetric_map(symmetry, generator), random_rotations(1, generator)[0]
    volume = Volume(noisy(rotate_map(truth, rotation, MOVE_PX), 1.5, generator), PIXEL_ANGSTROM)
    fit = find_symmetry(volume, symmetry)
    # What was turned and turned back may still differ by an element of the normaliser: it maps the group onto itself.
    group, change = symmetry_rotations(symmetry).float(), fit.rotation @ rotation
    conjugates = change @ group @ change.T
    angles = rotation_angle_rad(conjugates[:, None].expand(-1, len(group), 3, 3), group.expand(len(group), -1, 3, 3))
    assert math.degrees(float(angles.amin(1).max())) < 3.0
    assert fit.correlation == pytest.approx(float(fit.element_correlations[1:].mean()))
    off = fit.rotation @ MOVE_PX + fit.shift_angstrom / PIXEL_ANGSTROM
    assert float((off[:2] if symmetry.upper().startswith("C") else off).norm()) < 0.1
    imposed = impose_symmetry(volume, symmetry, fit)
    assert imposed.pixel_size_angstrom == PIXEL_ANGSTROM
    before = correlation(volume.values, rotate_map(truth, rotation, MOVE_PX))
    after = correlation(imposed.values, rotate_map(truth, change, off))
    # Averaging g copies divides the variance of the noise by g.
    assert before == pytest.approx((1 + 1.5**2) ** -0.5, abs=0.02)
    assert after > (1 + 1.5**2 / len(group)) ** -0.5 - 0.02


def test_an_imposed_map_is_symmetric_in_the_standard_frame(generator: torch.Generator) -> None:
    volume = Volume(blobs(generator), PIXEL_ANGSTROM)
    imposed = impose_symmetry(volume, "C3", find_symmetry(volume, "C3"))
    for element in symmetry_rotations("C3").float():
        assert correlation(rotate_map(imposed.values, element, torch.zeros(3)), imposed.values) > 0.999


def test_pseudo_symmetry_agrees_less(generator: torch.Generator) -> None:
    symmetric, rotation = symmetric_map("C4", generator), random_rotations(1, generator)[0]
    other = blobs(generator)
    scores = [
        find_symmetry(Volume(rotate_map(values, rotation, MOVE_PX), PIXEL_ANGSTROM), "C4").correlation
        for values in (symmetric, symmetric + 0.3 * other * symmetric.std() / other.std(), other)
    ]
    assert scores[0] > 0.99
    assert scores[0] > scores[1] + 0.02
    assert scores[1] > scores[2] + 0.1


def test_elements_tell_which_part_of_the_group_holds(generator: torch.Generator) -> None:
    fit = find_symmetry(Volume(symmetric_map("C2", generator), PIXEL_ANGSTROM), "C4")
    turns_deg = rotation_angle_rad(torch.eye(3).expand(4, 3, 3), symmetry_rotations("C4").float()).rad2deg().round()
    for turn_deg, agreement in zip(turns_deg.tolist(), fit.element_correlations.tolist(), strict=True):
        assert agreement > 0.95 if turn_deg in {0, 180} else agreement < 0.9


def test_no_symmetry_leaves_the_map_as_it_is(generator: torch.Generator) -> None:
    volume = Volume(blobs(generator), PIXEL_ANGSTROM)
    fit = find_symmetry(volume, "C1")
    torch.testing.assert_close(fit.rotation, torch.eye(3))
    torch.testing.assert_close(fit.shift_angstrom, torch.zeros(3))
    assert fit.correlation == 1.0
    assert correlation(impose_symmetry(volume, "C1", fit).values, volume.values) > 0.999


def test_what_cannot_be_fitted_is_refused() -> None:
    flat = Volume(torch.ones(16, 16, 16), PIXEL_ANGSTROM)
    with pytest.raises(ConfigError, match="--sym"):
        find_symmetry(flat, "X3")
    with pytest.raises(MapFileError, match="same everywhere"):
        find_symmetry(flat, "C2")
    with pytest.raises(MapFileError, match="same everywhere"):
        planar_symmetry_score(flat)


@pytest.mark.parametrize("seed", range(3))
def test_mixed_hands_are_told_from_one(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values, rotation = blobs(generator), random_rotations(1, generator)[0]

    def score(mixed: Tensor) -> float:
        return planar_symmetry_score(
            Volume(noisy(rotate_map(mixed, rotation, MOVE_PX), 0.3, generator), PIXEL_ANGSTROM)
        )

    assert score(values) < 0.8
    assert score(with_other_hand(values, half_turn(generator))) > 0.97
    assert score(with_other_hand(values, torch.eye(3))) > 0.97
    # A little of the other hand is no mirror symmetry.
    assert score(with_other_hand(values, half_turn(generator), 0.2)) < MIXED_HANDS_SCORE


def test_the_score_knows_neither_frame_nor_hand(generator: torch.Generator) -> None:
    values, rotation = blobs(generator), random_rotations(1, generator)[0]
    scores = [
        planar_symmetry_score(Volume(copy, PIXEL_ANGSTROM))
        for copy in (values, rotate_map(values, rotation, MOVE_PX), mirror_map(values), 5 * values + 2)
    ]
    assert max(scores) - min(scores) < 0.01


def test_an_improper_rotation_of_another_order_is_no_mirror(generator: torch.Generator) -> None:
    """V(r) + V(-Q r) + V(Q^2 r) + V(-Q^3 r) with Q a quarter turn: symmetric under -Q, and of both hands, but S4."""
    values = rotate_map(blobs(generator), torch.eye(3), torch.tensor([3.0, 2.0, 1.0]))
    quarter = rotation_from_vector(torch.tensor([0.0, 0.0, math.pi / 2]))
    zero = torch.zeros(3)
    mixed = values + rotate_map(values, quarter @ quarter, zero)
    mixed = mixed + rotate_map(mirror_map(mixed), -quarter @ REFLECTION, zero)
    assert planar_symmetry_score(Volume(mixed, PIXEL_ANGSTROM)) < MIXED_HANDS_SCORE
    assert find_symmetry(Volume(mixed, PIXEL_ANGSTROM), "C2").correlation > 0.98


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["1wcm.pdb", "6msm.pdb", "8bk7.cif"])
def test_real_structures_are_of_one_hand(name: str, reference_data: Path, generator: torch.Generator) -> None:
    atoms = read_atoms(reference_data / "models" / name).centred()
    volume = sample_atoms(atoms, N, 3 * atoms.radius_angstrom / N)
    assert planar_symmetry_score(volume) < MIXED_HANDS_SCORE - 0.05
    mixed = with_other_hand(volume.values, half_turn(generator))
    assert planar_symmetry_score(Volume(mixed, volume.pixel_size_angstrom)) > 0.99


@pytest.mark.realdata
def test_the_symmetry_of_real_structures(reference_data: Path) -> None:
    atoms = read_atoms(reference_data / "models" / "8bk7.cif").centred()
    volume = sample_atoms(atoms, N, 3 * atoms.radius_angstrom / N)
    assert find_symmetry(volume, "D2").correlation > 0.99
    assert find_symmetry(volume, "C4").correlation < 0.8
