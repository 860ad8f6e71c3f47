"""An encoder's proposals in place of a global search: refined locally, judged by their likelihood.

Whether a pose can be trusted is asked twice. Do the refined proposals disagree: is there one far from the best that is
nearly as likely? And does the best explain its image as well as a right pose would? The log-likelihood of a right pose
has an expectation and a spread that follow from the map and the CTF alone, so images of all views can be compared.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoeq.domain.processes import gathered, share_of
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.models.pose_head import PoseProposals
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.training.growth import map_precision
from cryoeq.training.local_refinement import Reference, RefinedPoses, refine_poses
from cryoeq.training.observed_images import ObservedImages
from cryoeq.training.rendering_lessons import EncoderView, propose_poses

_BATCH = 512
_SAME_RAD = math.radians(20.0)  # proposals that refine to within this are one
_KEPT = 4  # candidates of each image that are refined, the most likely ones as they are
_SPREADS = 2.0  # below the usual fit, from which an image counts as badly explained


@dataclass(frozen=True)
class JudgedPoses:
    """The most likely of some candidate poses of each image.

    Args:
        refined: that pose, refined.
        confidence: its probability among the candidates; those that are the same pose count together.
        fit: its log-likelihood, in standard deviations from what a right pose would have.
    """

    refined: RefinedPoses
    confidence: Float[Tensor, " particles"]
    fit: Float[Tensor, " particles"]

    @classmethod
    def join(cls, parts: "list[JudgedPoses]") -> "JudgedPoses":
        """Of several batches."""
        return cls(
            RefinedPoses.join([part.refined for part in parts]),
            torch.cat([part.confidence for part in parts]),
            torch.cat([part.fit for part in parts]),
        )

    def rows(self, rows: Int[Tensor, " rows"]) -> "JudgedPoses":
        """Some of the particles."""
        return JudgedPoses(self.refined.rows(rows), self.confidence[rows], self.fit[rows])

    def doubtful(self, least_confidence: float) -> Bool[Tensor, " particles"]:
        """Where candidates disagree, or the image is explained worse than those whose candidates agree."""
        agreed = self.fit[self.confidence > least_confidence]
        if len(agreed) < 2:
            return torch.ones_like(self.fit, dtype=torch.bool)
        usual = agreed.median()
        spread = 1.4826 * (agreed - usual).abs().median()
        return (self.confidence <= least_confidence) | (self.fit < usual - _SPREADS * spread)


@torch.no_grad()
def propose_for_all(encoder: torch.nn.Module, images: ObservedImages, view: EncoderView) -> PoseProposals:
    """One forward pass over all images, which the processes of a job share out.

    Args:
        encoder: in evaluation mode.
        images: the particles, at their own box and up to any radius that holds the view's.
        view: of the encoder.
    """
    own = share_of(torch.arange(len(images), device=images.matched.device))
    matched, condition = images.matched[:, : len(view.plane)], images.condition
    found = PoseProposals.join(
        [
            propose_poses(encoder, matched[rows], view, None if condition is None else condition[rows])
            for rows in own.split(_BATCH)
        ]
    )
    return PoseProposals(*gathered((found.rotations, found.shifts_px, found.logits), own, len(images)))


def judge(
    images: ObservedImages,
    part: ObservedImages,
    volume: Float[Tensor, "n n n"],
    candidates: tuple[Float[Tensor, "particles candidates 3 3"], Float[Tensor, "particles candidates 2"]],
    *,
    shift_sigma_px: float,
) -> JudgedPoses:
    """Refine the best candidates of each image against a map; keep the most likely.

    Args:
        images: all particles, from which the noise is estimated.
        part: those with candidates, up to the radius that decides.
        volume: the map.
        candidates: rotations, and shifts in pixels of the particles' box.
        shift_sigma_px: of the normal prior of shifts, per axis; 0 for particles that are centred.
    """
    precision = map_precision(images, volume, part)
    rotations, shifts = _prune(part, volume, candidates, precision)
    count, each = shifts.shape[:2]
    reference = Reference.build(volume, part.plane, precision)
    refined = RefinedPoses.join([
        refine_poses(part, reference, rotations[:, k], shifts[:, k], shift_sigma_px=shift_sigma_px) for k in range(each)
    ])  # fmt: skip
    likelihood = refined.log_likelihood.view(each, count)
    best = likelihood.argmax(0) * count + torch.arange(count, device=likelihood.device)
    chosen = refined.rows(best)
    angles = rotation_angle_rad(refined.rotations.view(each, count, 3, 3), chosen.rotations.expand(each, -1, -1, -1))
    # One candidate of each pose: several that refined to the same are not several witnesses.
    others = likelihood.masked_fill(angles < _SAME_RAD, -math.inf).amax(0)
    confidence = torch.sigmoid(chosen.log_likelihood - others)
    return JudgedPoses(chosen, confidence, _fit(part, volume, chosen, precision))


def _prune(
    part: ObservedImages,
    volume: Float[Tensor, "n n n"],
    candidates: tuple[Float[Tensor, "particles candidates 3 3"], Float[Tensor, "particles candidates 2"]],
    precision: Float[Tensor, " points"],
) -> tuple[Float[Tensor, "particles kept 3 3"], Float[Tensor, "particles kept 2"]]:
    """The few candidates of each image that are the most likely before they are refined."""
    padded, weights = prepare_slices(volume), precision * part.plane.weights
    rotations, shifts = candidates
    columns = []
    for k in range(shifts.shape[1]):
        values = []
        for rows in torch.arange(len(part), device=shifts.device).split(_BATCH):
            some = part.rows(rows)
            slices = extract_slices(padded, rotations[rows, k], part.plane)
            overlap = (some.centred(shifts[rows, k]) * slices.conj()).real
            values.append((overlap - 0.5 * some.power * slices.abs().square()) @ weights)
        columns.append(torch.cat(values))
    kept = torch.stack(columns, 1).topk(min(_KEPT, shifts.shape[1]), 1).indices
    rows = torch.arange(len(part), device=kept.device)[:, None]
    return rotations[rows, kept], shifts[rows, kept]


def _fit(
    part: ObservedImages, volume: Float[Tensor, "n n n"], poses: RefinedPoses, precision: Float[Tensor, " points"]
) -> Float[Tensor, " particles"]:
    """Log-likelihoods minus their expectation under the pose, over their standard deviation."""
    padded, weights = prepare_slices(volume), precision * part.plane.weights
    signal = torch.cat([
        (power * extract_slices(padded, rotations, part.plane).abs().square()) @ weights
        for power, rotations in zip(part.power.split(_BATCH), poses.rotations.split(_BATCH), strict=True)
    ])  # fmt: skip
    return (poses.log_likelihood - 0.5 * signal) / signal.sqrt()
