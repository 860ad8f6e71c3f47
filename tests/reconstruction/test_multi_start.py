"""The box and the settings of the consensus refinement."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.reconstruction.initial_model import InitialModelSettings
from cryoeq.reconstruction.multi_start import at_low_resolution
from cryoeq.reconstruction.settings import AbInitioSettings
from cryoeq.reconstruction.state import RefinementSettings

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
