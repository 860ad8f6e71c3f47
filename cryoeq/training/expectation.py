"""The expectation step: posterior of each image over a grid of poses and a few trial shifts."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.processes import gathered
from cryoeq.training.observed_images import ObservedImages
from cryoeq.training.parallel import in_parallel, numbers_at_a_time
from cryoeq.training.view_scores import MatchedImages, ViewScores

# Scores in memory at a time: small enough for a processor's cache, large enough for its matrix products.
_SCORES_CPU = 2**21
# Exponentials below this are as good as 0; smaller ones become denormal numbers, which take 20 times as long.
_LEAST_LOG_WEIGHT = -60.0


@dataclass(frozen=True)
class Posterior:
    """What is known of the pose of each image after a look at every pose of a grid.

    Args:
        rotations: of the most probable pose, RELION's matrices A.
        shifts_px: of the most probable pose.
        mean_shifts_px: averaged over the posterior.
        confidence: probability of the most probable pose of the grid (rlnMaxValueProbDistribution).
        log_evidence: logarithm of the mean likelihood over the grid, up to a constant of the image.
    """

    rotations: Float[Tensor, "particles 3 3"]
    shifts_px: Float[Tensor, "particles 2"]
    mean_shifts_px: Float[Tensor, "particles 2"]
    confidence: Float[Tensor, " particles"]
    log_evidence: Float[Tensor, " particles"]

    @classmethod
    def join(cls, parts: list["Posterior"]) -> "Posterior":
        """Of several batches."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    @classmethod
    def of_none(cls, device: torch.device) -> "Posterior":
        """Of no image."""
        shifts, numbers = torch.zeros(0, 2, device=device), torch.zeros(0, device=device)
        return cls(torch.zeros(0, 3, 3, device=device), shifts, shifts, numbers, numbers)

    def gathered(self, rows: Int[Tensor, " particles"], count: int) -> "Posterior":
        """Of all processes, in the order of the rows.

        Args:
            rows: those that this process has looked at.
            count: of rows in all.
        """
        found = (self.rotations, self.shifts_px, self.mean_shifts_px, self.confidence, self.log_evidence)
        return Posterior(*gathered(found, rows, count))


@dataclass(frozen=True)
class Expectation:
    """Result of one pass over images.

    Args:
        sums: posterior-weighted sums of the images per view.
        posterior: of each image.
    """

    sums: MatchedImages
    posterior: Posterior


