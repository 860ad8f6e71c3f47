"""Mask and offsets follow from the particle's diameter, unless they are given; a map as wide as the mask is doubted."""

from pathlib import Path
from typing import Any

import pytest

from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.pipelines.reconstruct.particle_diameter import cut_notes, diameter_notes, mask_radius, shift_sigma_px

SIDE, BOX = 200.0, 50


def settings(**named: Any) -> ReconstructConfig:
    explicit = {key.replace("__", "."): value for key, value in named.items()}
    return load_config(ReconstructConfig, explicit={"particles": Path("p.star"), "output": Path("none"), **explicit})


def test_without_a_diameter_both_are_shares_of_the_box() -> None:
    assert mask_radius(settings(), SIDE) == mask_radius(settings(), 3 * SIDE) == 0.42
    assert shift_sigma_px(settings(), BOX, SIDE / BOX) == shift_sigma_px(settings(), BOX, 1.0) == 0.05 * BOX


@pytest.mark.parametrize("diameter", [60.0, 120.0, 200.0])
def test_both_follow_the_diameter_in_whatever_box(diameter: float) -> None:
    config = settings(input__particle_diameter_angstrom=diameter)
    for side in (SIDE, 1.5 * SIDE):
        assert 2 * mask_radius(config, side) * side == pytest.approx(diameter)
        assert shift_sigma_px(config, BOX, side / BOX) * side / BOX == pytest.approx(0.06 * diameter)
    (note,) = diameter_notes(config, SIDE)
    assert note.text == f"Particle diameter: {diameter:g} Å, as given."


def test_offsets_that_are_given_do_not_follow() -> None:
    config = settings(input__particle_diameter_angstrom=100.0, input__shift_sigma_angstrom=8.0)
    assert shift_sigma_px(config, BOX, SIDE / BOX) == 2.0
    assert mask_radius(settings(search__mask_radius=0.3), SIDE) == 0.3


def test_the_assumed_diameter_is_told_where_it_counts() -> None:
    (note,) = diameter_notes(settings(), SIDE)
    assert "168 Å at most, 0.84 of the box" in note.text
    assert not list(diameter_notes(settings(pose_inference="known"), SIDE))


@pytest.mark.parametrize(("diameter", "wide"), [(None, 168.0), (100.0, 100.0)])
def test_a_map_as_wide_as_the_mask_may_be_cut(diameter: float | None, wide: float) -> None:
    config = settings(input__particle_diameter_angstrom=diameter)
    assert not list(cut_notes(config, 0.95 * wide, SIDE))
    assert not list(cut_notes(config, None, SIDE))
    (note,) = cut_notes(config, wide, SIDE)
    assert note.level == "warning"
    assert f"the mask of the search, {wide:.0f} Å" in note.text
    assert not list(cut_notes(settings(pose_inference="known"), SIDE, SIDE)), "there is no such mask"
