"""A map from elsewhere: its grey scale follows the particles, and its detail is not seen."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cryoeq.geometry.shells import shell_power
from cryoeq.reconstruction.initial_reference import amplitude, begin_from_reference
from cryoeq.reconstruction.state import ConsensusMap, RefinementSettings

Make = Callable[..., Any]
COUNT = 40

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = RefinementSettings(
    consensus_shells=(3,), max_extra_iterations=0, max_particles=COUNT, iterations=1, max_exhaustive_shell=5,
    local_iterations=0, n_offsets=1, shift_sigma_px=1.2, mask_radius=0.42, symmetry=torch.eye(3)[None],
    box_side_angstrom=80.0,
)  # fmt: skip


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_the_amplitude_is_that_of_the_map_of_the_particles(make_known: Make, observe: Make, sigma: float) -> None:
    known = make_known(400, sigma=sigma, shift_sigma_angstrom=0.0)
    particles = observe(known.dataset)
    found = amplitude(known.volume.values, 5, particles)
    assert found == pytest.approx(1.0, abs=0.25)
    assert amplitude(known.volume.values / 40, 5, particles) == pytest.approx(40 * found, rel=1e-4)


def test_images_of_noise_have_no_amplitude_to_speak_of(make_known: Make, observe: Make) -> None:
    known = make_known(400, sigma=100.0)
    assert 0 < amplitude(known.volume.values, 5, observe(known.dataset)) < 50


def test_both_half_sets_begin_at_the_map_up_to_the_shell(make_known: Make, observe: Make) -> None:
    known = make_known(COUNT, sigma=0.3)
    half_set = torch.arange(COUNT) % 2 + 1
    particles = observe(known.dataset)
    state = begin_from_reference(known.volume.values, 3, particles, half_set, SETTINGS, seed=0)
    assert isinstance(state.reference, ConsensusMap)
    assert state.radius == 3
    power = shell_power(state.reference.mean)
    assert float(power[6:].max()) < 1e-2 * float(power[1:4].max())
    assert state.particles.log_evidence.all()
