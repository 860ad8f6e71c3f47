"""Particles that a run with an encoder holds out: no search sees them before the final iteration."""

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.half_sets import with_adjacent_copies
from cryoeq.data.repeated_images import find_repeated_images
from cryoeq.domain.pose import PoseSet
from cryoeq.reconstruction.state import ParticlePoses, RefinementState
from cryoeq.runtime.random_streams import Stream, stream_generator


def hold_out(
    config: ReconstructConfig, dataset: ParticleDataset, device: torch.device
) -> tuple[Int[Tensor, " held"], Int[Tensor, " searched"]]:
    """Rows of the particles that are held out, and of all others; copies of an image are together.

    Args:
        config: settings of the run.
        dataset: the particles, each of which was read.
        device: of the rows.
    """
    shuffled = torch.randperm(len(dataset), generator=stream_generator(config.seed, Stream.HELD_OUT))
    order = with_adjacent_copies(shuffled, find_repeated_images(dataset.images).image).to(device)
    count = round(config.hybrid.held_out * len(order))
    return order[:count], order[count:]


def with_held_out(
    searched_state: RefinementState, searched: Int[Tensor, " searched"], half_set: Int[Tensor, " particles"]
) -> RefinementState:
    """The state of the searched particles as that of all; nothing is known of the others.

    Args:
        searched_state: of the searched particles.
        searched: their rows.
        half_set: half set of all particles.
    """
    n = searched_state.reference.mean.shape[-1]
    unknown = ParticlePoses.unknown(PoseSet.identity(len(half_set), n, half_set.device))
    particles = unknown.with_rows(searched, searched_state.particles)
    return replace(searched_state, half_set=half_set, particles=particles)
