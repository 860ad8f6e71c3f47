"""Point groups of a map: what was put in is named, on its axes; nothing else is, whatever the noise."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad, rotation_from_vector
from cryoeq.maps.alignment import rotate_map
from cryoeq.maps.point_group_search import find_point_groups, score_in_place
from cryoeq.maps.point_groups import GroupAgreement, PointGroups
from cryoeq.maps.symmetry import SymmetryFit, average_over_group, find_symmetry
from cryoeq.simulation.density import sample_atoms
from phantoms import chiral_phantom, random_phantom, symmetric_phantom

N, PIXEL_ANGSTROM = 24, 7.0
MOVE_PX = torch.tensor([1.5, -1.0, 0.5])
SUBGROUPS = {
    "C2": {"C2"}, "C3": {"C3"}, "C4": {"C2", "C4"}, "C6": {"C2", "C3", "C6"}, "D2": {"C2", "D2"},
    "D3": {"C2", "C3", "D3"}, "T": {"C2", "C3", "D2", "T"}, "O": {"C2", "C3", "C4", "D2", "D3", "D4", "T", "O"},
    "I": {"C2", "C3", "C5", "D2", "D3", "D5", "T", "I"},
}  # fmt: skip
each_group = pytest.mark.parametrize(
    "symmetry",
    ["C3", "C4", "D2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("C2", "C6", "D3", "T", "O", "I"))],
)


def named(values: Tensor, noise: float, generator: torch.Generator, **options: str) -> PointGroups:
    """Groups of a map, known from two half maps with noise of their own."""
    halves = [values + noise * values.std() * torch.randn(values.shape, generator=generator) for _ in range(2)]
    first, second = (Volume(half, PIXEL_ANGSTROM) for half in halves)
    merged = replace(first, values=(first.values + second.values) / 2)
    return find_point_groups(merged, HalfMaps(first, second), **options)


def symmetric_map(symmetry: str, generator: torch.Generator) -> Tensor:
    return sample_atoms(symmetric_phantom(symmetry, generator), N, PIXEL_ANGSTROM).values


def moved(values: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The map in another orientation, its axes beside the centre of the box; the rotation."""
    rotation = random_rotations(1, generator)[0]
    return rotate_map(values, rotation, MOVE_PX), rotation


@each_group
def test_a_group_is_named_with_its_subgroups_and_axes(symmetry: str, generator: torch.Generator) -> None:
    values, rotation = moved(symmetric_map(symmetry, generator), generator)
    # The rounder a map, the less its halves agree beyond random rotations, by which scores are divided.
    found = named(values, 0.5 if symmetry in {"T", "O", "I"} else 1.0, generator)
    assert found.best is not None
    assert found.best.symmetry == symmetry
    assert {group.symmetry for group in found.holding} == SUBGROUPS[symmetry]
    assert found.best.score == pytest.approx(1, abs=0.1)
    assert not found.is_round
    # What was turned and turned back may still differ by an element of the normaliser: it maps the group onto itself.
    group, change = symmetry_rotations(symmetry).float(), found.best.fit.rotation @ rotation
    conjugates = change @ group @ change.T
    angles = rotation_angle_rad(conjugates[:, None].expand(-1, len(group), 3, 3), group.expand(len(group), -1, 3, 3))
    assert math.degrees(float(angles.amin(1).max())) < 2.0


def test_noise_changes_no_score(generator: torch.Generator) -> None:
    values, _ = moved(symmetric_map("C3", generator), generator)
    for mixed, lowest, highest in ((values, 0.93, 1.07), (values + values.flip(2) * 0.7, 0.0, 0.9)):
        clean, noisy = (named(mixed, noise, generator, symmetry="c3").groups[0] for noise in (0.02, 1.0))
        assert clean.score == pytest.approx(noisy.score, abs=0.08)
        assert lowest < clean.score < highest


def test_what_has_no_symmetry_is_given_none(generator: torch.Generator) -> None:
    values = sample_atoms(random_phantom(20, 60.0, generator), N, PIXEL_ANGSTROM).values
    found = named(values, 0.5, generator)
    assert found.best is None
    assert found.pseudo is None
    assert {group.symmetry for group in found.groups} == {"C2", "C3", "C5", "C7"}
    assert not found.is_of_revolution


