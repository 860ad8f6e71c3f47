"""E-step: posterior of each particle over a grid of poses and a few offsets."""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.events import Event, Progress
from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.domain.pose import PoseSet
from cryoeq.reconstruction.particle_transforms import LikelihoodTerms, ParticleTransforms
from cryoeq.reconstruction.pose_likelihood import PoseLikelihood
from cryoeq.reconstruction.pose_scores import MIN_LOG_WEIGHT, PoseScores, PoseWeights, pose_scores
from cryoeq.runtime.batching import in_parallel, numbers_at_a_time, return_large_arrays
from cryoeq.runtime.random_streams import to_device_async

# Log-likelihoods in memory at a time: few enough for a processor's cache, enough for its matrix products.
LOG_LIKELIHOODS_ON_CPU = 2**21


@dataclass(frozen=True)
class BestPoses(ParticleRows):
    """The most probable pose of each particle under each map.

    Args:
        rotations: RELION's matrices A.
        shifts_px: offsets.
        log_likelihood: of these poses, with the prior of offset and map.
    """

    rotations: Float[Tensor, "particles classes 3 3"]
    shifts_px: Float[Tensor, "particles classes 2"]
    log_likelihood: Float[Tensor, "particles classes"]

    @classmethod
    def unknown(cls, count: int, n_classes: int, device: torch.device) -> "BestPoses":
        """No pose is known yet."""
        rotations = torch.eye(3, device=device).expand(count, n_classes, 3, 3).contiguous()
        shifts, scores = (torch.zeros(count, n_classes, *shape, device=device) for shape in ((2,), ()))
        return cls(rotations, shifts, scores)

    def better_of(self, other: "BestPoses") -> "BestPoses":
        """Of each particle under each map, the pose of the higher log-likelihood; these, where they are equal."""
        is_better = other.log_likelihood > self.log_likelihood
        return BestPoses(
            torch.where(is_better[..., None, None], other.rotations, self.rotations),
            torch.where(is_better[..., None], other.shifts_px, self.shifts_px),
            torch.where(is_better, other.log_likelihood, self.log_likelihood),
        )

    def poses_of(self, of_class: Int[Tensor, " particles"], box_size_px: int) -> PoseSet:
        """The pose of each particle under one map.

        Args:
            of_class: index of the map for each particle.
            box_size_px: side of the box in whose pixels the offsets are.
        """
        particle = torch.arange(len(of_class), device=of_class.device)
        return PoseSet(self.rotations[particle, of_class], self.shifts_px[particle, of_class], box_size_px)


@dataclass(frozen=True)
class Posterior(ParticleRows):
    """Summary of the posterior of each particle over all poses of a grid.

    Args:
        poses: the most probable pose.
        mean_shifts_px: posterior mean of the offset.
        confidence: probability of the most probable pose of the grid (rlnMaxValueProbDistribution).
        log_evidence: log of the mean likelihood over the grid (log marginal likelihood), up to a constant of the image.
        class_probability: probability of each map; what is missing to 1 is that of noise alone.
        best: the most probable pose under each map.
    """

    poses: PoseSet
    mean_shifts_px: Float[Tensor, "particles 2"]
    confidence: Float[Tensor, " particles"]
    log_evidence: Float[Tensor, " particles"]
    class_probability: Float[Tensor, "particles classes"]
    best: BestPoses

    @classmethod
    def empty(cls, box_size_px: int, device: torch.device, n_classes: int = 1) -> "Posterior":
        """The posterior of no particle."""
        numbers, pairs = torch.zeros(0, device=device), torch.zeros(0, 2, device=device)
        poses, best = PoseSet.identity(0, box_size_px, device), BestPoses.unknown(0, n_classes, device)
        return cls(poses, pairs, numbers, numbers, torch.zeros(0, n_classes, device=device), best)


@dataclass(frozen=True)
class EStepResult:
    """Sufficient statistics of one pass over particles.

    Args:
        sums: posterior-weighted sums of the images per view.
        posterior: summary for each particle.
    """

    sums: LikelihoodTerms
    posterior: Posterior


