"""The start of a training on particles of known pose."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cryoeq.config.loading import load_config
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.pipelines.reconstruct.build_autoencoder import build_plane, build_settings, build_state
from cryoeq.training.autoencoder.loop import TrainingSettings
from cryoeq.training.autoencoder.state import TrainingState


@dataclass(frozen=True)
class Start:
    """Arguments of ``fit``."""

    state: TrainingState
    dataset: ParticleDataset
    plane: HalfPlane
    settings: TrainingSettings


@pytest.fixture(scope="session")
def start() -> Callable[..., Start]:
    """The start of a training with a small network; settings as of the command line, keys dotted."""

    def build(
        dataset: ParticleDataset, settings: dict[str, object] | None = None, device: torch.device | None = None
    ) -> Start:
        small = {
            "particles": Path("none.star"), "output": Path("none"), "encoder.group": "c1", "encoder.heads": 2,
            "training.epochs": 2, "training.batch_size": 16,
            "training.synthetic_batch_size": 16,
        }  # fmt: skip
        config = load_config(ReconstructConfig, explicit=small | (settings or {}))
        plane = build_plane(dataset, device or torch.device("cpu"))
        return Start(build_state(config, dataset, plane), dataset, plane, build_settings(config, dataset))

    return build
