"""Losses of a training step: autoencoding of the images, and poses of synthetic projections of the current map."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.particle_rows import ParticleRows
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

_CLASSIFICATION_WEIGHT = 0.1


@dataclass(frozen=True)
class FourierBatch(ParticleRows):
    """A batch of images in Fourier space.

    Args:
        indices: rows of the particles; of synthetic projections, positions in the batch of the particles whose CTF
            they have.
        coefficients: transforms of the images, scaled to unit variance.
        transfer: CTF at each coefficient; None without a CTF.
        shard: position of these images in a batch that processes share.
        ctf_features: conditioning vectors of the CTFs; None without a CTF.
    """

    indices: Int[Tensor, " batch"]
    coefficients: Complex[Tensor, "batch points"]
    transfer: Float[Tensor, "batch points"] | None
    shard: BatchShard
    ctf_features: Float[Tensor, "batch 3"] | None = None

    def transfer_within(self, plane: HalfPlane) -> Float[Tensor, "batch active"] | None:
        """CTF at the leading coefficients, those of a smaller radius."""
        return None if self.transfer is None else self.transfer[:, : len(plane)]


@dataclass(frozen=True)
class StepResult:
    """Autoencoding loss of a batch, and what was measured on the way.

    Args:
        loss: scalar to differentiate.
        error: mean squared residual of the best hypotheses.
        rotations: rotations of the best hypotheses.
        residual_power: |observed - predicted|^2 of each coefficient, averaged over the batch.
    """

    loss: Float[Tensor, ""]
    error: Float[Tensor, ""]
    rotations: Float[Tensor, "batch 3 3"]
    residual_power: Float[Tensor, " points"]

    def scaled(self, weight: float) -> "StepResult":
        """The contribution of a micro-batch to the means of its batch, detached."""
        loss = self.loss.detach() * weight
        return StepResult(loss, self.error * weight, self.rotations, self.residual_power * weight)

    def plus(self, other: "StepResult") -> "StepResult":
        """The result of two micro-batches, both scaled."""
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
    shard: BatchShard | None = None,
) -> FourierBatch:
    """Read some particles and transform them, on the plane's device.

    Args:
        dataset: particles at the working box.
        rows: particles of the whole batch.
        plane: coefficients to keep.
        scale: factor that gives the images unit variance.
        shard: images of the batch that are read; None for all.
    """
    shard = shard or BatchShard(slice(None), len(rows), 1.0)
    batch = dataset.batch(rows[shard.positions]).to(plane.coords.device)
    return transform(batch, plane, dataset.pixel_size_angstrom, scale, shard)


def transform(
    batch: ParticleBatch, plane: HalfPlane, pixel_size_angstrom: float, scale: float, shard: BatchShard
) -> FourierBatch:
    """Fourier transforms and CTFs of particles in memory.

    Args:
        batch: particles on the plane's device.
        plane: coefficients to keep.
        pixel_size_angstrom: pixel size of the images.
        scale: factor that gives the images unit variance.
        shard: position of the particles in a batch that processes share.
    """
    coefficients = plane.transform(batch.images) * scale
    if batch.ctf is None:
        return FourierBatch(batch.indices, coefficients, None, shard)
    transfer = image_transfer(batch.ctf, plane.frequencies_per_angstrom(pixel_size_angstrom))
    return FourierBatch(batch.indices, coefficients, transfer, shard, ctf_features(batch.ctf))


def propose(
    encoder: torch.nn.Module,
    coefficients: Complex[Tensor, "batch points"],
    plane: HalfPlane,
    ctf_features: Float[Tensor, "batch 3"] | None = None,
    *,
    is_symmetric: bool = False,
    centred: bool = False,
) -> PoseProposals:
    """The encoder's hypotheses for images given by their coefficients.

    Args:
        encoder: pose encoder for images of the plane's box.
        coefficients: transforms of the images.
        plane: spatial frequencies of the coefficients.
        ctf_features: conditioning vectors of the CTFs; None without a CTF.
        is_symmetric: add hypotheses from the half-turned images.
        centred: particles are known to be centred: all shifts are 0.
    """
    images = plane.images(coefficients)
    proposals: PoseProposals = encoder(images, ctf_features)
    if centred:
        proposals = replace(proposals, shifts_px=torch.zeros_like(proposals.shifts_px))
    if is_symmetric:
        half_turned = propose(encoder, coefficients.conj(), plane, ctf_features, centred=centred)
        proposals = add_half_turn_hypotheses(proposals, half_turned)
    return proposals


def predict(
    decoder: VolumeDecoder,
    proposals: PoseProposals,
    transfer: Float[Tensor, "batch points"] | None,
    plane: HalfPlane,
) -> Complex[Tensor, "batch heads points"]:
    """The image that each hypothesis predicts: slice of the map, shifted, times the CTF."""
    shape = proposals.shifts_px.shape[:2]
    slices = decoder(proposals.rotations.flatten(0, 1), plane)
    repeated = None if transfer is None else transfer.repeat_interleave(shape[1], 0)
    return apply_optics(slices, proposals.shifts_px.flatten(0, 1), repeated, plane).unflatten(0, shape)


def select_head(proposals: PoseProposals, head: Int[Tensor, " batch"]) -> PoseProposals:
    """One hypothesis per image."""
    rows = torch.arange(len(head), device=head.device)
    return proposals.each(lambda values: values[rows, head][:, None])


def autoencoding_loss(
    state: TrainingState,
    batch: FourierBatch,
    plane: HalfPlane,
    active: HalfPlane,
    *,
    wta_epsilon: float,
    is_symmetric: bool,
    centred: bool,
    trains_encoder: bool,
    micro_batcher: MicroBatcher | None = None,
) -> StepResult:
    """Residual of the images from what the decoder predicts at the encoder's hypotheses.

    Batch norms of the encoder see all images at once; the comparison, which takes most of the memory, goes by
    micro-batches.

    Args:
        state: encoder and decoder.
        batch: transforms of the images.
        plane: coefficients of the batch.
        active: leading coefficients that are compared, up to the radius of the step.
        wta_epsilon: weight of the mean over all hypotheses, beside the best one.
        is_symmetric: add hypotheses from the half-turned images.
        centred: particles are known to be centred: all shifts are 0.
        trains_encoder: whether gradients reach the encoder; else only the decoder gets them.
        micro_batcher: size of the micro-batches; None for one that starts with the whole batch.
    """
    with torch.set_grad_enabled(trains_encoder):
        proposals = propose(
            state.encoder, batch.coefficients, plane, batch.ctf_features, is_symmetric=is_symmetric, centred=centred
        )
    candidates = (*state.decoder.parameters(), proposals.rotations, proposals.shifts_px)
    differentiated = [values for values in candidates if values.requires_grad]

    def compare(positions: range) -> tuple[StepResult, tuple[Tensor | None, ...]]:
        rows, weight = slice(positions.start, positions.stop), len(positions) / len(proposals)
        result = _compare(
            state.decoder,
            proposals.each(lambda values: values[rows]),
            batch.each(lambda values: values[rows]),
            active,
            wta_epsilon if trains_encoder else None,
        )
        gradients = torch.autograd.grad(result.loss * weight, differentiated, allow_unused=True)
        return result.scaled(weight), gradients

    micro_batches = list((micro_batcher or MicroBatcher()).results(compare, range(len(proposals))))
    whole, *others = [result for result, _ in micro_batches]
    for other in others:
        whole = whole.plus(other)
    gradients = [of_micro_batch for _, of_micro_batch in micro_batches]
    return replace(whole, loss=_with_gradients(whole.loss, differentiated, gradients))


def _compare(
    decoder: VolumeDecoder, proposals: PoseProposals, batch: FourierBatch, active: HalfPlane, wta_epsilon: float | None
) -> StepResult:
    """Residual of images from the predictions of their hypotheses; without an epsilon only the best one has a loss."""
    observed, transfer = batch.coefficients[:, : len(active)], batch.transfer_within(active)
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
    residual = batch.coefficients.detach().clone()
    residual[:, : len(active)] -= predicted[:, 0].detach()
    power = (residual.real.square() + residual.imag.square()).mean(0)
    return StepResult(loss, errors.detach().min(1).values.mean(), best.rotations[:, 0].detach(), power)


def _with_gradients(
    loss: Float[Tensor, ""], values: list[Tensor], gradients: list[tuple[Tensor | None, ...]]
) -> Float[Tensor, ""]:
    """A loss with given gradients, the sums of those of its micro-batches."""
    for value, of_micro_batches in zip(values, zip(*gradients, strict=True), strict=True):
        known = [gradient for gradient in of_micro_batches if gradient is not None]
        if known:
            loss = loss + ((value - value.detach()) * sum(known[1:], known[0])).sum()
    return loss


@torch.no_grad()
def simulate_projections(
    state: TrainingState,
    batch: FourierBatch,
    plane: HalfPlane,
    active: HalfPlane,
    *,
    count: int,
    shift_sigma_px: float,
) -> tuple[FourierBatch, Float[Tensor, "count 3 3"], Float[Tensor, "count 2"]]:
    """Synthetic projections: the current map at random poses, with CTFs of the batch and noise like the residual.

    Every process draws the random numbers of all projections, and computes those of its shard.

    Args:
        state: decoder and spectrum of the residual.
        batch: particles whose CTFs are used.
        plane: coefficients of the projections.
        active: leading coefficients that hold signal; beyond them there is noise alone.
        count: number of projections, over all processes.
        shift_sigma_px: standard deviation of the shifts per axis.

    Returns:
        The projections, their rotations, and their shifts in pixels.
    """
    generator, device, shard = state.step_generator(), plane.coords.device, BatchShard.local(count)
    rotations = random_rotations(count, generator)[shard.positions]
    shifts = torch.randn(count, 2, generator=generator, device=device)[shard.positions] * shift_sigma_px
    donors = torch.randint(batch.shard.count, (count,), generator=generator, device=device)[shard.positions]
    noise = torch.randn(2, count, len(plane), generator=generator, device=device)[:, shard.positions]
    transfer = batch.transfer_within(active)
    donated = None if transfer is None else batch.shard.gather(transfer)[donors]
    clean = apply_optics(state.decoder(rotations, active), shifts, donated, active)
    amplitude = (state.residual_power[plane.shells] / 2).sqrt()
    images = torch.complex(noise[0], noise[1]) * amplitude
    images[:, : len(active)] += clean
    features = None if batch.ctf_features is None else batch.shard.gather(batch.ctf_features)[donors]
    return FourierBatch(donors, images, None, shard, features), rotations, shifts


def synthetic_pose_loss(
    state: TrainingState,
    batch: FourierBatch,
    plane: HalfPlane,
    active: HalfPlane,
    *,
    count: int,
    shift_sigma_px: float,
    wta_epsilon: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Error of the encoder's hypotheses for synthetic projections, whose poses are known exactly.

    Args:
        state: encoder, decoder and spectrum of the residual.
        batch: particles whose CTFs are used.
        plane: coefficients of the projections.
        active: leading coefficients that hold signal.
        count: number of projections, over all processes.
        shift_sigma_px: standard deviation of the shifts per axis.
        wta_epsilon: weight of the mean over all hypotheses, beside the best one.

    Returns:
        The loss over this process's shard, and the median rotation error of the best hypotheses in radians.
    """
    projections, rotations, shifts = simulate_projections(
        state, batch, plane, active, count=count, shift_sigma_px=shift_sigma_px
    )
    proposals = propose(state.encoder, projections.coefficients, plane, projections.ctf_features)
    costs = pose_cost(proposals, rotations, shifts, shift_sigma_px)
    classification = head_classification_loss(proposals.logits, costs)
    loss = winner_takes_all(costs, wta_epsilon) + _CLASSIFICATION_WEIGHT * classification
    best = select_head(proposals, costs.argmin(1)).rotations[:, 0].detach()
    return loss, projections.shard.gather(rotation_angle_rad(best, rotations)).median()
