"""Micrographs share a defocus, optics groups share a microscope."""

import pytest
import torch

from cryoeq.domain.optics import Optics
from cryoeq.physics.ctf import with_defocus_moved
from cryoeq.simulation.acquisition import (
    HEIGHT_SD_ANGSTROM,
    GroupNoise,
    draw_ctf_of_micrographs,
    draw_micrographs,
    draw_optics_groups,
    with_optics_of_groups,
)
from cryoeq.simulation.particles import DefocusRange

OPTICS = Optics("test", 5.0, 300.0, 2.7, 0.1)


def test_each_micrograph_is_in_one_group_and_all_are_about_as_large(generator: torch.Generator) -> None:
    micrograph, group = draw_micrographs(5000, 25, 3, generator)
    assert bool((micrograph.diff() >= 0).all())
    counts = torch.bincount(micrograph, minlength=25)
    assert int(counts.min()) > 140
    groups_of = [set(group[micrograph == number].tolist()) for number in range(25)]
    assert all(len(found) == 1 for found in groups_of)
    assert sorted(torch.bincount(torch.tensor([found.pop() for found in groups_of])).tolist()) == [8, 8, 9]


def test_particles_of_a_micrograph_differ_by_their_height_alone(generator: torch.Generator) -> None:
    micrograph, _ = draw_micrographs(4000, 4, 1, generator)
    ctf = draw_ctf_of_micrographs(micrograph, OPTICS, DefocusRange(1e4, 2.5e4, 300.0), (generator, generator))
    astigmatism = ctf.defocus_u_angstrom - ctf.defocus_v_angstrom
    means = []
    for number in range(4):
        mine = micrograph == number
        assert float(astigmatism[mine].std()) < 1e-2
        assert float(ctf.defocus_angle_rad[mine].std()) < 1e-6
        assert float(ctf.defocus_u_angstrom[mine].std()) == pytest.approx(HEIGHT_SD_ANGSTROM, rel=0.1)
        means.append(float(ctf.defocus_u_angstrom[mine].mean()))
    assert max(means) - min(means) > 1000


def test_a_moved_defocus_keeps_its_astigmatism(generator: torch.Generator) -> None:
    micrograph, _ = draw_micrographs(10, 2, 1, generator)
    ctf = draw_ctf_of_micrographs(micrograph, OPTICS, DefocusRange(1e4, 2e4, 300.0), (generator, generator))
    moved = with_defocus_moved(ctf, torch.full((10,), -150.0))
    torch.testing.assert_close(moved.defocus_u_angstrom, ctf.defocus_u_angstrom - 150)
    torch.testing.assert_close(moved.defocus_v_angstrom, ctf.defocus_v_angstrom - 150)


def test_the_first_group_is_as_asked_and_the_others_differ_a_little(generator: torch.Generator) -> None:
    groups, noise = draw_optics_groups(OPTICS, 200, generator)
    assert groups[0] == OPTICS
    assert noise[0] == GroupNoise()
    assert len({group.name for group in groups}) == 200
    assert {(group.voltage_kv, group.pixel_size_angstrom) for group in groups} == {(300.0, 5.0)}
    levels = torch.tensor([one.deviation for one in noise[1:]])
    assert float(levels.log().std()) == pytest.approx(0.15, rel=0.2)
    assert all(0.1 <= one.structural_share <= 0.9 and one.corner > 0 for one in noise)
    assert all(
        abs(group.spherical_aberration_mm - 2.7) < 0.2 and 0 < group.amplitude_contrast < 0.2 for group in groups
    )


def test_particles_have_the_optics_of_their_group(generator: torch.Generator) -> None:
    groups, _ = draw_optics_groups(OPTICS, 3, generator)
    micrograph, index = draw_micrographs(30, 6, 3, generator)
    ctf = draw_ctf_of_micrographs(micrograph, OPTICS, DefocusRange(1e4, 2e4), (generator, generator))
    found = with_optics_of_groups(ctf, groups, index)
    expected = torch.tensor([groups[number].amplitude_contrast for number in index.tolist()])
    torch.testing.assert_close(found.amplitude_contrast, expected)
    assert len(set(found.spherical_aberration_mm.tolist())) == 3
