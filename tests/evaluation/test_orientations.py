"""Orientation distributions: laws of E_od, SCF* and Rayleigh's test."""

import math

import pytest
import torch
from torch import Tensor

from cryoeq.errors import ConfigError, ParticleFileError
from cryoeq.evaluation.orientations import (
    UNEVEN_SCF,
    OrientationSummary,
    coarser_counts,
    fourier_samples,
    rayleigh_test,
    sampling_compensation,
    summarise_orientations,
)
from cryoeq.geometry.healpix import pixel_centres, pixel_of_directions
from cryoeq.geometry.so3 import random_rotations

SIDE_VIEWS = 8 / math.pi**2


def on_equator(count: int) -> Tensor:
    azimuth = torch.arange(count, dtype=torch.float64) / count * 2 * math.pi
    return torch.stack([azimuth.cos(), azimuth.sin(), torch.zeros_like(azimuth)], 1)


def near_pole(count: int, tilt_deg: float, generator: torch.Generator) -> Tensor:
    """Even within so many degrees of z."""
    height = 1 - torch.rand(count, generator=generator, dtype=torch.float64) * (1 - math.cos(math.radians(tilt_deg)))
    azimuth = torch.rand(count, generator=generator, dtype=torch.float64) * 2 * math.pi
    radius = (1 - height**2).sqrt()
    return torch.stack([radius * azimuth.cos(), radius * azimuth.sin(), height], 1)


def looking_along(views: Tensor) -> Tensor:
    """Rotations whose third row is the view."""
    other = torch.eye(3, dtype=views.dtype)[views.abs().argmin(1)]
    first = torch.nn.functional.normalize(torch.linalg.cross(other, views), dim=1)
    return torch.stack([first, torch.linalg.cross(views, first), views], 1)


def summary_of(views: Tensor, generator: torch.Generator, symmetry: str = "C1") -> OrientationSummary:
    angles = torch.rand(len(views), generator=generator, dtype=torch.float64) * 2 * math.pi
    return summarise_orientations(looking_along(views), angles, symmetry=symmetry, generator=generator)


def test_an_even_distribution_has_ones(generator: torch.Generator) -> None:
    rotations = random_rotations(3000, generator)
    summary = summarise_orientations(rotations, torch.zeros(3000), generator=generator)
    assert summary.scf_star > 0.98
    assert summary.efficiency > 0.97
    assert summary.unsampled_share == 0
    assert not summary.is_uneven
    assert float(summary.view_counts.sum()) == 3000
    assert summary.fourier_radius == 15


@pytest.mark.parametrize("count", [200, 3000, 20000])
def test_side_views_reach_all_of_fourier_space(count: int, generator: torch.Generator) -> None:
    summary = summary_of(on_equator(count), generator)
    assert summary.unsampled_share == 0
    assert summary.scf == summary.scf_star == pytest.approx(SIDE_VIEWS, abs=0.01)
    assert pytest.approx(UNEVEN_SCF, abs=0.002) == SIDE_VIEWS
    assert summary.efficiency == pytest.approx(0.711, abs=0.01)


def test_top_views_leave_a_missing_cone(generator: torch.Generator) -> None:
    summary = summary_of(near_pole(10000, 20, generator), generator)
    assert summary.unsampled_share == pytest.approx(1 - math.sin(math.radians(20)), abs=0.02)
    assert summary.is_uneven
    assert summary.scf_star < 0.05
    assert 0.05 < summary.efficiency < 0.2
    nearest = pixel_of_directions(torch.tensor([[0.0, 0, 1], [1, 0, 0]]), 5)
    assert float(summary.sampling[nearest[0]]) == 0
    assert float(summary.sampling[nearest[1]]) > 1


def test_one_view_is_the_worst(generator: torch.Generator) -> None:
    summary = summary_of(torch.tensor([[0.0, 0.6, 0.8]], dtype=torch.float64).expand(500, 3), generator)
    assert summary.efficiency == 0
    assert summary.scf_star < 0.01
    assert int(summary.view_counts.argmax()) == int(pixel_of_directions(torch.tensor([0.0, 0.6, 0.8]), 4))


def test_figures_do_not_turn_with_the_frame(generator: torch.Generator) -> None:
    views = near_pole(5000, 60, generator)
    turn = random_rotations(1, generator)[0].double()
    first, second = (summary_of(v, generator) for v in (views, views @ turn.T))
    assert first.efficiency == pytest.approx(second.efficiency, abs=0.02)
    assert first.unsampled_share == pytest.approx(second.unsampled_share, abs=0.01)
    assert first.scf_star == pytest.approx(second.scf_star, rel=0.1)


def test_symmetry_multiplies_views(generator: torch.Generator) -> None:
    """One side view of a C180 particle is as good as side views all around."""
    summary = summary_of(on_equator(1).expand(6, 3), generator, symmetry="c180")
    assert summary.symmetry == "C180"
    assert summary.scf_star == pytest.approx(SIDE_VIEWS, abs=0.02)
    assert float(summary.view_counts.sum()) == pytest.approx(6)
    with pytest.raises(ConfigError, match="--sym"):
        summary_of(on_equator(10), generator, symmetry="X3")


def test_scf_star_is_that_of_the_published_program() -> None:
    """Half of the coefficients met 100 times, half never: SCF 1 / (50 / 100), and SCF* 2 / (1 + 100 * 2 / 2)."""
    samples = torch.tensor([100.0, 0.0]).repeat(50)
    assert sampling_compensation(samples) == pytest.approx((2.0, 2 / 101))
    assert sampling_compensation(torch.full((9,), 3.0)) == pytest.approx((1.0, 1.0))


def test_samples_are_counted_within_half_a_shell(generator: torch.Generator) -> None:
    views = near_pole(1000, 90, generator)
    radius, samples = fourier_samples(views, generator)
    assert radius == 5
    expected = ((pixel_centres(5).float() @ views.float().T).abs() * radius < 0.5).sum(1)
    assert float((samples - expected).abs().max()) <= 2  # opposite directions share one count: ties by rounding
    assert float(samples.mean()) == pytest.approx(100, rel=0.1)


def test_rayleighs_test(generator: torch.Generator) -> None:
    even = torch.rand(2000, 60, generator=generator, dtype=torch.float64) * 2 * math.pi
    p_values = torch.tensor([rayleigh_test(angles)[1] for angles in even])
    for level in (0.02, 0.1, 0.5):
        assert float((p_values < level).double().mean()) == pytest.approx(level, abs=3 * math.sqrt(level / 2000))
    length, p_value = rayleigh_test(torch.full((100,), 2.0, dtype=torch.float64))
    assert length == pytest.approx(1.0)
    assert p_value < 1e-40
    opposite, p_opposite = rayleigh_test(torch.tensor([0.0, math.pi] * 50, dtype=torch.float64))
    assert opposite < 1e-9
    assert p_opposite == pytest.approx(1.0)


def test_coarser_pixels_hold_the_same_particles() -> None:
    counts = torch.zeros(3072, dtype=torch.float64)
    place = int(pixel_of_directions(torch.tensor([0.3, -0.5, 0.2]), 4))
    counts[place] = 7
    coarse = coarser_counts(counts, 1)
    assert float(coarse.sum()) == 7
    assert int(coarse.argmax()) == int(pixel_of_directions(torch.tensor([0.3, -0.5, 0.2]), 1))


def test_no_particles_are_refused(generator: torch.Generator) -> None:
    with pytest.raises(ParticleFileError, match="no particles"):
        summarise_orientations(torch.zeros(0, 3, 3), torch.zeros(0), generator=generator)