@runtime_checkable
class EStep(Protocol):
    """Posterior of each particle over poses of a grid, and the sums of the images: ``expectation_step``, or another."""

    def __call__(
        self,
        particles: ParticleTransforms,
        likelihood: PoseLikelihood,
        offsets_px: Float[Tensor, "rows offsets 2"],
        *,
        shift_sigma_px: float,
        rows: Int[Tensor, " rows"] | None = None,
        temperature: float | Float[Tensor, ""] = 1.0,
        class_shares: Float[Tensor, " classes"] | None = None,
        null_share: float = 0.0,
        progress: Callable[[int], Event] | None = None,
    ) -> Generator[Event, None, EStepResult]:
        """As ``expectation_step``."""


def expectation_step(
    particles: ParticleTransforms,
    likelihood: PoseLikelihood,
    offsets_px: Float[Tensor, "rows offsets 2"],
    *,
    shift_sigma_px: float,
    rows: Int[Tensor, " rows"] | None = None,
    temperature: float | Float[Tensor, ""] = 1.0,
    class_shares: Float[Tensor, " classes"] | None = None,
    null_share: float = 0.0,
    progress: Callable[[int], Event] | None = None,
) -> Generator[Event, None, EStepResult]:
    """Posterior of each particle, in small batches, and the sums of the images; an event after each but the last.

    Args:
        particles: particles up to the radius of the likelihood.
        likelihood: likelihood of the poses of a grid under the current map.
        offsets_px: offsets of each particle that takes part.
        shift_sigma_px: standard deviation of the normal prior of offsets, per axis; 0 for a flat prior.
        rows: particles that take part, copied a batch at a time only; None for all.
        temperature: divisor of the log-likelihood; 1 gives the posterior, more keeps an early map from deciding.
        class_shares: prior probability of each map of the likelihood; None where all are alike.
        null_share: prior probability that an image shows none of the maps, but noise alone.
        progress: the event after a number of particles.
    """
    if len(offsets_px) == 0:  # another process's
        nothing = Posterior.empty(particles.plane.box_size_px, particles.device, likelihood.n_maps)
        return EStepResult(likelihood.no_images(), nothing)
    prior = _Prior(shift_sigma_px, temperature, class_shares, null_share)
    step = _Step(particles, likelihood, offsets_px, rows, prior)
    results = in_parallel(step.sum_images, step.batches())
    sums, posterior = next(results)
    posteriors, done = [posterior], len(posterior.confidence)
    for batch_sums, posterior in results:
        yield progress(done) if progress else Progress("expectation", done, len(offsets_px))
        sums = sums + batch_sums
        posteriors.append(posterior)
        done += len(posterior.confidence)
    return EStepResult(sums, Posterior.cat(posteriors))


def pose_posterior(
    particles: ParticleTransforms,
    likelihood: PoseLikelihood,
    offsets_px: Float[Tensor, "rows offsets 2"],
    *,
    shift_sigma_px: float,
    rows: Int[Tensor, " rows"] | None = None,
    class_shares: Float[Tensor, " classes"] | None = None,
    null_share: float = 0.0,
) -> Posterior:
    """The posterior of ``expectation_step`` alone, without the sums of the images.

    Args:
        particles: particles up to the radius of the likelihood.
        likelihood: likelihood of the poses of a grid under the current map.
        offsets_px: offsets of each particle that takes part.
        shift_sigma_px: standard deviation of the normal prior of offsets, per axis; 0 for a flat prior.
        rows: particles that take part, copied a batch at a time only; None for all.
        class_shares: prior probability of each map of the likelihood; None where all are alike.
        null_share: prior probability that an image shows none of the maps, but noise alone.
    """
    nothing = Posterior.empty(particles.plane.box_size_px, particles.device, likelihood.n_maps)
    if len(offsets_px) == 0:  # another process's
        return nothing
    step = _Step(particles, likelihood, offsets_px, rows, _Prior(shift_sigma_px, 1.0, class_shares, null_share))
    return Posterior.cat([nothing, *in_parallel(step.posterior, step.batches())])


@dataclass(frozen=True)
class _Prior:
    """What the posterior depends on beside the likelihood; see ``expectation_step``."""

    shift_sigma_px: float
    temperature: float | Float[Tensor, ""]
    class_shares: Float[Tensor, " classes"] | None
    null_share: float

    def of_offsets(self, offsets_px: Float[Tensor, "particles offsets 2"]) -> Float[Tensor, "particles offsets"] | None:
        """Logarithm of the prior of each offset; None for a flat one."""
        return -0.5 * offsets_px.square().sum(-1) / self.shift_sigma_px**2 if self.shift_sigma_px > 0 else None


