"""Particles speak for an average over a symmetry that is there, and against one that is not."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.evaluation.held_out_likelihood import Gain, held_out_log_likelihoods
from cryoeq.geometry.fourier import crop_centred, fft_map, ifft_map, shell_index
from cryoeq.maps.alignment import rotate_map
from cryoeq.maps.symmetry import average_over_group, equivalent_poses, find_symmetry
from cryoeq.simulation.density import sample_atoms
from known_particles import ANGPIX, Known, N
from phantoms import chiral_phantom, symmetric_phantom

COUNT = 300


def halves_of(volume: Volume, noise: float, generator: torch.Generator) -> HalfMaps:
    level = noise * volume.values.std()
    first, second = (
        replace(volume, values=volume.values + level * torch.randn(N, N, N, generator=generator)) for _ in range(2)
    )
    return HalfMaps(first, second)


def gain(known: Known, halves: HalfMaps, other: HalfMaps) -> Gain:
    half_set = torch.arange(len(known.dataset)) % 2 + 1
    plain, averaged = held_out_log_likelihoods(known.dataset, [known.poses], half_set, [halves, other])
    return Gain.of(averaged, plain)


@pytest.mark.parametrize("with_ctf", [True, False])
def test_an_average_over_a_symmetry_that_is_there_explains_particles_better(
    with_ctf: bool, make_known: Callable[..., Known], generator: torch.Generator
) -> None:
    phantom = symmetric_phantom("C3", generator)
    small = replace(phantom, positions_angstrom=phantom.positions_angstrom * 0.45)
    for atoms, is_symmetric in ((small, True), (chiral_phantom(28.0), False)):
        known = make_known(COUNT, sigma=1.0, with_ctf=with_ctf, shown=sample_atoms(atoms, N, ANGPIX))
        halves = halves_of(known.volume, 0.5, generator)
        fit = find_symmetry(known.volume, "C3")
        averaged = HalfMaps(*(average_over_group(half, "C3", fit) for half in (halves.first, halves.second)))
        found = gain(known, halves, averaged)
        assert (found.sigmas > 5) if is_symmetric else (found.sigmas < -5)
        assert found.mean * found.sigmas > 0


def test_a_map_gains_nothing_over_itself_and_what_one_gains_the_other_loses(
    make_known: Callable[..., Known], generator: torch.Generator
) -> None:
    known = make_known(COUNT, sigma=1.0)
    halves, noisier = (halves_of(known.volume, level, generator) for level in (0.2, 1.0))
    assert gain(known, halves, halves) == Gain(0.0, 0.0)
    there, back = gain(known, halves, noisier), gain(known, noisier, halves)
    assert there.mean < 0 < back.mean


def test_each_particle_is_compared_with_the_map_of_the_other_half_set(
    make_known: Callable[..., Known], generator: torch.Generator
) -> None:
    known = make_known(COUNT, sigma=0.5)
    halves = halves_of(known.volume, 0.1, generator)
    wrong = replace(halves.first, values=-halves.first.values)
    half_set = torch.arange(COUNT) % 2 + 1
    right, half_wrong = held_out_log_likelihoods(
        known.dataset, [known.poses], half_set, [halves, HalfMaps(wrong, halves.second)]
    )
    # The filter follows the correlation of the halves, so that a wrong half map takes the other one along.
    assert bool((half_wrong[half_set == 2] < right[half_set == 2]).all())


def test_a_smaller_box_leaves_out_the_last_shells_only(
    make_known: Callable[..., Known], generator: torch.Generator
) -> None:
    known = make_known(COUNT, sigma=1.0)

    def low(volume: Volume, box: int) -> Volume:
        transform = torch.where(shell_index(N, 3) <= 3, fft_map(volume.values), 0)
        return Volume(ifft_map(crop_centred(transform, box, 3)).contiguous(), ANGPIX * N / box)

    halves, others = (halves_of(known.volume, level, generator) for level in (0.3, 0.6))
    large, small = (
        [HalfMaps(low(pair.first, box), low(pair.second, box)) for pair in (halves, others)] for box in (N, 10)
    )
    half_set = torch.arange(COUNT) % 2 + 1
    of_large, of_small = (
        held_out_log_likelihoods(known.dataset, [known.poses], half_set, pairs) for pairs in (large, small)
    )
    differences = [(pair[1] - pair[0]) for pair in (of_large, of_small)]
    assert (
        float(torch.corrcoef(torch.stack(differences))[0, 1]) > 0.95
    )  # noise fills the box, which slices of the smaller one fold
    assert float(differences[0].std()) == pytest.approx(float(differences[1].std()), rel=0.1)


def symmetric_particles(make_known: Callable[..., Known], generator: torch.Generator) -> Known:
    """Particles of a map of C3 about an axis that is not at the centre of the box."""
    phantom = symmetric_phantom("C3", generator)
    small = replace(phantom, positions_angstrom=phantom.positions_angstrom * 0.4)
    centred = sample_atoms(small, N, ANGPIX)
    shifted = rotate_map(centred.values, torch.eye(3), torch.tensor([0.8, -0.6, 0.5]))
    return make_known(COUNT, sigma=1.0, shown=Volume(shifted, ANGPIX))


def test_a_symmetric_map_makes_the_same_image_at_all_copies_of_a_pose(
    make_known: Callable[..., Known], generator: torch.Generator
) -> None:
    known = symmetric_particles(make_known, generator)
    fit = find_symmetry(known.volume, "C3")
    assert float(fit.shift_angstrom[:2].norm()) > 1.0  # along the axis no shift is told
    halves = HalfMaps(known.volume, known.volume)
    half_set = torch.arange(COUNT) % 2 + 1
    first, *others = (
        held_out_log_likelihoods(known.dataset, [copy], half_set, [halves])[0]
        for copy in equivalent_poses(known.poses, "C3", fit)
    )
    spread = float(first.std())
    for other in others:
        assert float((other - first).std()) < 0.05 * spread


def test_poses_that_were_chosen_among_copies_by_the_errors_of_a_map_do_not_speak_for_these(
    make_known: Callable[..., Known], generator: torch.Generator
) -> None:
    known = symmetric_particles(make_known, generator)
    fit, half_set = find_symmetry(known.volume, "C3"), torch.arange(COUNT) % 2 + 1
    error = 0.7 * known.volume.values.std() * torch.randn(N, N, N, generator=generator)
    shared = replace(known.volume, values=known.volume.values + error)  # errors that both half maps share
    halves = HalfMaps(shared, shared)
    averaged = HalfMaps(*(average_over_group(half, "C3", fit) for half in (shared, shared)))
    copies = equivalent_poses(known.poses, "C3", fit)
    best = torch.stack(
        [held_out_log_likelihoods(known.dataset, [copy], half_set, [halves])[0] for copy in copies]
    ).argmax(0)
    stacked = [torch.stack([getattr(copy, name) for copy in copies]) for name in ("rotations", "shifts_angstrom")]
    rows = torch.arange(COUNT)
    chosen = type(known.poses)(*(values[best, rows] for values in stacked))

    def gain_of(poses: list[Poses]) -> Gain:
        plain, symmetric = held_out_log_likelihoods(known.dataset, poses, half_set, [halves, averaged])
        return Gain.of(symmetric, plain)

    assert gain_of([chosen]).mean < gain_of([known.poses]).mean  # as a search would leave them
    assert gain_of(equivalent_poses(chosen, "C3", fit)).sigmas > 5
