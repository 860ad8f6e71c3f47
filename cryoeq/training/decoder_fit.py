"""A decoder fitted to particles of known pose: the map of a network, beside the closed-form reconstruction."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.events import Progress
from cryoeq.domain.randomness import Stream, sent, stream_generator
from cryoeq.models.decoder import ImplicitDecoder
from cryoeq.models.voxel_decoder import VoxelDecoder
from cryoeq.training.observed_images import ObservedImages
from cryoeq.training.parallel import steps_per_reading

_WARMING = 50  # steps in which the learning rate rises


@dataclass(frozen=True)
class DecoderFitSettings:
    """How to fit.

    Args:
        steps: of the optimizer.
        batch_size: images per step.
        rate: highest learning rate; it falls to 0 as a cosine.
    """

    steps: int
    batch_size: int
    rate: float


def fit_decoder(
    decoder: VoxelDecoder | ImplicitDecoder,
    images: ObservedImages,
    poses: tuple[Float[Tensor, "particles 3 3"], Float[Tensor, "particles 2"]],
    precision: Float[Tensor, " points"],
    settings: DecoderFitSettings,
    *,
    seed: int,
) -> Iterator[Progress]:
    """Fit a decoder by its log-likelihood at fixed poses.

    There is an event after each step on a CPU. A GPU is waited for only at an event, where figures are read.

    Args:
        decoder: changed in place.
        images: the particles.
        poses: rotations, and shifts in pixels of the images' box.
        precision: inverse noise variance of each coefficient.
        settings: how.
        seed: of the run.
    """
    rotations, shifts_px = poses
    weights = precision * images.plane.weights
    generator = stream_generator(seed, Stream.DECODER_FIT)
    every = steps_per_reading(rotations.device)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=settings.rate)
    for step in range(settings.steps):
        warmth = min(1.0, (step + 1) / _WARMING)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * warmth * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        rows = sent(torch.randint(len(images), (settings.batch_size,), generator=generator), rotations.device)
        some = images.rows(rows)
        slices = decoder(rotations[rows], images.plane)
        overlap = (some.centred(shifts_px[rows]) * slices.conj()).real
        log_likelihood = ((overlap - 0.5 * some.power * slices.abs().square()) @ weights).mean()
        optimizer.zero_grad(set_to_none=True)
        (-log_likelihood).backward()
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == settings.steps:
            figures = {"log likelihood": float(log_likelihood.detach())}
            yield Progress("fitting the decoder", step + 1, settings.steps, figures)
