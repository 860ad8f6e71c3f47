"""A training whose batches are shared out is the training of one process: in float64, to rounding.

In float32 Adam makes much of little: where a gradient is all but 0 its sign is rounding, its step is not.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.preprocessing import Preprocessing
from cryoeq.domain.events import result_of
from cryoeq.domain.optics import Optics
from cryoeq.domain.particles import ParticleTable
from cryoeq.io.images import LazyImages
from cryoeq.pipelines.reconstruct.build_autoencoder import build_plane, build_settings, build_state
from cryoeq.simulation.particles import DefocusRange, draw_ctf
from cryoeq.training.autoencoder.loop import fit
from cryoeq.training.autoencoder.pose_assignment import infer_poses

COUNT, BOX, BATCH = 41, 16, 12  # the last batch of an epoch has 5 images, the shares of 4 processes 2, 1, 1 and 1


class Watched(ParticleDataset):
    """Notes the rows that are read."""

    read: list[torch.Tensor]

    def batch(self, rows: torch.Tensor) -> Any:
        self.read.append(rows)
        return super().batch(rows)


def dataset(dtype: torch.dtype) -> Watched:
    """Images of noise with CTFs."""
    generator, rows = torch.Generator().manual_seed(3), torch.arange(COUNT)
    zeros, optics = torch.zeros_like(rows), Optics("one", 5.0, 300.0, 2.7, 0.1)
    ctf = draw_ctf(COUNT, optics, DefocusRange(9000.0, 20000.0, 900.0), generator)
    ctf = type(ctf)(**{
        name: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in vars(ctf).items()
    })  # fmt: skip
    table = ParticleTable((), zeros, rows, BOX, 5.0, (optics,), zeros, ctf)
    images = torch.randn(COUNT, BOX, BOX, generator=generator).to(dtype)
    made = Watched(table, BOX, 5.0, (), LazyImages((), zeros, rows), Preprocessing(BOX, 1.0, 1), images)
    object.__setattr__(made, "read", [])
    return made


def train(group: str, trunk: str, extra: dict[str, object]) -> dict[str, Any]:
    """Two epochs, then the poses; run by each process."""
    chosen = {
        "particles": Path("none"), "output": Path("none"), "encoder.group": group, "encoder.design.trunk": trunk,
        "encoder.heads": 2, "training.epochs": 2, "training.batch_size": BATCH, "training.synthetic_batch_size": 10,
        "training.image_loss_start": 0.0,
    }  # fmt: skip
    config = load_config(ReconstructConfig, explicit=chosen | extra)
    particles = dataset(torch.float32)
    plane = build_plane(particles, torch.device("cpu"))
    state = build_state(config, particles, plane)
    settings = build_settings(config, particles)
    particles, plane = dataset(torch.float64), replace(plane, weights=plane.weights.double())
    torch.set_default_dtype(torch.float64)
    state.encoder.double(), state.decoder.double()
    state.residual_power, state.rotations = state.residual_power.double(), state.rotations.double()
    metrics = [dict(event.metrics) for event in fit(state, particles, plane, settings)]
    read = [rows.clone() for rows in particles.read]
    found = result_of(infer_poses(state, particles, plane, batch_size=5, is_symmetric=False, centred=False))
    learnt = [*state.encoder.state_dict().values(), *state.decoder.state_dict().values(), state.residual_power]
    return {
        "metrics": metrics,
        "read": read,
        "learnt": torch.cat([values.double().flatten() for values in learnt]),
        "history": torch.tensor(list(state.history.values())),
        "remembered": state.rotations,
        "poses": found.poses.rotations,
        "shifts": found.poses.shifts_angstrom,
        "confidence": found.confidence,
        "explained": found.explained,
    }


CASES = [
    ("d4", "dense", {}),
    ("so2", "conv", {"training.augment": True, "loss.symmetric": True, "decoder.kind": "implicit"}),
]


@pytest.mark.parametrize(
    ("group", "trunk", "extra", "count"),
    [
        pytest.param(
            *case, count, id=f"{case[0]}-{count}", marks=[pytest.mark.slow] if (case[0], count) != ("d4", 2) else []
        )
        for case in CASES
        for count in (2, 4)
    ],
)
def test_several_processes_train_what_one_trains(
    together: Callable[..., list[Any]], group: str, trunk: str, extra: dict[str, object], count: int
) -> None:
    (alone,) = together(1, __file__, "train", group, trunk, extra)
    shared = together(count, __file__, "train", group, trunk, extra)
    for one in shared:
        for ours, theirs in zip(one["metrics"], alone["metrics"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-8, nan_ok=True)
        for name in ("learnt", "history", "remembered", "poses", "shifts", "confidence"):
            torch.testing.assert_close(one[name], alone[name], rtol=1e-7, atol=1e-8, equal_nan=True)
        assert one["explained"] == pytest.approx(alone["explained"], rel=1e-9)
    steps = len(alone["read"])
    assert steps == 2 * 4
    for step in range(steps):
        whole = alone["read"][step]
        parts = [one["read"][step] for one in shared]
        assert torch.cat(parts).tolist() == whole.tolist()  # in the same order, each particle once
    for epoch in (alone["read"][:4], alone["read"][4:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(COUNT))
