"""The two tasks of a training step: reproduce the images, and pose renderings of the current map."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.particles import ParticleBatch
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import random_rotations, rotation_angle_rad
from cryoeq.models.implicit_decoder import VolumeDecoder
from cryoeq.models.pose_head import PoseProposals
from cryoeq.physics.ctf import ctf_features, image_transfer
from cryoeq.physics.image_formation import apply_optics
from cryoeq.runtime.batching import MicroBatcher
from cryoeq.runtime.distributed import BatchShard
from cryoeq.training.autoencoder.state import TrainingState
from cryoeq.training.losses import (
    add_half_turn_hypotheses,
    data_term,
    head_classification_loss,
    pose_cost,
    winner_takes_all,
)

_CHOICE_WEIGHT = 0.1


@dataclass(frozen=True)
class FourierBatch:
    """A batch of images in Fourier space.

    Args:
        indices: rows of the particles; of renderings, places in the batch of those that lent their CTF.
        coefficients: scaled to unit variance.
        transfer: CTF per coefficient, None without.
        share: the part of a batch that they are.
        condition: what a conditioned encoder is told of each CTF, None without.
    """

    indices: Int[Tensor, " batch"]
    coefficients: Complex[Tensor, "batch points"]
    transfer: Float[Tensor, "batch points"] | None
    share: BatchShard
    condition: Float[Tensor, "batch 3"] | None = None

    def rows(self, rows: slice) -> "FourierBatch":
        """Some of them."""
        transfer = None if self.transfer is None else self.transfer[rows]
        condition = None if self.condition is None else self.condition[rows]
        return FourierBatch(self.indices[rows], self.coefficients[rows], transfer, self.share, condition)

    def transfer_within(self, plane: HalfPlane) -> Float[Tensor, "batch part"] | None:
        """The CTF of the leading coefficients."""
        return None if self.transfer is None else self.transfer[:, : len(plane)]


@dataclass(frozen=True)
class StepResult:
    """What a batch of images taught.

    Args:
        loss: to differentiate.
        error: mean squared residual of the best hypotheses.
        rotations: those of the best hypotheses.
        residual_power: |observed - predicted|^2 of each coefficient, averaged over the batch.
    """

    loss: Float[Tensor, ""]
    error: Float[Tensor, ""]
    rotations: Float[Tensor, "batch 3 3"]
    residual_power: Float[Tensor, " points"]

    def scaled(self, weight: float) -> "StepResult":
        """As a share of what more images taught; nothing is left to differentiate."""
        loss = self.loss.detach() * weight
        return StepResult(loss, self.error * weight, self.rotations, self.residual_power * weight)

    def joined(self, other: "StepResult") -> "StepResult":
        """Of these images and of others, both scaled."""
        return StepResult(
            self.loss + other.loss,
            self.error + other.error,
            torch.cat([self.rotations, other.rotations]),
            self.residual_power + other.residual_power,
        )


def observe(
    dataset: ParticleDataset,
    rows: Int[Tensor, " rows"],
    plane: HalfPlane,
    scale: float,
    share: BatchShard | None = None,
) -> FourierBatch:
    """Read some particles and transform them, on the plane's device.

    Args:
        dataset: the particles.
        rows: of the batch.
        plane: which coefficients.
        scale: factor on the images.
        share: the part of the batch that is wanted; None for all of it.
    """
    share = share or BatchShard(slice(None), len(rows), 1.0)
    batch = dataset.batch(rows[share.places]).to(plane.coords.device)
    return transform(batch, plane, dataset.pixel_size_angstrom, scale, share)


def transform(
    batch: ParticleBatch, plane: HalfPlane, pixel_size_angstrom: float, scale: float, share: BatchShard
) -> FourierBatch:
    """Particles that were read already.

    Args:
        batch: on the plane's device.
        plane: which coefficients.
        pixel_size_angstrom: of the images.
        scale: factor on the images.
        share: the part of a batch that they are.
    """
    coefficients = plane.transform(batch.images) * scale
    if batch.ctf is None:
        return FourierBatch(batch.indices, coefficients, None, share)
    transfer = image_transfer(batch.ctf, plane.frequencies_per_angstrom(pixel_size_angstrom))
    return FourierBatch(batch.indices, coefficients, transfer, share, ctf_features(batch.ctf))


def propose(
    encoder: torch.nn.Module,
    coefficients: Complex[Tensor, "batch points"],
    plane: HalfPlane,
    condition: Float[Tensor, "batch 3"] | None = None,
    *,
    is_symmetric: bool = False,
    centred: bool = False,
) -> PoseProposals:
    """The encoder's hypotheses for images given by their coefficients.

    Args:
        encoder: the pose encoder.
        coefficients: of the images.
        plane: which.
        condition: of their CTFs.
        is_symmetric: propose for the half-turned images too.
        centred: particles are known to be centred: all shifts are 0.
    """
    images = plane.images(coefficients)
    proposals: PoseProposals = encoder(images, condition)
    if centred:
        proposals = replace(proposals, shifts_px=torch.zeros_like(proposals.shifts_px))
    if is_symmetric:
        turned = propose(encoder, coefficients.conj(), plane, condition, centred=centred)
        proposals = add_half_turn_hypotheses(proposals, turned)
    return proposals


def predict(
    decoder: VolumeDecoder,
    proposals: PoseProposals,
    transfer: Float[Tensor, "batch points"] | None,
    plane: HalfPlane,
) -> Complex[Tensor, "batch heads points"]:
    """What each hypothesis would look like."""
    shape = proposals.shifts_px.shape[:2]
    slices = decoder(proposals.rotations.flatten(0, 1), plane)
    repeated = None if transfer is None else transfer.repeat_interleave(shape[1], 0)
    return apply_optics(slices, proposals.shifts_px.flatten(0, 1), repeated, plane).unflatten(0, shape)


def select_head(proposals: PoseProposals, head: Int[Tensor, " batch"]) -> PoseProposals:
    """One hypothesis per image."""
    rows = torch.arange(len(head), device=head.device)
    return PoseProposals(
        *(part[rows, head][:, None] for part in (proposals.rotations, proposals.shifts_px, proposals.logits))
    )


def autoencoding_loss(
    state: TrainingState,
    seen: FourierBatch,
    plane: HalfPlane,
    active: HalfPlane,
    *,
    wta_epsilon: float,
    is_symmetric: bool,
    centred: bool,
    encoder_learns: bool,
    portions: MicroBatcher | None = None,
) -> StepResult:
    """Pose the images, and compare them with what the decoder makes of the best hypothesis.

    Norms of the encoder see all images at once; the comparison, which takes most of the memory, goes by portions.
    """
    with torch.set_grad_enabled(encoder_learns):
        proposals = propose(
            state.encoder, seen.coefficients, plane, seen.condition, is_symmetric=is_symmetric, centred=centred
        )
    every = (*state.decoder.parameters(), proposals.rotations, proposals.shifts_px)
    learnt = [values for values in every if values.requires_grad]

    def compare(part: range) -> tuple[StepResult, tuple[Tensor | None, ...]]:
        rows, weight = slice(part.start, part.stop), len(part) / len(proposals)
        outcome = _compare(
            state.decoder, proposals.rows(rows), seen.rows(rows), active, wta_epsilon if encoder_learns else None
        )
        gradients = torch.autograd.grad(outcome.loss * weight, learnt, allow_unused=True)
        return outcome.scaled(weight), gradients

    parts = list((portions or MicroBatcher()).results(compare, range(len(proposals))))
    outcome, *others = [part for part, _ in parts]
    for other in others:
        outcome = outcome.joined(other)
    return replace(outcome, loss=_with_gradients(outcome.loss, learnt, [gradients for _, gradients in parts]))


def _compare(
    decoder: VolumeDecoder, proposals: PoseProposals, seen: FourierBatch, active: HalfPlane, wta_epsilon: float | None
) -> StepResult:
    """Residual of images from the predictions of their hypotheses; without an epsilon only the best one has a loss."""
    observed, transfer = seen.coefficients[:, : len(active)], seen.transfer_within(active)
    with torch.set_grad_enabled(wta_epsilon is not None):
        predicted = predict(decoder, proposals, transfer, active)
        errors = data_term(predicted, observed, active.weights)
    head = errors.argmin(1)
    best = select_head(proposals, head)
    if wta_epsilon is not None:
        loss = winner_takes_all(errors, wta_epsilon)
        predicted = predicted[torch.arange(len(observed), device=observed.device), head][:, None]
    else:
        predicted = predict(decoder, best, transfer, active)
        loss = data_term(predicted, observed, active.weights).mean()
    residual = seen.coefficients.detach().clone()
    residual[:, : len(active)] -= predicted[:, 0].detach()
    power = (residual.real.square() + residual.imag.square()).mean(0)
    return StepResult(loss, errors.detach().min(1).values.mean(), best.rotations[:, 0].detach(), power)


def _with_gradients(
    loss: Float[Tensor, ""], values: list[Tensor], gradients: list[tuple[Tensor | None, ...]]
) -> Float[Tensor, ""]:
    """A loss whose gradients are known already, as the sums of those of its parts."""
    for value, parts in zip(values, zip(*gradients, strict=True), strict=True):
        known = [part for part in parts if part is not None]
        if known:
            loss = loss + ((value - value.detach()) * sum(known[1:], known[0])).sum()
    return loss


@torch.no_grad()
def render(
    state: TrainingState,
    seen: FourierBatch,
    plane: HalfPlane,
    active: HalfPlane,
    *,
    count: int,
    shift_sigma_px: float,
) -> tuple[FourierBatch, Float[Tensor, "count 3 3"], Float[Tensor, "count 2"]]:
    """The current map at random poses, with CTFs of the batch and noise of the residual's spectrum.

    Every process draws all of them, and makes those of its share.

    Returns:
        The renderings, rotations, shifts in pixels.
    """
    generator, device, part = state.step_generator(), plane.coords.device, BatchShard.of(count)
    rotations = random_rotations(count, generator)[part.places]
    shifts = torch.randn(count, 2, generator=generator, device=device)[part.places] * shift_sigma_px
    rows = torch.randint(seen.share.count, (count,), generator=generator, device=device)[part.places]
    noise = torch.randn(2, count, len(plane), generator=generator, device=device)[:, part.places]
    transfer = seen.transfer_within(active)
    lent = None if transfer is None else seen.share.gather(transfer)[rows]
    clean = apply_optics(state.decoder(rotations, active), shifts, lent, active)
    amplitude = (state.residual_power[plane.shells] / 2).sqrt()
    images = torch.complex(noise[0], noise[1]) * amplitude
    images[:, : len(active)] += clean
    condition = None if seen.condition is None else seen.share.gather(seen.condition)[rows]
    return FourierBatch(rows, images, None, part, condition), rotations, shifts


def synthetic_pose_loss(
    state: TrainingState,
    seen: FourierBatch,
    plane: HalfPlane,
    active: HalfPlane,
    *,
    count: int,
    shift_sigma_px: float,
    wta_epsilon: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Pose renderings whose poses are known exactly.

    Returns:
        The loss over this process's share of them, and the median rotation error of the best hypotheses in radians.
    """
    shown, rotations, shifts = render(state, seen, plane, active, count=count, shift_sigma_px=shift_sigma_px)
    proposals = propose(state.encoder, shown.coefficients, plane, shown.condition)
    costs = pose_cost(proposals, rotations, shifts, shift_sigma_px)
    loss = winner_takes_all(costs, wta_epsilon) + _CHOICE_WEIGHT * head_classification_loss(proposals.logits, costs)
    best = select_head(proposals, costs.argmin(1)).rotations[:, 0].detach()
    return loss, shown.share.gather(rotation_angle_rad(best, rotations)).median()
