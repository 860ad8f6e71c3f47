"""Training of a view network on synthetic projections of a map.

Each projection is used at the offset nearest to its shift, and at another: the network learns the views of particles
that an offset centres, and low probabilities where it does not.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.events import Event, Progress
from cryoeq.equivariance import equivariance_penalty
from cryoeq.errors import DivergedError
from cryoeq.models.pose_encoder import EncoderDesign, TrunkKind
from cryoeq.models.view_head import smoothed_views, view_spacing_rad
from cryoeq.models.view_network import ViewNetwork
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.runtime.batching import logging_interval
from cryoeq.training.views.encoder import ViewEncoder
from cryoeq.training.views.network_input import NetworkInput, network_box_px
from cryoeq.training.views.network_projections import Projections, ProjectionSource
from cryoeq.training.views.network_views import NetworkViews

STAGE = "view network"
_WARMUP_STEPS = 50  # in which the learning rate rises
_BETAS = (0.9, 0.99)
_SMOOTHING = 0.5  # width of a target, in spacings of the fine views
_TEMPLATE_CHANNELS = 1024  # of a trunk whose first filters are slices of the map


@dataclass(frozen=True)
class NetworkSettings:
    """A view network and its training.

    Args:
        group: group under which the logits are invariant.
        channels: widths, as ``FieldEncoder`` takes them; None for its default, or for as many slices of the map as a
            dense trunk begins with.
        trunk: "conv", "dense" or "mobilenet".
        design: kernels, samplers and degree of equivariance.
        is_bf16: whether the products of the trunk are in bf16.
        max_shell: resolution of the network's input, in cycles per box.
        steps: optimizer steps.
        batch_size: images per step; half as many projections where each is used at two offsets.
        learning_rate: highest learning rate; it falls to 0 as a cosine.
        initial_noise_scale: amplitude of the first projections' noise, relative to that of the particles.
    """

    group: str = "d4"
    channels: tuple[int, ...] | None = None
    trunk: TrunkKind = "dense"
    design: EncoderDesign = field(default_factory=EncoderDesign)
    is_bf16: bool = False
    max_shell: int = 10
    steps: int = 700
    batch_size: int = 256
    learning_rate: float = 1e-2
    initial_noise_scale: float = 0.2


def train_network(
    encoder: ViewEncoder,
    particles: ParticleTransforms,
    settings: NetworkSettings,
    *,
    seed: int,
    number: int,
) -> Generator[Event, None, NetworkViews]:
    """Build and train the network of an encoder's views, on new projections in each step.

    There is an event after each step on a CPU. A GPU is waited for only at an event, where metrics are read.

    Args:
        encoder: with the map that the projections are of.
        particles: particles of the same half set, whose CTFs and noise the projections get.
        settings: of network and training.
        seed: random seed of the run.
        number: number of the encoder in the run.

    Raises:
        DivergedError: the loss is no longer finite.
        ValueError: the network's widths do not fit its box.
    """
    views = untrained_network(encoder, particles, settings, seed=seed, number=number)
    network, symmetry = views.network, encoder.settings.symmetry.to(particles.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, betas=_BETAS)
    log_every, pending = logging_interval(particles.device), list[Tensor]()
    network.train()
    batches = views.source.training_projections(views.network_input, settings.initial_noise_scale)
    for step, (projections, offsets) in enumerate(batches):
        rate = min(1.0, (step + 1) / _WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate
        loss = view_loss(views, projections, offsets, symmetry)
        loss = loss + equivariance_penalty(network).to(loss)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        pending.append(loss.detach())
        if len(pending) == log_every or step + 1 == settings.steps:
            yield Progress(STAGE, step + 1, settings.steps, {"loss": _finite(pending, step + 1)})
    network.eval()
    return views


def untrained_network(
    encoder: ViewEncoder, particles: ParticleTransforms, settings: NetworkSettings, *, seed: int, number: int
) -> NetworkViews:
    """A network whose first filters are slices of the map where its trunk is dense.

    Args:
        encoder: with the map and the lattice of offsets.
        particles: particles of the half set.
        settings: of network and training.
        seed: random seed of the run.
        number: number of the encoder in the run.
    """
    volume, box = encoder.reference.volume, encoder.box_size_px
    small = particles.within(encoder.last_shell, box)
    radius = min(settings.max_shell, encoder.last_shell)
    given = NetworkInput.from_map(small, volume, radius, encoder.coarse.offsets_px, encoder.coarse.log_prior)
    source = ProjectionSource.from_map(
        small, volume, radius, encoder.settings.shift_sigma * box,
        seed=seed, number=number, steps=settings.steps,
        batch_size=max(1, settings.batch_size // given.offsets_per_projection),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(seed + number)
        network = build_network(settings, radius, encoder.directions.cpu())
    if network.n_template_filters:
        network.to(particles.device)
        network.init_filters_from(source.clean_images(given, network.n_template_filters))
    return NetworkViews(network.to(particles.device), given, source)


def build_network(settings: NetworkSettings, radius: int, directions: Float[Tensor, "views 3"]) -> ViewNetwork:
    """A network with random weights of torch's global generator.

    Args:
        settings: of the network.
        radius: resolution of its input, in cycles per box.
        directions: of the views.

    Raises:
        ValueError: its widths do not fit the box.
    """
    is_dense = settings.trunk == "dense"
    return ViewNetwork(
        settings.group,
        network_box_px(radius),
        directions,
        settings.channels or ((_TEMPLATE_CHANNELS,) if is_dense else None),
        trunk=settings.trunk,
        low_passes=not is_dense,
        design=settings.design,
        is_bf16=settings.is_bf16,
    )


def view_loss(
    views: NetworkViews,
    projections: Projections,
    offsets: Int[Tensor, "batch offsets"],
    symmetry: Float[Tensor, "order 3 3"],
) -> Float[Tensor, ""]:
    """Cross-entropy to the smoothed true view, at the first of the offsets, among all views at all of them.

    Args:
        views: the network.
        projections: images of known view.
        offsets: at which each is used; the first is the nearest to its shift.
        symmetry: rotations of the map's point group.
    """
    count, features = offsets.shape[1], projections.ctf_features
    images = views.network_input.shifted_images(projections.ctf_multiplied, offsets)
    logits: Tensor = views.network(images, None if features is None else features.repeat_interleave(count, 0))
    log_posterior = logits.unflatten(0, (-1, count)).flatten(1).log_softmax(1)[:, : logits.shape[1]]
    directions = views.network.directions
    width = _SMOOTHING * view_spacing_rad(len(directions) * len(symmetry))
    targets = smoothed_views(projections.directions, directions, symmetry, width)
    return -(targets * log_posterior).sum(1).mean()


def _finite(pending: list[Tensor], done: int) -> float:
    """Wait for the device; the loss of the last step."""
    losses = torch.stack(pending).tolist()
    pending.clear()
    for step, loss in enumerate(losses, done - len(losses)):
        if not math.isfinite(loss):
            raise DivergedError(
                f"step {step} of the view network's training: the loss is {loss}",
                "a finite loss is needed to continue",
                "Lower hybrid.learning_rate with --set, or try another --seed",
            )
    return float(losses[-1])
