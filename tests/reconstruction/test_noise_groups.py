"""Noise spectra of groups: found where they differ, one where they do not, and exact in the likelihood."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Note
from cryoeq.domain.optics import Optics
from cryoeq.domain.particles import ParticleTable
from cryoeq.geometry.so3_grid import so3_grid
from cryoeq.physics.noise import background_spectrum
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.reconstruction.noise_groups import MIN_PARTICLES, BackgroundSums, NoiseGroups, at_radii
from cryoeq.reconstruction.particle_transforms import POWER_ORDERS, load_transforms, power_hats

Make = Callable[..., Any]
N, SHELLS = 32, 16


def table(optics: Tensor, micrograph: Tensor | None = None) -> ParticleTable:
    rows, zeros = torch.arange(len(optics)), torch.zeros(len(optics), dtype=torch.long)
    group = Optics("one", 5.0, 300.0, 2.7, 0.1)
    groups = (group,) * (int(optics.max()) + 1)
    return ParticleTable((), zeros, rows, N, 5.0, groups, optics, micrograph_index=micrograph)


def spectra_of(variances: Tensor, seed: int = 0) -> Tensor:
    """Background spectra of images of white noise."""
    images = torch.randn(len(variances), N, N, generator=torch.Generator().manual_seed(seed))
    return background_spectrum(images * variances.sqrt()[:, None, None], 12.0)[:, :SHELLS]


def precision_of(groups: NoiseGroups, power: Tensor, transfer: Tensor | None = None) -> Tensor:
    sums = BackgroundSums.empty(len(groups), SHELLS, torch.device("cpu"))
    transfer = torch.ones_like(power) if transfer is None else transfer
    return sums.adding(power, transfer, groups.of_particle).relative_precision(groups)


def in_groups(dataset: ParticleDataset, optics: Tensor) -> ParticleDataset:
    groups = dataset.table.optics * (int(optics.max()) + 1)
    return replace(dataset, table=replace(dataset.table, optics=groups, optics_index=optics))


def test_each_optics_group_and_each_micrograph_has_its_own_spectrum() -> None:
    optics = torch.arange(600) % 2
    micrograph = torch.arange(600) // 100
    level = torch.tensor([1.0, 3.0])[optics] * torch.tensor([0.7, 0.8, 0.9, 1.1, 1.2, 1.3])[micrograph]
    groups = NoiseGroups.of_table(table(optics, micrograph), torch.arange(600))
    assert len(groups) == 12
    found = precision_of(groups, spectra_of(level))
    relative = found[groups.of_particle] * level[:, None]  # the same for all
    assert (relative[:, 2:] / relative[:, 2:].mean(0) - 1).abs().max() < 0.15
    assert (relative.mean(1) / relative.mean() - 1).abs().max() < 0.05


def test_equal_groups_have_almost_one_spectrum() -> None:
    """Their ratios are shrunk far below the scatter of the measured ones."""
    groups = NoiseGroups.of_table(table(torch.zeros(800).long(), torch.arange(800) // 20), torch.arange(800))
    power = spectra_of(torch.ones(800))
    raw = torch.zeros(40, SHELLS).index_add(0, groups.of_particle, power) / 20
    scatter = (raw / raw.mean(0)).log()[:, 1:].square().mean().sqrt()
    found = precision_of(groups, power).log()[:, 1:].square().mean().sqrt()
    assert found < 0.4 * scatter


def test_small_micrographs_have_the_spectrum_of_their_optics_group() -> None:
    count = MIN_PARTICLES
    micrograph = torch.cat([torch.zeros(count), torch.ones(count - 1), torch.full((3,), 2)]).long()
    groups = NoiseGroups.of_table(table(torch.zeros_like(micrograph), micrograph), torch.arange(len(micrograph)))
    assert groups.of_particle.tolist() == [1] * count + [0] * (count + 2)
    assert groups.is_whole.tolist() == [True, False]
    # What counts are the particles that are read.
    assert len(NoiseGroups.of_table(table(torch.zeros_like(micrograph), micrograph), torch.arange(1, 40))) == 1


def test_premultiplication_is_no_difference_of_the_noise() -> None:
    transfer = torch.rand(400, SHELLS, generator=torch.Generator().manual_seed(3)) + 0.2
    groups = NoiseGroups.of_table(table(torch.arange(400) % 2), torch.arange(400))
    transfer[groups.of_particle == 1] = 1.0
    power = spectra_of(torch.ones(400)) * transfer
    assert precision_of(groups, power, transfer).log().abs().max() < 0.2
    assert precision_of(groups, power).log().abs().max() > 0.2


@pytest.mark.parametrize("n_masked", [200, 400])
def test_a_background_that_was_masked_tells_nothing(n_masked: int) -> None:
    """Of one group or of both: neither does its group count for more, nor is anything infinite."""
    groups = NoiseGroups.of_table(table((torch.arange(400) >= 200).long()), torch.arange(400))
    power = spectra_of(torch.ones(400))
    power[:n_masked] = 0.0
    assert precision_of(groups, power).log().abs().max() < 0.8


def test_the_values_between_shells_are_linear() -> None:
    shells = torch.tensor([[1.0, 2.0, 4.0]])
    assert at_radii(shells, torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 7.0]))[0].tolist() == [1.0, 1.5, 2.0, 3.0, 4.0, 4.0]


def test_one_group_changes_no_bit(make_known: Make, observe: Make) -> None:
    dataset = make_known(30, sigma=1.0).dataset
    named = replace(dataset, table=replace(dataset.table, micrograph_index=torch.full((30,), 4)))
    alone, grouped = observe(dataset), observe(named)
    assert torch.equal(alone.ctf_multiplied, grouped.ctf_multiplied)
    assert torch.equal(alone.ctf_squared_harmonics, grouped.ctf_squared_harmonics)
    assert grouped.group is None


@pytest.mark.parametrize("with_ctf", [True, False])
def test_the_noise_that_a_map_leaves_is_that_of_each_group(make_known: Make, observe: Make, with_ctf: bool) -> None:
    """The common variance over the weights of a group is its variance, signal and all."""
    known = make_known(600, with_ctf=with_ctf, shift_sigma_angstrom=0.0)
    optics = torch.arange(600) % 2
    deviations = torch.tensor([2.0, 4.0])
    noise = torch.randn(known.dataset.cache.shape, generator=torch.Generator().manual_seed(2))
    images = known.dataset.cache + noise * deviations[optics][:, None, None]
    particles = observe(in_groups(replace(known.dataset, cache=images), optics))
    plain = observe(known.dataset)
    slices = extract_slices(prepare_slices(known.volume.values), so3_grid(1, 1), particles.plane)
    common = particles.residual_noise_variance(slices.abs().square().mean(0))
    weights = (particles.ctf_squared.sum(1) / plain.ctf_squared.sum(1)).sqrt()
    assert float(weights[optics == 0].mean()) > 1.5 * float(weights[optics == 1].mean())
    for group, deviation in enumerate(deviations.tolist()):
        ratio = (particles.ctf_squared / plain.ctf_squared.clamp(min=1e-9))[optics == group].median(0).values
        found = common[particles.plane.shells] / ratio
        assert float((found[particles.plane.shells > 1] / deviation**2).mean()) == pytest.approx(1, abs=0.15)


def test_the_user_is_told_of_the_groups(make_known: Make) -> None:
    known = make_known(60, sigma=1.0)
    notes = {
        count: [event for event in load_transforms(data, torch.device("cpu")) if isinstance(event, Note)]
        for count, data in ((1, known.dataset), (2, in_groups(known.dataset, torch.arange(60) % 2)))
    }
    assert notes[1] == []
    assert notes[2][0].text.startswith("Noise: a spectrum for each of 2 groups")


def test_hats_hold_the_weighted_squared_ctf(make_known: Make, observe: Make) -> None:
    known = make_known(60)
    optics = torch.arange(60) % 2
    noise = torch.randn(known.dataset.cache.shape, generator=torch.Generator().manual_seed(2))
    images = known.dataset.cache + noise * (2 + 4 * optics)[:, None, None]
    particles = observe(in_groups(replace(known.dataset, cache=images), optics)).within(5.0, 16)
    hats = power_hats(particles.plane)
    twice = torch.tensor([1.0] + [2.0] * (POWER_ORDERS - 1)).to(hats.dtype)
    harmonics = torch.view_as_complex(particles.ctf_squared_harmonics)
    found = torch.einsum("lbj,pjl,l->bp", harmonics, hats, twice).real
    error = (found - particles.ctf_squared).square().mean().sqrt()
    assert float(error) < 0.04 * float(particles.ctf_squared.max())
    assert float(particles.ctf_squared[optics == 0].mean()) > 3 * float(particles.ctf_squared[optics == 1].mean())


def test_what_lies_within_the_diameter_of_the_particle_is_no_noise(make_known: Make, observe: Make) -> None:
    """A rim that one group has alone is taken for its noise, unless the particle is told to reach that far."""
    known = make_known(200, sigma=1.0)
    optics, n = torch.arange(200) % 2, known.dataset.box_size_px
    axis = (torch.arange(n) - n // 2) / (n / 2)
    radii = (axis[:, None].square() + axis.square()).sqrt()
    rim = torch.randn(200, n, n, generator=torch.Generator().manual_seed(4)) * ((radii > 0.8) & (radii < 0.95))
    dataset = in_groups(replace(known.dataset, cache=known.dataset.cache + 3 * rim * optics[:, None, None]), optics)

    def difference(radius: float) -> float:
        weights = observe(replace(dataset, preprocessing=replace(dataset.preprocessing, background_radius=radius)))
        squared = weights.ctf_squared.sum(1)
        return abs(float((squared[optics == 0].mean() / squared[optics == 1].mean()).log()))

    assert difference(0.75) > 0.3
    assert difference(0.95) < 0.1


@pytest.mark.parametrize("size", [1, 2])
def test_chance_makes_no_spectrum_of_an_optics_group_of_few_images(size: int) -> None:
    optics = torch.arange(60) // size
    groups = NoiseGroups.of_table(table(optics), torch.arange(60))
    logs = precision_of(groups, spectra_of(torch.ones(60))).log()
    assert float(logs.std(0)[1:].mean()) < 0.05  # of the images alone: 0.3 of one, 0.2 of two
