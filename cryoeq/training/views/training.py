"""Training of a view encoder's head, on synthetic projections and on particles with the search's own posterior.

The target of a projection is its true view, smoothed by about half the spacing of the fine views; that of a particle is
the posterior of all fine views at the offset that the search found, up to the last shell: what the head is to tell from
the coarse shell alone. The filters are slices of the map and stay so. Pooled log-likelihoods are computed once for each
image, and the head is then trained in seconds.

Training on synthetic projections: Yao et al. 2023, ACE-EM (arXiv 2302.06091).
"""

import math
from collections.abc import Generator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.events import Event, Progress
from cryoeq.domain.pose import PoseSet
from cryoeq.errors import DivergedError
from cryoeq.models.view_head import ViewHead, smoothed_views, view_spacing_rad
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.view_likelihood import ViewLikelihood
from cryoeq.runtime.random_streams import Stream, stream_generator
from cryoeq.training.views.encoder import ViewEncoder
from cryoeq.training.views.projections import simulate_particles

STAGE = "view encoder"
_AT_A_TIME = 250  # projections
_FEW = 16  # particles
_SMOOTHING = 0.5  # width of a target, in spacings of the fine views
_DOUBT = 0.05  # of a particle's posterior: the map may be wrong where the search is sure
_REAL_SHARE = 0.5  # of a batch at most
_BETAS = (0.9, 0.99)
_TEMPERATURES = tuple(2.0 ** (0.5 * each) for each in range(-2, 13))  # 0.5 to 64


@dataclass(frozen=True)
class ViewTrainingSettings:
    """How long the head is trained, and on how much.

    Args:
        projections: number of synthetic projections.
        steps: optimizer steps.
        batch_size: images per step.
        learning_rate: the first, for log-likelihoods of a standard deviation of 1; it falls to 0 as a cosine.
    """

    projections: int = 12_000
    steps: int = 700
    batch_size: int = 256
    learning_rate: float = 1.5e-2


@dataclass(frozen=True)
class ViewExamples:
    """Images as the head sees them, with its targets.

    Args:
        pooled: log-likelihoods of the coarse views.
        targets: probabilities of the fine views.
    """

    pooled: Float[Tensor, "images coarse"]
    targets: Float[Tensor, "images fine"]

    def __len__(self) -> int:
        return len(self.pooled)


