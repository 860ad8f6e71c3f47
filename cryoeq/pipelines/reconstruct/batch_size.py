"""Batch size of the training, by the memory of the GPU where the settings leave it open."""

from collections.abc import Callable
from typing import Any

import torch

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.errors import ConfigError
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.pipelines.reconstruct.build_autoencoder import DEFAULT_BATCH, build_settings
from cryoeq.runtime.distributed import world_size
from cryoeq.training.autoencoder.loop import fits_in_memory
from cryoeq.training.autoencoder.state import TrainingState

_MAX_BATCH = 4096
_MARGIN = 0.75  # of the largest batch that fits: steps differ, and other programs may want memory


def choose_batch_size(
    config: ReconstructConfig,
    state: TrainingState,
    dataset: ParticleDataset,
    plane: HalfPlane,
    checkpoint: dict[str, Any] | None,
) -> int | None:
    """Images per step where the settings leave it open: that of the checkpoint, or the largest that fits; else None.

    Args:
        config: settings of the run.
        state: state before the training; not changed.
        dataset: particles at the working box.
        plane: coefficients of the encoder's input, on the device of the computation.
        checkpoint: state of a training to continue; None for a new one.

    Raises:
        ConfigError: several processes, of which one might have less memory.
    """
    if config.training.batch_size != "auto":
        return None
    if world_size() > 1:
        raise ConfigError(
            f"training.batch_size=auto on {world_size()} processes",
            "memory is probed by one process alone",
            "Give a number; the images of a step are shared by all processes",
        )
    if checkpoint is not None:
        return int(checkpoint["batch_size"])
    if plane.coords.device.type != "cuda":
        return DEFAULT_BATCH

    def fits(count: int) -> bool:
        try:
            return fits_in_memory(state, dataset, plane, build_settings(config, dataset, count))
        finally:
            torch.cuda.empty_cache()

    return find_batch_size(fits, min(DEFAULT_BATCH, len(dataset)), min(_MAX_BATCH, len(dataset)))


def find_batch_size(fits: Callable[[int], bool], smallest: int, largest: int) -> int:
    """The smallest batch, doubled as long as it fits, less a margin.

    Args:
        fits: whether memory suffices for a number of images.
        smallest: lower bound, returned even if it does not fit.
        largest: upper bound of the batch size.
    """
    count = smallest
    while fits(count):
        if 2 * count > largest:
            return count
        count *= 2
    return max(smallest, int(_MARGIN * count / 2))
