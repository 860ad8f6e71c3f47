"""What training makes small."""

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
        predicted: what each hypothesis would look like.
        observed: the images.
        weights: how often each coefficient counts (2 for one of a Friedel pair).
    """
    residual = predicted - observed[:, None]
    return (residual.real.square() + residual.imag.square()) @ weights / weights.sum()


def winner_takes_all(losses: Float[Tensor, "batch heads"], wta_epsilon: float) -> Float[Tensor, ""]:
    """The best hypothesis of each image, plus a little of the others so that no head dies.

    Shekarforoush et al. 2024, CryoSPIN (NeurIPS); the wta_epsilon is ours.
    """
    return losses.min(1).values.mean() + wta_epsilon * losses.mean()


def add_half_turn_hypotheses(proposals: PoseProposals, of_half_turned: PoseProposals) -> PoseProposals:
    """The hypotheses of the images and those of their half-turned copies, all as poses of the images themselves.

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

    Chordal for rotations, in units of their spread for shifts.

    Args:
        proposals: of the encoder.
        rotations: the true ones.
        shifts_px: the true ones.
        shift_sigma_px: spread of the shifts; 0 leaves them out.
    """
    cost = (proposals.rotations - rotations[:, None]).square().sum((-2, -1))
    if shift_sigma_px > 0:
        cost = cost + ((proposals.shifts_px - shifts_px[:, None]) / shift_sigma_px).square().sum(-1)
    return cost


def head_classification_loss(
    logits: Float[Tensor, "batch heads"], costs: Float[Tensor, "batch heads"]
) -> Float[Tensor, ""]:
    """Cross-entropy that teaches the logits which head is best."""
    return torch.nn.functional.cross_entropy(logits, costs.detach().argmin(1))


def mixture_loss(
    logits: Float[Tensor, "batch heads"], costs: Float[Tensor, "batch heads"], concentration: float
) -> Float[Tensor, ""]:
    """Negative log-density of the known pose under the heads as a mixture of bells, one per hypothesis.

    It teaches poses and preferences at once, and each head in proportion to its share in the explanation. Bishop 1994,
    Mixture density networks (Aston University, NCRG/94/004).

    Args:
        logits: of the heads.
        costs: squared distance of each hypothesis from the known pose.
        concentration: of the bells, exp(-concentration * cost).
    """
    return -torch.logsumexp(torch.log_softmax(logits, 1) - concentration * costs, 1).mean()