def train_views(
    encoder: ViewEncoder,
    particles: ParticleTransforms,
    searched: tuple[ParticleTransforms, PoseSet] | None,
    settings: ViewTrainingSettings,
    *,
    seed: int,
    number: int,
) -> Generator[Event, None, None]:
    """Train the head in place.

    Args:
        encoder: with the map that the projections are of.
        particles: particles of the same half set, whose CTFs the projections get.
        searched: particles of that half set and the poses that a search found against that map; None without.
        settings: length of the training.
        seed: random seed of the run.
        number: number of the encoder in the run; each has random numbers of its own.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    generator = stream_generator(seed, Stream.SYNTHETIC_PROJECTIONS, number)
    count = settings.projections
    total = count + settings.steps
    parts = []
    for first in range(0, count, _AT_A_TIME):
        parts.append(_projected(encoder, particles, min(_AT_A_TIME, count - first), generator))
        yield Progress(STAGE, min(first + _AT_A_TIME, count), total)
    projected = ViewExamples(torch.cat([p.pooled for p in parts]), torch.cat([p.targets for p in parts]))
    real = None if searched is None or not len(searched[0]) else searched_examples(encoder, *searched)
    _start_calibrated(encoder.head, projected)
    optimizer = torch.optim.Adam(encoder.head.parameters(), betas=_BETAS)
    rate = settings.learning_rate / _deviation(projected)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        batch = _batch(projected, real, settings.batch_size, generator)
        loss = _loss(encoder.head(batch.pooled), batch.targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step + 1 == settings.steps or (step + 1) % 100 == 0:
            yield Progress(STAGE, count + step + 1, total, {"view_loss": _finite(loss, step + 1)})


def searched_examples(encoder: ViewEncoder, particles: ParticleTransforms, poses: PoseSet) -> ViewExamples:
    """Particles with the posterior over views that a search has of them.

    Args:
        encoder: with the map that the poses were found against.
        particles: the particles.
        poses: of the search; the offsets count.
    """
    fine, box = encoder.fine, encoder.box_size_px
    likelihood = ViewLikelihood.build(
        encoder.reference, fine.views, fine.harmonics, shift_sigma_px=0.0, offset_step_px=1.0
    )
    subset, offsets = particles.within(fine.harmonics.plane.last_radius, box), poses.in_box(box).shifts_px
    rows = torch.arange(len(particles), device=particles.device).split(_FEW)
    found = [likelihood.at_offsets(subset.rows(some), offsets[some, None])[..., 0].softmax(1) for some in rows]
    targets = torch.cat(found) @ _smoothed(encoder, encoder.directions)
    targets = (1 - _DOUBT) * targets + _DOUBT / targets.shape[1]
    return ViewExamples(_pooled(encoder, particles), targets)


def _projected(
    encoder: ViewEncoder, particles: ParticleTransforms, count: int, generator: torch.Generator
) -> ViewExamples:
    """Synthetic projections with their true views."""
    box, radius = encoder.box_size_px, encoder.coarse.likelihood.harmonics.plane.last_radius
    images, poses = simulate_particles(
        particles.within(radius, box), encoder.reference, count, encoder.settings.shift_sigma * box, generator
    )
    return ViewExamples(_pooled(encoder, images), _smoothed(encoder, poses.rotations[:, 2]))


def _pooled(encoder: ViewEncoder, particles: ParticleTransforms) -> Float[Tensor, "images coarse"]:
    return encoder.posterior(particles).pooled.logsumexp(2)


def _smoothed(encoder: ViewEncoder, directions: Float[Tensor, "images 3"]) -> Float[Tensor, "images fine"]:
    symmetry = encoder.settings.symmetry.to(directions)
    width = _SMOOTHING * view_spacing_rad(len(encoder.directions) * len(symmetry))
    return smoothed_views(directions, encoder.directions, symmetry, width)


@torch.no_grad()
def _start_calibrated(head: ViewHead, examples: ViewExamples) -> None:
    """Divide the logits by the temperature of the least loss: interpolated log-likelihoods are too sure."""
    logits = head(examples.pooled)
    losses = [_loss(logits / each, examples.targets) for each in _TEMPERATURES]
    temperature = _TEMPERATURES[int(torch.stack(losses).argmin())]
    for values in head.parameters():
        values.div_(temperature)


def _deviation(examples: ViewExamples) -> float:
    return max(float(examples.pooled.std(1).mean()), 1e-6)


def _loss(logits: Float[Tensor, "images fine"], targets: Float[Tensor, "images fine"]) -> Float[Tensor, ""]:
    return -(targets * logits.log_softmax(1)).sum(1).mean()


def _batch(projected: ViewExamples, real: ViewExamples | None, size: int, generator: torch.Generator) -> ViewExamples:
    """Random images of both kinds: particles as often as each projection, and at most half of the batch."""
    share = 0.0 if real is None else min(_REAL_SHARE, len(real) / (len(real) + len(projected)))
    n_real = round(share * size)
    chosen = torch.randint(len(projected), (size - n_real,), generator=generator).to(projected.pooled.device)
    batch = ViewExamples(projected.pooled[chosen], projected.targets[chosen])
    if real is None or n_real == 0:
        return batch
    rows = torch.randint(len(real), (n_real,), generator=generator).to(chosen.device)
    return ViewExamples(torch.cat([batch.pooled, real.pooled[rows]]), torch.cat([batch.targets, real.targets[rows]]))


def _finite(loss: Float[Tensor, ""], step: int) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise DivergedError(
            f"step {step} of the view encoder's training: the loss is {value}",
            "a finite loss is needed to continue",
            "Try another --seed",
        )
    return value
