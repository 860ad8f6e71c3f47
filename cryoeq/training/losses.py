"""Loss functions of pose encoders and of the pose autoencoder."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoeq.models.pose_head import PoseProposals


def data_term(
    predicted: Complex[Tensor, "batch heads points"],
    observed: Complex[Tensor, "batch points"],
    weights: Float[Tensor, " points"],
) -> Float[Tensor, "batch heads"]:
    """Mean squared residual of each hypothesis over the Fourier coefficients of its image.

    Args:
        predicted: transform that each hypothesis predicts.
        observed: transforms of the images.
        weights: multiplicity of each coefficient (2 for one of a Friedel pair).
    """
    residual = predicted - observed[:, None]
    return (residual.real.square() + residual.imag.square()) @ weights / weights.sum()


def winner_takes_all(losses: Float[Tensor, "batch heads"], wta_epsilon: float) -> Float[Tensor, ""]:
    """Relaxed winner-takes-all loss over the hypotheses of each image.

    For losses l of images i and heads h::

        mean_i min_h l_ih  +  epsilon mean_ih l_ih

    The second term keeps every head in training. Rupprecht et al. 2017, Learning in an uncertain world (arXiv
    1612.00197); for poses Shekarforoush et al. 2024, CryoSPIN (NeurIPS).
    """
    return losses.min(1).values.mean() + wta_epsilon * losses.mean()


def add_half_turn_hypotheses(proposals: PoseProposals, of_half_turned: PoseProposals) -> PoseProposals:
    """The hypotheses of the images and those of the half-turned images, all as poses of the images themselves.

    The minimum of the data term over them is the symmetric loss: the residual of a half-turned image at pose A equals
    that of the image at diag(-1, -1, 1) A. Levy et al. 2022, CryoAI (ECCV).
    """
    first_two, third = of_half_turned.rotations.split([2, 1], -2)
    return PoseProposals(
        torch.cat([proposals.rotations, torch.cat([-first_two, third], -2)], 1),
        torch.cat([proposals.shifts_px, -of_half_turned.shifts_px], 1),
        torch.cat([proposals.logits, of_half_turned.logits], 1),
    )


def pose_cost(
    proposals: PoseProposals,
    rotations: Float[Tensor, "batch 3 3"],
    shifts_px: Float[Tensor, "batch 2"],
    shift_sigma_px: float,
) -> Float[Tensor, "batch heads"]:
    """Squared distance of each hypothesis from a known pose.

    It is chordal for rotations, and relative to the standard deviation for shifts::

        |R_h - R|^2 + |t_h - t|^2 / sigma^2

    Args:
        proposals: hypotheses of the encoder.
        rotations: known rotations R.
        shifts_px: known shifts t.
        shift_sigma_px: standard deviation sigma of the shifts per axis; 0 leaves them out.
    """
    cost = (proposals.rotations - rotations[:, None]).square().sum((-2, -1))
    if shift_sigma_px > 0:
        cost = cost + ((proposals.shifts_px - shifts_px[:, None]) / shift_sigma_px).square().sum(-1)
    return cost


def head_classification_loss(
    logits: Float[Tensor, "batch heads"], costs: Float[Tensor, "batch heads"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the logits against the head of least cost."""
    return torch.nn.functional.cross_entropy(logits, costs.detach().argmin(1))
