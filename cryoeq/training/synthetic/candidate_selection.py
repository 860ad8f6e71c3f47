"""Pose candidates ranked by likelihood: an encoder's proposals in place of a global search.

Whether a pose can be trusted is decided by two questions. Do the refined candidates disagree: is one far from the best
nearly as likely? And does the best explain its image as well as a right pose would? The log-likelihood of a right pose
has an expectation and a standard deviation that follow from the map and the CTF alone, so images of all views compare::

    E[log p] = 1/2 sum_k p_k C_k^2 |P_k|^2 = S / 2,        sd[log p] = sqrt(S)
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.models.pose_head import PoseProposals
from cryoeq.physics.projection import extract_slices
from cryoeq.reconstruction.local_refinement import RefinedPoses, refine_poses
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.reference import Reference
from cryoeq.runtime.distributed import all_gather, shard
from cryoeq.training.synthetic.encoder_input import SAME_POSE_RAD, EncoderInput, propose_poses

_BATCH = 512
_REFINED = 4  # candidates of each image that are refined, the most likely ones before refinement
_MAX_DEVIATIONS = 2.0  # below the usual fit, beyond which an image counts as badly explained


@dataclass(frozen=True)
class RankedPoses(ParticleRows):
    """The most likely of some pose candidates of each image.

    Args:
        refined: most likely candidate, refined.
        confidence: probability of that pose among the candidates; those that are the same pose count together.
        fit: log-likelihood of that pose, in standard deviations from that of a right pose.
    """

    refined: RefinedPoses
    confidence: Float[Tensor, " particles"]
    fit: Float[Tensor, " particles"]

    def low_confidence(self, min_confidence: float) -> Bool[Tensor, " particles"]:
        """Whether candidates disagree, or the image is explained worse than those whose candidates agree.

        Args:
            min_confidence: probability above which candidates agree.
        """
        agreed = self.fit[self.confidence > min_confidence]
        if len(agreed) < 2:
            return torch.ones_like(self.fit, dtype=torch.bool)
        usual = agreed.median()
        deviation = 1.4826 * (agreed - usual).abs().median()
        return (self.confidence <= min_confidence) | (self.fit < usual - _MAX_DEVIATIONS * deviation)


@torch.no_grad()
def propose_poses_for_all(
    encoder: torch.nn.Module, particles: ParticleTransforms, encoder_input: EncoderInput
) -> PoseProposals:
    """One forward pass over all particles, which the processes of a job share.

    Args:
        encoder: pose encoder in evaluation mode.
        particles: transforms at their own box, up to any radius that holds the encoder's.
        encoder_input: preprocessing of the encoder.
    """
    local_rows = shard(torch.arange(len(particles), device=particles.device))
    encoded = local_rows if len(local_rows) > 0 else local_rows.new_zeros(1)  # no transform takes an empty batch
    images, features = particles.ctf_multiplied[:, : len(encoder_input.plane)], particles.ctf_features
    proposals = PoseProposals.cat(
        [
            propose_poses(encoder, images[rows], encoder_input, None if features is None else features[rows])
            for rows in encoded.split(_BATCH)
        ]
    )
    own = torch.arange(len(local_rows), device=particles.device)
    return all_gather(proposals.rows(own), local_rows, len(particles))


def rank_candidates(
    particles: ParticleTransforms, reference: Reference, candidates: PoseSet, *, shift_sigma_px: float
) -> RankedPoses:
    """Refine the best candidates of each image against a map; keep the most likely.

    Args:
        particles: particles with candidates, up to the radius of the comparison.
        reference: map prepared for comparison, with the noise of the particles.
        candidates: several poses for each particle.
        shift_sigma_px: standard deviation of the normal prior of offsets, per axis; 0 for centred particles.
    """
    best_candidates = _most_likely(particles, reference, candidates)
    count, n_kept = best_candidates.shifts_px.shape[:2]
    columns = [best_candidates.each(lambda values, k=k: values[:, k]) for k in range(n_kept)]  # type: ignore[misc]
    refined = RefinedPoses.cat(
        [refine_poses(particles, reference, column, shift_sigma_px=shift_sigma_px) for column in columns]
    )
    likelihood = refined.log_likelihood.view(n_kept, count)
    best = likelihood.argmax(0) * count + torch.arange(count, device=likelihood.device)
    chosen = refined.rows(best)
    rotations = chosen.poses.rotations.expand(n_kept, -1, -1, -1)
    angles = rotation_angle_rad(refined.poses.rotations.view(n_kept, count, 3, 3), rotations)
    # One candidate of each pose: several that refined to the same are not several witnesses.
    others = likelihood.masked_fill(angles < SAME_POSE_RAD, -math.inf).amax(0)
    confidence = torch.sigmoid(chosen.log_likelihood - others)
    return RankedPoses(chosen, confidence, _fit(particles, reference, chosen))


def _most_likely(particles: ParticleTransforms, reference: Reference, candidates: PoseSet) -> PoseSet:
    """The few candidates of each image that are the most likely before refinement."""
    plane, weights = particles.plane, reference.weights(particles.plane)
    columns = []
    for k in range(candidates.shifts_px.shape[1]):
        values = []
        for rows in torch.arange(len(particles), device=weights.device).split(_BATCH):
            batch = particles.rows(rows)
            slices = extract_slices(reference.padded, candidates.rotations[rows, k], plane)
            overlap = (batch.centred(candidates.shifts_px[rows, k]) * slices.conj()).real
            values.append((overlap - 0.5 * batch.ctf_squared * slices.abs().square()) @ weights)
        columns.append(torch.cat(values))
    kept = torch.stack(columns, 1).topk(min(_REFINED, len(columns)), 1).indices
    rows = torch.arange(len(particles), device=kept.device)[:, None]
    return candidates.each(lambda values: values[rows, kept])


def _fit(particles: ParticleTransforms, reference: Reference, refined: RefinedPoses) -> Float[Tensor, " particles"]:
    """Log-likelihoods minus their expectation under the pose, over their standard deviation."""
    plane, weights = particles.plane, reference.weights(particles.plane)
    signal = torch.cat([
        (squared * extract_slices(reference.padded, rotations, plane).abs().square()) @ weights
        for squared, rotations in zip(
            particles.ctf_squared.split(_BATCH), refined.poses.rotations.split(_BATCH), strict=True
        )
    ])  # fmt: skip
    return (refined.log_likelihood - 0.5 * signal) / signal.sqrt()