@dataclass(frozen=True)
class _Step:
    """An E-step; see ``expectation_step``."""

    particles: ParticleTransforms
    likelihood: PoseLikelihood
    offsets_px: Float[Tensor, "rows offsets 2"]
    rows: Int[Tensor, " rows"] | None
    prior: _Prior

    def batches(self) -> tuple[Int[Tensor, " batch"], ...]:
        """Numbers of the rows of each batch."""
        grid, device = self.likelihood.grid, self.offsets_px.device
        hypotheses = len(grid.inplane_rad) * 2 * len(grid.views) * self.likelihood.n_maps
        size = numbers_at_a_time(self.particles.device, LOG_LIKELIHOODS_ON_CPU)
        count = max(1, size // (hypotheses * self.offsets_px.shape[1]))
        if count == 1 and device.type == "cpu":  # each has other numbers of offsets and of significant poses
            return_large_arrays()
        return torch.arange(len(self.offsets_px), device=device).split(count)

    def sum_images(self, batch: Int[Tensor, " batch"]) -> tuple[LikelihoodTerms, Posterior]:
        """Sums of the images of a batch, and their posterior."""
        terms = self._terms(batch)
        weights, normaliser, posterior = self._normalise(terms, self.offsets_px[batch], for_images=True)
        return weights.sum_images(terms.scaled(normaliser)), posterior

    def posterior(self, batch: Int[Tensor, " batch"]) -> Posterior:
        """Posterior of a batch."""
        return self._normalise(self._terms(batch), self.offsets_px[batch], for_images=False)[2]

    def _terms(self, batch: Int[Tensor, " batch"]) -> LikelihoodTerms:
        rows = batch if self.rows is None else self.rows[batch]
        return self.particles.rows(rows).at_offsets(self.offsets_px[batch], self.likelihood.harmonics)

    def _normalise(
        self, terms: LikelihoodTerms, offsets_px: Float[Tensor, "particles offsets 2"], *, for_images: bool
    ) -> tuple[PoseWeights, Float[Tensor, " rows"], Posterior]:
        """Unnormalised posterior, the factor that normalises each of its rows, and its summary."""
        count, n_offsets = offsets_px.shape[:2]
        likelihood, prior, log_prior = self.likelihood, self.prior, self.prior.of_offsets(offsets_px)
        scores = pose_scores(likelihood, terms, log_prior, prior.class_shares)
        of_hypotheses = scores.highest()
        best = _best_of_each_class(scores, of_hypotheses, likelihood, offsets_px)
        highest, of_class = best.log_likelihood.max(1)
        weights = scores.weights(of_hypotheses, highest, prior.temperature, for_images=for_images)
        of_maps = weights.sums.view(-1, count, n_offsets)
        row_sums = of_maps.sum(0)
        sums, poses = row_sums.sum(1, keepdim=True), len(likelihood.grid.inplane_rad) * len(of_hypotheses)
        if prior.null_share > 0:
            # The likelihood of noise alone is 1, as that of a map that is 0.
            of_noise = -highest[:, None] if log_prior is None else log_prior - highest[:, None]
            of_noise = of_noise + math.log(prior.null_share)
            of_noise = of_noise.div(prior.temperature).clamp(min=MIN_LOG_WEIGHT).exp()
            sums = sums + poses * of_noise.expand(-1, n_offsets).sum(1, keepdim=True)
        normaliser = sums.reciprocal()
        posterior = Posterior(
            poses=best.poses_of(of_class, likelihood.harmonics.plane.box_size_px),
            mean_shifts_px=(row_sums * normaliser)[:, None].matmul(offsets_px)[:, 0],
            confidence=normaliser[:, 0],
            log_evidence=highest - (normaliser[:, 0] * poses).log(),
            class_probability=of_maps.sum(2).T * normaliser,
            best=best,
        )
        return weights, normaliser.expand(count, n_offsets).reshape(-1), posterior


def _best_of_each_class(
    scores: PoseScores,
    highest: Float[Tensor, "hypotheses rows"],
    likelihood: PoseLikelihood,
    offsets_px: Float[Tensor, "particles offsets 2"],
) -> BestPoses:
    """The pose of the highest score under each map."""
    (count, n_offsets), n_maps = offsets_px.shape[:2], likelihood.n_maps
    views = len(highest) // (2 * n_maps)
    of_map = highest.view(2, n_maps, views, -1).transpose(0, 1).reshape(n_maps, 2 * views, -1)
    by_row, hypothesis = of_map.max(1)
    best, offset = by_row.view(n_maps, count, n_offsets).max(2)
    particle = torch.arange(count, device=offset.device)
    row = particle * n_offsets + offset
    hypothesis = hypothesis.gather(1, row)
    view, is_mirrored = hypothesis % views, hypothesis >= views
    number = torch.arange(n_maps, device=offset.device)[:, None]
    angle = scores.over_angles((is_mirrored * n_maps + number) * views + view, row).argmax(0)
    rotations = likelihood.grid.rotations(angle.flatten(), hypothesis.flatten())
    return BestPoses(
        rotations.view(n_maps, count, 3, 3).transpose(0, 1), offsets_px[particle, offset].transpose(0, 1), best.T
    )


def offset_step_px(box_size_px: int, radius: float, per_wavelength: float) -> float:
    """Distance of neighbouring offsets, in pixels of the box.

    Args:
        box_size_px: side of the box.
        radius: resolution of the comparison, in cycles per box: its wavelength is the box over the radius.
        per_wavelength: offsets for each wavelength.
    """
    return box_size_px / (per_wavelength * radius)


def disk_offsets(
    radius_px: float, spacing_px: float, count: int, generator: torch.Generator, device: torch.device
) -> Float[Tensor, "particles offsets 2"]:
    """The same offsets for all particles: a triangular lattice over a disk about the centre of the box.

    Where no point of the lattice is within a disk that is smaller than its cells, there is one offset, zero.

    Args:
        radius_px: radius of the disk.
        spacing_px: distance of neighbours in the lattice, which is rotated and moved at random.
        count: number of particles.
        generator: random number generator.
        device: device of the offsets.
    """
    reach = int(radius_px / spacing_px) + 2
    steps = torch.arange(-2 * reach, 2 * reach + 1)
    rotation, *move = torch.rand(3, generator=generator).tolist()
    lattice = torch.cartesian_prod(steps, steps) + torch.tensor(move)
    x, y = (lattice[:, 0] + 0.5 * lattice[:, 1]) * spacing_px, lattice[:, 1] * (0.75**0.5 * spacing_px)
    angle = torch.tensor(rotation * torch.pi / 3)
    rotated = torch.stack([x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()], -1)
    inside = rotated[rotated.norm(dim=1) <= radius_px]
    return to_device_async(inside if len(inside) else torch.zeros(1, 2), device).expand(count, -1, -1)


def hexagonal_offsets(
    centres_px: Float[Tensor, "particles 2"], spacing_px: float, count: int, generator: torch.Generator
) -> Float[Tensor, "particles offsets 2"]:
    """Offsets around the present ones: the centre, then the corners of a randomly rotated polygon.

    Args:
        centres_px: present offsets.
        spacing_px: distance from the centre to the corners.
        count: number of offsets; 1 is the centre alone, 7 a hexagon.
        generator: random number generator.
    """
    steps = polygon(spacing_px, count, generator)
    return centres_px[:, None] + to_device_async(steps.to(centres_px.dtype), centres_px.device)


def polygon(spacing_px: float, count: int, generator: torch.Generator) -> Float[Tensor, "offsets 2"]:
    """Zero, and the corners of a randomly rotated polygon around it, as ``hexagonal_offsets`` has them; on the CPU.

    Args:
        spacing_px: distance from the centre to the corners.
        count: number of offsets.
        generator: random number generator.
    """
    corners: Int[Tensor, " corners"] = torch.arange(max(0, count - 1))
    rotation = float(torch.rand(1, generator=generator))
    angles = (corners + rotation) * (2 * torch.pi / max(1, count - 1))
    return torch.cat([torch.zeros(1, 2), spacing_px * torch.stack([angles.cos(), angles.sin()], -1)])
