"""The plan of a run names its stages, in the order in which they happen."""

from pathlib import Path
from typing import Any

import pytest

from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.domain.events import Plan, Progress
from cryoeq.pipelines.reconstruct.reconstruct import reconstruct

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")

SEARCH: dict[str, Any] = {
    "multi_start": {"min": 1},
    "initial_model": {"iterations": 30, "batch_size": 40, "last_shell": 5},
    "consensus": {"shells": [4, 4, 5], "max_extra_iterations": 2},
    "offset_samples": 3,
}
NETWORK = {"posterior": "network", "training_steps": 4, "batch_size": 16, "held_out": 0.2, "max_shell": 6}
ENCODER = {"heads": 2, "channels": [32]}
MODES: dict[str, dict[str, Any]] = {
    "search, then locally": {
        "search": {
            **SEARCH,
            "half_sets": {"iterations": 1, "max_exhaustive_shell": 6},
            "local_refinement": {"iterations": 2},
        }
    },
    "hybrid": {
        "search": {**SEARCH, "half_sets": {"iterations": 1, "max_exhaustive_shell": 6}},
        "hybrid": {"projections": 100, "held_out": 0.2},
    },
    "hybrid, by a network": {
        "search": {**SEARCH, "half_sets": {"iterations": 1, "max_exhaustive_shell": 6}},
        "hybrid": NETWORK,
        "encoder": {"channels": [32]},
    },
    "amortized": {"training": {"epochs": 1, "batch_size": 16}, "encoder": ENCODER},
}


@pytest.mark.parametrize("mode", MODES)
def test_every_stage_is_in_the_plan(mode: str, tiny_particles: Path, tmp_path: Path) -> None:
    explicit = {
        "particles": tiny_particles / "particles.star",
        "output": tmp_path / "run",
        "device": "cpu",
        "pose_inference": mode.split(",", maxsplit=1)[0],
        **MODES[mode],
    }
    stages, plans = [], []
    for event in reconstruct(load_config(ReconstructConfig, explicit=explicit)):
        if isinstance(event, Plan):
            assert not stages
            plans.append(event)
        elif isinstance(event, Progress) and (not stages or stages[-1] != event.stage):
            stages.append(event.stage)
    (plan,) = plans
    assert stages == list(plan.stages)
