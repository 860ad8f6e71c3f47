"""How many images a step of the training takes, where that is left to the memory of the GPU."""

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

_MOST = 4096
_KEPT = 0.75  # of what has just fitted: steps differ, and other programs may want some


def choose_batch_size(
    config: ReconstructConfig,
    state: TrainingState,
    dataset: ParticleDataset,
    plane: HalfPlane,
    checkpoint: dict[str, Any] | None,
) -> int | None:
    """Images per step: what was chosen when the run began, or as many as fit; None where the settings say it.

    Args:
        config: the settings.
        state: at the start; it is left as it is.
        dataset: the particles.
        plane: of their coefficients, on the device of the computation.
        checkpoint: to go on from.

    Raises:
        ConfigError: several processes, of which one might have less memory.
    """
    if config.training.batch_size != "auto":
        return None
    if world_size() > 1:
        raise ConfigError(
            f"training.batch_size=auto on {world_size()} processes",
            "memory is probed by one process alone",
            "Give a number; it is shared out among all",
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

    return find_batch_size(fits, min(DEFAULT_BATCH, len(dataset)), min(_MOST, len(dataset)))


def find_batch_size(fits: Callable[[int], bool], first: int, most: int) -> int:
    """The first number, doubled as long as it fits; then less, so that it fits surely.

    Args:
        fits: whether memory suffices for so many.
        first: it is taken in any case.
        most: that make sense.
    """
    found = first
    while fits(found):
        if 2 * found > most:
            return found
        found *= 2
    return max(first, int(_KEPT * found / 2))