def expect(
    images: ObservedImages,
    scores: ViewScores,
    shifts_px: Float[Tensor, "particles trials 2"],
    *,
    shift_sigma_px: float,
    temperature: float = 1.0,
) -> Iterator[tuple[int, Expectation | None]]:
    """Go through the images in small batches; yields (images done, None), at the end (all, the result).

    Args:
        images: up to the radius of the scores.
        scores: of the current map.
        shifts_px: trial shifts of each image.
        shift_sigma_px: of the normal prior of shifts, per axis; 0 without one.
        temperature: the log-likelihood is divided by it; 1 is the posterior, more keeps an early map from deciding.
    """
    trials, size = shifts_px.shape[1], numbers_at_a_time(images.matched.device, _SCORES_CPU)
    hypotheses = len(scores.grid.inplane_rad) * 2 * len(scores.grid.views)

    def look(rows: Int[Tensor, " rows"]) -> tuple[MatchedImages, Posterior]:
        matched = images.rows(rows).at_shifts(shifts_px[rows], scores.harmonics)
        prior = -0.5 * shifts_px[rows].square().sum(-1) / shift_sigma_px**2 if shift_sigma_px > 0 else None
        weights, normaliser, posterior = _normalise(scores, matched, shifts_px[rows], prior, temperature)
        return scores.sum_images(weights, matched.scaled(normaliser)), posterior

    sums: MatchedImages | None = None
    parts: list[Posterior] = []
    done = 0
    batches = torch.arange(len(images), device=shifts_px.device).split(max(1, size // (hypotheses * trials)))
    for part, posterior in in_parallel(look, batches):
        sums = part if sums is None else MatchedImages(sums.linear + part.linear, sums.power + part.power)
        parts.append(posterior)
        done += len(posterior.confidence)
        yield done, None if sums is None or done < len(images) else Expectation(sums, Posterior.join(parts))


def _normalise(
    scores: ViewScores,
    matched: MatchedImages,
    shifts_px: Float[Tensor, "particles trials 2"],
    log_prior: Float[Tensor, "particles trials"] | None,
    temperature: float,
) -> tuple[Float[Tensor, "angles hypotheses rows"], Float[Tensor, " rows"], Posterior]:
    """Unnormalised posterior, by what its rows must be multiplied, and its summary."""
    count, trials = shifts_px.shape[:2]
    weights = scores.score(matched)
    if log_prior is not None:
        weights += log_prior.reshape(-1)
    by_row, hypothesis = weights.amax(0).max(0)
    highest, trial = by_row.view(count, trials).max(1)
    best = torch.arange(count, device=trial.device)
    row = best * trials + trial
    angle = weights[:, hypothesis[row], row].argmax(0)
    weights.sub_(highest.repeat_interleave(trials))
    if temperature != 1.0:
        weights.div_(temperature)
    row_sums = weights.clamp_(min=_LEAST_LOG_WEIGHT).exp_().sum((0, 1)).view(count, trials)
    normaliser = row_sums.sum(1, keepdim=True).reciprocal()
    posterior = Posterior(
        rotations=scores.grid.rotations(angle, hypothesis[row]),
        shifts_px=shifts_px[best, trial],
        mean_shifts_px=(row_sums * normaliser)[:, None].matmul(shifts_px)[:, 0],
        confidence=normaliser[:, 0],
        log_evidence=highest - (normaliser[:, 0] * weights[..., 0].numel()).log(),
    )
    return weights, normaliser.expand(count, trials).reshape(-1), posterior


def disk_trials(
    radius_px: float, spacing_px: float, count: int, generator: torch.Generator, device: torch.device
) -> Float[Tensor, "particles trials 2"]:
    """The same trial shifts for all images: a triangular lattice over a disk about the centre of the box.

    Args:
        radius_px: of the disk.
        spacing_px: of the lattice, which is turned and moved at random.
        count: how many images.
        generator: of the turn and the move.
        device: where the shifts are wanted.
    """
    reach = int(radius_px / spacing_px) + 2
    steps = torch.arange(-2 * reach, 2 * reach + 1)
    turn, *move = torch.rand(3, generator=generator).tolist()
    lattice = torch.cartesian_prod(steps, steps) + torch.tensor(move)
    x, y = (lattice[:, 0] + 0.5 * lattice[:, 1]) * spacing_px, lattice[:, 1] * (0.75**0.5 * spacing_px)
    angle = torch.tensor(turn * torch.pi / 3)
    turned = torch.stack([x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()], -1)
    return turned[turned.norm(dim=1) <= radius_px].to(device).expand(count, -1, -1)


def hexagonal_trials(
    centres_px: Float[Tensor, "particles 2"], spacing_px: float, count: int, generator: torch.Generator
) -> Float[Tensor, "particles trials 2"]:
    """Trial shifts around the present ones: the centre, then the corners of a randomly turned polygon.

    Args:
        centres_px: present shifts.
        spacing_px: from the centre to the corners.
        count: how many in all; 1 is the centre alone, 7 a hexagon.
        generator: of the turn.
    """
    corners: Int[Tensor, " corners"] = torch.arange(max(0, count - 1))
    turn = torch.rand(1, generator=generator)
    angles = ((corners + turn) * (2 * torch.pi / max(1, count - 1))).to(centres_px.device)
    steps = torch.cat([centres_px.new_zeros(1, 2), spacing_px * torch.stack([angles.cos(), angles.sin()], -1)])
    return centres_px[:, None] + steps
