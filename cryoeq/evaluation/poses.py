"""Errors of predicted poses against a truth, up to the gauge that images cannot determine.

A map may be rotated, mirrored and shifted without any change in its projections. So poses are compared up to one
rotation Q, one hand and one shift d, with S in the symmetry group of the particle and J = diag(1, 1, -1)::

    A_truth ~ A' Q S,        A' = A_predicted or J A_predicted J

With M = A'^T A_truth the residual of an image is the angle between Q S and M, hence the best Q is a robust mean of the
M S^T over SO(3).

Each half of the images is scored with the gauge fitted on the other half, so that no image is scored with a gauge that
it took part in.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.pose import Poses
from cryoeq.errors import ParticleFileError
from cryoeq.geometry.pointgroup import symmetry_rotations
from cryoeq.geometry.so3 import nearest_rotation, rotation_angle_rad

MIN_IMAGES = 8
_ANCHORS = 200
_SCORED_PRODUCTS = 2**22
_ITERATIONS = 30
_CUTOFF_RAD = math.radians(45.0)
_ROUNDING = 1e-3  # radians or Å: residuals below it are rounding, and must not decide on weights


@dataclass(frozen=True)
class PoseGauge:
    """Transformation of the predicted frame into the true one.

    Args:
        rotation: Q of A_truth ~ A' Q.
        is_mirrored: whether the prediction has the other hand, A' = J A J.
        shift_angstrom: shift d in the frame of A', where offsets obey o_predicted - o_truth = (A' d)_xy.
        cost: mean of min(1, (residual / 45 degrees)^2) over the images of the fit: 0 perfect, 0.97 by chance.
        other_hand_cost: cost of the best rotation with the other hand.
    """

    rotation: Float[Tensor, "3 3"]
    is_mirrored: bool
    shift_angstrom: Float[Tensor, " 3"]
    cost: float
    other_hand_cost: float


@dataclass(frozen=True)
class PoseErrors:
    """Errors of each image, in the order of the rows, and the gauge of each half.

    Args:
        rotation_rad: angle between the rotations, 0 to pi.
        view_direction_rad: angle between the viewing directions, 0 to pi.
        in_plane_rad: rotation about the beam that remains after the shortest alignment of the viewing directions, 0 to
            pi.
        shift_angstrom: length of the difference of in-plane offsets.
        gauges: gauges fitted on the first and on the second random half; each scored the other half.
    """

    rotation_rad: Float[Tensor, " batch"]
    view_direction_rad: Float[Tensor, " batch"]
    in_plane_rad: Float[Tensor, " batch"]
    shift_angstrom: Float[Tensor, " batch"]
    gauges: tuple[PoseGauge, PoseGauge]

    @property
    def hand(self) -> Literal["same", "mirrored", "undecided"]:
        """Hand of the prediction against the truth; undecided where the two halves disagree."""
        first, second = self.gauges
        if first.is_mirrored != second.is_mirrored:
            return "undecided"
        return "mirrored" if first.is_mirrored else "same"


def compare_poses(
    predicted: Poses, truth: Poses, *, symmetry: str = "C1", generator: torch.Generator | None = None
) -> PoseErrors:
    """Errors of predicted poses, row by row, each half scored with the gauge of the other.

    Args:
        predicted: predicted poses.
        truth: true poses of the same images, in the same order.
        symmetry: point group of the particle in the frame of the truth, for example ``C4``.
        generator: random number generator of the halves and of the search; seed 0 without one.

    Raises:
        ParticleFileError: different numbers of poses, or fewer than 8.
    """
    n = len(predicted)
    if n != len(truth):
        raise ParticleFileError(
            f"{n} predicted poses for {len(truth)} true ones",
            "Expected one for each image",
            "Compare the same particles",
        )
    if n < MIN_IMAGES:
        raise ParticleFileError(
            f"{n} images",
            f"Expected at least {MIN_IMAGES} to fit a frame on one half and score the other",
            "Use more images",
        )
    device = truth.rotations.device
    generator = generator or torch.Generator().manual_seed(0)
    group = symmetry_rotations(symmetry).to(device)
    found, true = _as_double(predicted), _as_double(truth)
    order = torch.randperm(n, generator=generator, device=generator.device).to(device)
    halves = order[: n // 2], order[n // 2 :]
    gauges = [fit_gauge(found[half], true[half], group, generator) for half in halves]
    scored = [
        _score(found[half], true[half], group, gauge) for half, gauge in zip(halves, reversed(gauges), strict=True)
    ]
    in_order_of_halves = torch.cat(scored, dim=1)
    columns = torch.empty_like(in_order_of_halves)
    columns[:, order] = in_order_of_halves
    rotation, view, in_plane, shift = columns
    return PoseErrors(rotation, view, in_plane, shift, (gauges[0], gauges[1]))


def summarise_errors(errors: PoseErrors, pixel_size_angstrom: float) -> dict[str, dict[str, float]]:
    """Metrics of a report, in degrees, pixels and Å.

    Args:
        errors: errors of all images.
        pixel_size_angstrom: pixel size of the images.

    Returns:
        Median, mean and 90th percentile of each kind of error; for angles also the fraction below 5, 10, 30 degrees.
    """
    angles = {
        "rotation_deg": errors.rotation_rad,
        "view_direction_deg": errors.view_direction_rad,
        "in_plane_deg": errors.in_plane_rad,
    }
    summary = {name: _statistics(values.rad2deg(), thresholds=(5, 10, 30)) for name, values in angles.items()}
    summary["shift_px"] = _statistics(errors.shift_angstrom / pixel_size_angstrom)
    summary["shift_angstrom"] = _statistics(errors.shift_angstrom)
    return summary


def _statistics(values: Float[Tensor, " batch"], thresholds: tuple[int, ...] = ()) -> dict[str, float]:
    ordered = values.sort().values
    statistics = {
        "median": float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2,
        "mean": float(ordered.mean()),
        "percentile_90": float(ordered[round(0.9 * (len(ordered) - 1))]),
    }
    return statistics | {f"share_below_{limit}": float((ordered < limit).double().mean()) for limit in thresholds}


def fit_gauge(
    predicted: Poses, truth: Poses, group: Float[Tensor, "order 3 3"], generator: torch.Generator
) -> PoseGauge:
    """Rotation, hand and shift between two frames; robust to a majority of wrong poses, if these are scattered.

    Args:
        predicted: predicted poses in float64.
        truth: true poses in float64.
        group: rotations of the symmetry group.
        generator: random number generator of the anchors.
    """
    fits = []
    for is_mirrored in (False, True):
        aligned = _in_hand(predicted.rotations, is_mirrored)
        relative = aligned.mT @ truth.rotations
        rotation = _robust_rotation(relative, group, generator)
        residuals = _residuals(relative, rotation, group)[0]
        fits.append((_bounded_cost(residuals), is_mirrored, rotation, residuals, aligned))
    fits.sort(key=lambda fit: fit[0])
    (cost, is_mirrored, rotation, residuals, aligned), (other_cost, *_) = fits
    shift = _robust_shift(
        aligned, predicted.shifts_angstrom - truth.shifts_angstrom, _weights(residuals, _cutoff(residuals))
    )
    return PoseGauge(rotation, is_mirrored, shift, cost, other_cost)


def _as_double(poses: Poses) -> Poses:
    return Poses(poses.rotations.double(), poses.shifts_angstrom.double())


def _in_hand(rotations: Float[Tensor, "batch 3 3"], is_mirrored: bool) -> Float[Tensor, "batch 3 3"]:
    """Rotations in the chosen hand: A, or J A J, whose signs differ where exactly one index is z."""
    if not is_mirrored:
        return rotations
    hand = rotations.new_tensor([1.0, 1.0, -1.0])
    return rotations * hand[:, None] * hand


def _robust_rotation(
    relative: Float[Tensor, "batch 3 3"], group: Float[Tensor, "order 3 3"], generator: torch.Generator
) -> Float[Tensor, "3 3"]:
    """Mode of the relative rotations modulo the group: the best of many anchors, then a reweighted chordal mean.

    The plain chordal mean fails where two clusters of poses lie 180 degrees apart (its singular values meet); the
    anchors choose one cluster first, and the bounded weights exclude the other one.
    """
    anchors = relative[_sample(len(relative), _ANCHORS, generator, relative.device)]
    budget = max(200, _SCORED_PRODUCTS // (_ANCHORS * len(group)))
    sample = relative[_sample(len(relative), budget, generator, relative.device)]
    copies = (anchors[:, None] @ group).flatten(-2)
    traces = torch.einsum("aki,bi->abk", copies, sample.flatten(-2)).amax(-1)
    costs = ((3 - traces) / (2 * (1 - math.cos(_CUTOFF_RAD)))).clamp(max=1.0).mean(1)
    rotation = anchors[int(costs.argmin())]
    for _ in range(_ITERATIONS):
        residuals, copy = _residuals(relative, rotation, group)
        weights = _weights(residuals, _cutoff(residuals))
        previous, rotation = rotation, nearest_rotation((weights[:, None, None] * (relative @ group[copy].mT)).sum(0))
        if float(rotation_angle_rad(previous, rotation)) < 1e-9:
            break
    return rotation


def _sample(n: int, count: int, generator: torch.Generator, device: torch.device) -> Int[Tensor, " rows"]:
    return torch.randperm(n, generator=generator, device=generator.device)[:count].to(device)


def _residuals(
    relative: Float[Tensor, "batch 3 3"], rotation: Float[Tensor, "3 3"], group: Float[Tensor, "order 3 3"]
) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Angle between Q S and each relative rotation for the best S, and the index of that S."""
    copies = rotation @ group
    best = (relative.flatten(-2) @ copies.flatten(-2).mT).argmax(-1)
    return rotation_angle_rad(copies[best], relative), best


