"""The box and the settings of the consensus refinement, and the comparison of random starts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from cryoeq.domain.events import result_of
from cryoeq.errors import DivergedError
from cryoeq.geometry.map_filter import low_pass
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.reconstruction.half_set_refinement import begin_refinement, refine_consensus
from cryoeq.reconstruction.initial_model import InitialModel, InitialModelSettings
from cryoeq.reconstruction.multi_start import (
    MAX_RESTARTS,
    at_low_resolution,
    log_likelihood_at_one_noise,
    run_multi_start,
)
from cryoeq.reconstruction.settings import AbInitioSettings
from cryoeq.reconstruction.state import ConsensusMap, RefinementSettings, RefinementState, Step

Make = Callable[..., Any]


@pytest.mark.parametrize("shell", [1, 2, 3, 4, 7])
def test_no_stage_looks_beyond_the_box_of_the_consensus(make_known: Make, observe: Make, shell: int) -> None:
    particles = observe(make_known(4).dataset)
    symmetry = torch.stack([torch.eye(3), torch.diag(torch.tensor([-1.0, -1.0, 1.0]))])
    refinement = RefinementSettings((shell,), 0, 4, 1, 7, 0, 1, 2.0, 0.42, symmetry, 80.0)
    initial_model = InitialModelSettings(2, 4, 3, 7, 1, 2.0, 0.42)
    settings = AbInitioSettings(1, 1, initial_model, refinement, "C2", 5.0, 0)
    small, low_resolution = at_low_resolution(particles, settings)
    box = small.plane.box_size_px
    assert low_resolution.initial_model.last_shell <= box // 2 - 1
    assert low_resolution.refinement.max_exhaustive_shell <= box // 2 - 1
    assert low_resolution.refinement.symmetry.tolist() == torch.eye(3)[None].tolist()
    for sigma_px in (low_resolution.refinement.shift_sigma_px, low_resolution.initial_model.shift_sigma_px):
        assert sigma_px / box == pytest.approx(2.0 / 16), "as wide in Angstrom"


@pytest.mark.parametrize(("last_shell", "exhaustive", "reach"), [(7, 7, 7), (15, 15, 10), (31, 15, 14), (31, 9, 9)])
def test_a_symmetric_start_reaches_further_but_leaves_shells_to_the_half_sets(
    last_shell: int, exhaustive: int, reach: int
) -> None:
    group = symmetry_rotations("O").float()
    refinement = RefinementSettings((7, 8), 0, 4, 1, exhaustive, 0, 1, 2.0, 0.42, group, 80.0)
    initial_model = InitialModelSettings(2, 4, 3, 7, 1, 2.0, 0.42)
    settings = AbInitioSettings(1, 1, initial_model, refinement, "o", 5.0, 0)
    symmetric = settings.with_symmetric_start(last_shell)
    assert (settings.starts_symmetric, symmetric.starts_symmetric) == (False, True)
    assert symmetric.initial_model.last_shell == reach
    assert symmetric.min_starts == 1, "whoever skips the check of reproducibility skips it here too"
    checked = replace(settings, min_starts=2, max_starts=2).with_symmetric_start(last_shell)
    assert checked.max_starts >= checked.min_starts > 2
    assert set(symmetric.refinement.consensus_shells) <= {reach, max(reach, 8)}


@pytest.mark.parametrize("name", ["C1", "C4", "D2", "T", "O", "I2"])
def test_polyhedral_groups_are_told_by_name(name: str) -> None:
    refinement = RefinementSettings((7,), 0, 4, 1, 7, 0, 1, 2.0, 0.42, symmetry_rotations(name).float(), 80.0)
    settings = AbInitioSettings(1, 1, InitialModelSettings(2, 4, 3, 7, 1, 2.0, 0.42), refinement, name, 5.0, 0)
    assert settings.is_polyhedral == (name in {"T", "O", "I2"})


def test_a_map_is_not_preferred_for_the_noise_that_it_leaves(
    monkeypatch: pytest.MonkeyPatch, make_known: Make, observe: Make
) -> None:
    """A map too strong in its first shells leaves less noise there: its likelihood at that noise is higher."""
    known = make_known(60, sigma=2.0)
    particles, half_set, truth = observe(known.dataset), torch.arange(60) % 2 + 1, known.volume.values
    refinement = RefinementSettings((5, 5), 0, 40, 1, 7, 0, 1, 2.0, 0.42, torch.eye(3)[None], 80.0)
    initial_model = InitialModelSettings(2, 4, 3, 5, 1, 2.0, 0.42)
    settings = AbInitioSettings(2, 2, initial_model, refinement, "C1", 5.0, 0)
    too_strong = truth + 0.15 * low_pass(truth, 3)
    own: list[float] = []
    states: list[RefinementState] = []
    for volume in (truth, too_strong):
        begun = begin_refinement(InitialModel(truth[None], torch.zeros(60, 2), 0.0), particles, half_set, refinement, 5)
        state = replace(begun, reference=ConsensusMap(volume))
        after = result_of(refine_consensus(state, particles, replace(refinement, consensus_shells=(5,)), seed=0))
        own.append(float(after.particles.log_evidence[after.particles.log_evidence != 0].mean()))
        states.append(replace(state, particles=after.particles))
    assert own[1] > own[0]
    scores = [log_likelihood_at_one_noise(state, particles, settings) for state in states]
    assert scores[0] > scores[1]
    unknown = replace(states[0], particles=replace(states[0].particles, log_evidence=torch.zeros(60)))
    assert log_likelihood_at_one_noise(unknown, particles, settings) == scores[0], "of no other noise"

    def start(*given: object) -> Step:
        yield from ()
        return states[1 - int(str(given[3]))]

    monkeypatch.setattr("cryoeq.reconstruction.multi_start._start", start)
    assert result_of(run_multi_start(particles, half_set, settings)).reference is states[0].reference


@pytest.mark.parametrize(
    ("values", "made"),
    [
        ([12.6, 8.8, 8.9, 9.0, 12.5], 5),  # the best stands out, and the first further start reproduces it
        ([12.6, 8.8, 8.9, 9.0, 8.7, 8.8, 8.9, 9.0], 8),  # never reproduced: twice as many, and no more
        ([1.13, 1.13, 1.11, 1.09], 4),  # noise
        ([12.6, 12.4, 8.9, 9.0], 4),  # two that are good and differ: more starts do not settle it
    ],
)
def test_more_starts_are_made_where_the_best_stands_out(
    monkeypatch: pytest.MonkeyPatch, make_known: Make, observe: Make, values: list[float], made: int
) -> None:
    particles, half_set = observe(make_known(20, sigma=2.0).dataset), torch.arange(20) % 2 + 1
    refinement = RefinementSettings((5, 5), 0, 40, 1, 7, 0, 1, 2.0, 0.42, torch.eye(3)[None], 80.0)
    settings = AbInitioSettings(2, 4, InitialModelSettings(2, 4, 3, 5, 1, 2.0, 0.42), refinement, "C1", 5.0, 0)
    begun = begin_refinement(
        InitialModel(torch.zeros(1, 16, 16, 16), torch.zeros(20, 2), 0.0), particles, half_set, refinement, 5
    )
    numbers: list[int] = []

    def start(*given: object) -> Step:
        numbers.append(int(str(given[3])))
        yield from ()
        return begun

    left = iter(values)

    def agreement(*_: object) -> float:
        return 0.98 if len(numbers) == 5 and values[4] > 12 else 0.6

    monkeypatch.setattr("cryoeq.reconstruction.multi_start._start", start)
    monkeypatch.setattr("cryoeq.reconstruction.multi_start.log_likelihood_at_one_noise", lambda *_: next(left))
    monkeypatch.setattr("cryoeq.reconstruction.multi_start._agreement", agreement)
    if len(values) == 5:
        result_of(run_multi_start(particles, half_set, settings))
    else:
        with pytest.raises(DivergedError, match=f"{made} random starts"):
            result_of(run_multi_start(particles, half_set, settings))
    assert len(numbers) == made
    of_others = {*range(4, 4 * (2 * MAX_RESTARTS + 1))}  # of restarts, with and without symmetry, and of verification
    assert not of_others & {*numbers}
    assert len({*numbers}) == made