def test_a_pseudo_symmetry_is_told_and_falls_with_resolution(generator: torch.Generator) -> None:
    """Two copies of a molecule, the second with its blobs displaced."""
    atoms = symmetric_phantom("C2", generator)
    displaced = 6.0 * torch.randn(len(atoms.positions_angstrom), 3, generator=generator)
    displaced[: len(displaced) // 2] = 0
    atoms = replace(atoms, positions_angstrom=atoms.positions_angstrom + displaced)
    found = named(sample_atoms(atoms, N, PIXEL_ANGSTROM).values, 0.1, generator)
    assert found.best is None
    assert found.pseudo is not None
    assert found.pseudo.symmetry == "C2"
    assert found.pseudo.coarse > found.pseudo.fine + 0.1


def test_a_round_map_is_called_round(generator: torch.Generator) -> None:
    k = torch.arange(N) - N // 2
    radii = (k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).float().sqrt()
    shell = torch.exp(-0.5 * ((radii - 7) / 1.5).square())
    sphere = named(shell, 0.1, generator)
    assert sphere.is_round
    assert sphere.best is None


@pytest.mark.slow
def test_a_body_of_revolution_is_given_no_order(generator: torch.Generator) -> None:
    k = torch.arange(N) - N // 2
    across = (k[:, None] ** 2 + k**2).float().sqrt()
    ring = torch.exp(-0.5 * ((across - 6) / 1.5).square() - 0.5 * ((k[:, None, None] + 2) / 2.5).square())
    tilted = torch.exp(-0.5 * ((across - 4) / 1.5).square() - 0.5 * ((k[:, None, None] - 4) / 2.0).square())
    turned, _ = moved(ring + tilted, generator)
    vase = named(turned, 0.1, generator)
    assert vase.is_of_revolution
    assert vase.best is None
    assert not vase.is_round


def agreement(symmetry: str, score: float, between: float) -> GroupAgreement:
    fit = SymmetryFit(torch.eye(3), torch.zeros(3), 1.0, torch.ones(len(symmetry_rotations(symmetry))))
    return GroupAgreement(symmetry, fit, score, score, score, score, 9.0, between, torch.ones(8))


@pytest.mark.parametrize(
    ("between", "best"),
    [
        pytest.param({"C2": 1.0, "C4": 0.3}, "C4", id="C4"),
        pytest.param({"C4": 0.3, "C6": 1.0}, None, id="C12, compared up to C8"),
        pytest.param({"C2": 0.3, "D2": 0.3, "C4": 1.0, "D8": 1.0}, None, id="rod"),
    ],
)
def test_no_subgroup_is_named_in_place_of_a_group_beyond_the_search(
    between: dict[str, float], best: str | None
) -> None:
    curve = torch.ones(8)
    groups = tuple(agreement(name, 1.0, half_step) for name, half_step in between.items())
    found = PointGroups(groups, curve, 0 * curve, 0 * curve, 7, 1.0)
    assert (None if found.best is None else found.best.symmetry) == best
    assert found.is_of_revolution == (best is None)


def test_the_average_over_a_group_stays_in_the_frame_of_the_map(generator: torch.Generator) -> None:
    values, _ = moved(symmetric_map("D2", generator), generator)
    fit = find_symmetry(Volume(values, PIXEL_ANGSTROM), "D2")
    noisy = Volume(values + values.std() * torch.randn(values.shape, generator=generator), PIXEL_ANGSTROM)
    errors = [float((each.values - values).square().mean()) for each in (noisy, average_over_group(noisy, "D2", fit))]
    assert errors[1] < 0.35 * errors[0]  # four copies, and the corners beyond Nyquist's sphere are gone


def test_without_half_maps_noise_counts_against_a_symmetry(generator: torch.Generator) -> None:
    values, _ = moved(symmetric_map("C3", generator), generator)
    clean = find_point_groups(Volume(values, PIXEL_ANGSTROM), symmetry="C3").groups[0]
    noise = 2.0 * values.std() * torch.randn(values.shape, generator=generator)
    noisy = find_point_groups(Volume(values + noise, PIXEL_ANGSTROM), symmetry="C3").groups[0]
    assert clean.holds
    assert noisy.score < 0.8


def test_a_coarser_comparison_sees_less(generator: torch.Generator) -> None:
    volume = Volume(sample_atoms(chiral_phantom(60.0), N, PIXEL_ANGSTROM).values, PIXEL_ANGSTROM)
    side = N * PIXEL_ANGSTROM
    coarse, fine = (find_point_groups(volume, symmetry="C2", resolution_angstrom=side / shell) for shell in (5.5, 11.5))
    assert (coarse.last_shell, fine.last_shell) == (5, 11)
    assert coarse.groups[0].score > fine.groups[0].score


@pytest.mark.parametrize("symmetry", ["C3", "D2"])
def test_in_place_a_group_is_scored_about_the_usual_axes_alone(symmetry: str, generator: torch.Generator) -> None:
    values = symmetric_map(symmetry, generator)
    tilt = rotation_from_vector(torch.tensor([0.5, 0.2, 0.1]))

    def score(shown: Tensor, noise: float = 0.5) -> GroupAgreement | None:
        halves = [shown + noise * shown.std() * torch.randn(shown.shape, generator=generator) for _ in range(2)]
        first, second = (Volume(half, PIXEL_ANGSTROM) for half in halves)
        merged = replace(first, values=(first.values + second.values) / 2)
        return score_in_place(merged, HalfMaps(first, second), symmetry.lower())

    there, elsewhere = score(values), score(rotate_map(values, tilt, torch.zeros(3)))
    assert there is not None
    assert there.holds
    assert elsewhere is not None
    assert elsewhere.score < 0.5
    assert score(values, noise=50.0) is None, "noise tells nothing"