def _cutoff(residuals: Float[Tensor, " batch"]) -> float:
    """Residual beyond which an image has no weight: three medians, at most 45 degrees to exclude wrong poses."""
    return min(max(3 * float(residuals.median()), _ROUNDING), _CUTOFF_RAD)


def _weights(residuals: Float[Tensor, " batch"], cutoff: float) -> Float[Tensor, " batch"]:
    """Tukey's biweight: near 1 at the centre, 0 from the cutoff on."""
    return (1 - (residuals / cutoff).square()).clamp(min=0).square()


def _bounded_cost(residuals: Float[Tensor, " batch"]) -> float:
    return float((residuals / _CUTOFF_RAD).square().clamp(max=1.0).mean())


def _robust_shift(
    aligned: Float[Tensor, "batch 3 3"], difference_angstrom: Float[Tensor, "batch 2"], weights: Float[Tensor, " batch"]
) -> Float[Tensor, " 3"]:
    """Shift d that best explains o_predicted - o_truth = (A' d)_xy, by reweighted least squares.

    A point r of the true map lies at A' (Q r + d) for the predicted pose and at A_truth r for the true one, and an
    offset o moves the particle to -o: the image stays the same when the predicted offset grows by (A' d)_xy.
    Along a direction that no view shows (all views along one axis) it is 0, by the pseudo-inverse.
    """
    rows = aligned[:, :2]
    shift = rows.new_zeros(3)
    robust = weights
    for _ in range(_ITERATIONS):
        normal = torch.einsum("b,bki,bkj->ij", robust, rows, rows)
        right = torch.einsum("b,bki,bk->i", robust, rows, difference_angstrom)
        previous, shift = shift, torch.linalg.pinv(normal, rtol=1e-8, hermitian=True) @ right
        residuals = (difference_angstrom - rows @ shift).norm(dim=-1)
        reach = 3 * float(residuals[weights > 0].median()) if bool((weights > 0).any()) else 0.0
        robust = weights * _weights(residuals, max(reach, _ROUNDING))
        if float((shift - previous).norm()) < 1e-9:
            break
    return shift


def _score(
    predicted: Poses, truth: Poses, group: Float[Tensor, "order 3 3"], gauge: PoseGauge
) -> Float[Tensor, "4 batch"]:
    """Rotation, view direction, in-plane and shift errors of images under a gauge."""
    in_hand = _in_hand(predicted.rotations, gauge.is_mirrored)
    residuals, copy = _residuals(in_hand.mT @ truth.rotations, gauge.rotation, group)
    aligned = in_hand @ gauge.rotation @ group[copy]
    views = aligned[:, 2], truth.rotations[:, 2]
    # atan2 is accurate at angles near 0 and pi, where the arc cosine is not.
    view = torch.atan2(torch.linalg.cross(*views).norm(dim=-1), (views[0] * views[1]).sum(-1))
    left = truth.rotations @ aligned.mT
    in_plane = torch.atan2(left[:, 1, 0] - left[:, 0, 1], left[:, 0, 0] + left[:, 1, 1]).abs()
    difference = predicted.shifts_angstrom - truth.shifts_angstrom
    shift = (difference - in_hand[:, :2] @ gauge.shift_angstrom).norm(dim=-1)
    return torch.stack([residuals, view, in_plane, shift])
