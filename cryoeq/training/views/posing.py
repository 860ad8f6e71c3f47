"""Particles to poses by a view encoder: local refinement, and how far each pose is to be trusted.

Two numbers tell a wrong pose. The margin: how much more likely the best view is than the best one that is not near it.
And the fit: the log-likelihood of a right pose has an expectation and a standard deviation that follow from the map and
the CTF alone, so that images of all views compare::

    E[log p] = 1/2 sum_k p_k C_k^2 |P_k|^2 = S / 2,        sd[log p] = sqrt(S)

A logistic regression on images of known pose makes a probability of them. Particles of too low a probability are
searched as in a reconstruction, over all poses and offsets; the more likely pose stays.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.so3 import rotation_angle_rad
from cryoeq.physics.projection import extract_slices
from cryoeq.reconstruction.global_realignment import search_poses_exhaustively
from cryoeq.reconstruction.local_refinement import RefinedPoses, refine_poses
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.pose_likelihood import COARSE_SHELL
from cryoeq.reconstruction.reference import Reference
from cryoeq.reconstruction.state import RefinementSettings
from cryoeq.training.views.encoder import ViewEncoder

RIGHT_RAD = math.radians(10.0)
"""Error up to which a pose counts as right in the calibration."""
_REFINED = 2  # poses of each particle that are refined
_BATCH = 256
_MOST_DEVIATIONS = 8.0
_RIDGE, _NEWTON_STEPS = 1.0, 30
_FRAME = 0  # seed of the search's grid: the same for all batches


@dataclass(frozen=True)
class InferredPoses(ParticleRows):
    """Poses of particles that no iteration has seen.

    Args:
        poses: the most likely.
        log_likelihood: of these poses up to the encoder's last shell, with the prior of the offset.
        margin: log-likelihood of the view over that of the best one that is not near it.
        fit: log-likelihood, in standard deviations from that of a right pose.
        is_searched: whether a search over all poses found the pose.
    """

    poses: PoseSet
    log_likelihood: Float[Tensor, " particles"]
    margin: Float[Tensor, " particles"]
    fit: Float[Tensor, " particles"]
    is_searched: Bool[Tensor, " particles"]


@dataclass(frozen=True)
class Calibration:
    """Probability that a pose is right, a logistic function of margin and fit.

    Args:
        weights: of a constant, of the logarithm of the margin, and of the fit.
    """

    weights: Float[Tensor, " 3"]

    @classmethod
    def fitted(
        cls,
        margin: Float[Tensor, " images"],
        fit: Float[Tensor, " images"],
        is_right: Bool[Tensor, " images"],
    ) -> "Calibration":
        """By images of known pose: Newton's steps with a little ridge, so that there is a maximum.

        Args:
            margin: of their inferred poses.
            fit: of these.
            is_right: whether each is right.
        """
        features, truth = _features(margin, fit).double(), is_right.double()
        weights = features.new_zeros(3)
        ridge = torch.eye(3, dtype=features.dtype, device=features.device) * _RIDGE
        for _ in range(_NEWTON_STEPS):
            found = torch.sigmoid(features @ weights)
            gradient = features.T @ (truth - found) - ridge @ weights
            curvature = (features * (found * (1 - found))[:, None]).T @ features + ridge
            weights = weights + torch.linalg.solve(curvature, gradient)
        return cls(weights.float())

    def probability(self, inferred: InferredPoses) -> Float[Tensor, " particles"]:
        """Probability that each pose is right."""
        return torch.sigmoid((_features(inferred.margin, inferred.fit) * self.weights).sum(1))


@dataclass(frozen=True)
class ViewPoser:
    """Poses particles against one map.

    Args:
        encoder: trained on the map.
        reference: the map and the noise at the particles' box, for local refinement.
    """

    encoder: ViewEncoder
    reference: Reference

    @torch.no_grad()
    def pose(self, particles: ParticleTransforms, *, refines: bool) -> InferredPoses:
        """Poses by the encoder.

        Args:
            particles: at their own box.
            refines: whether poses are refined up to the encoder's last shell.
        """
        posed, small = self.encoder.pose(particles), self._small(particles)
        n, box = particles.plane.box_size_px, small.plane.box_size_px
        count = min(_REFINED, posed.log_likelihood.shape[1]) if refines else 1
        starts = [posed.poses.each(lambda values, k=k: values[:, k]).in_box(box) for k in range(count)]  # type: ignore[misc]
        found = [self._refined(small, start) for start in starts] if refines else []
        best = _best_of(found) if found else RefinedPoses(starts[0], posed.log_likelihood[:, 0], posed.margin)
        fit = self._fit(small, best.poses)
        nowhere = torch.zeros(len(particles), dtype=torch.bool, device=particles.device)
        return InferredPoses(best.poses.in_box(n), best.log_likelihood, posed.margin, fit, nowhere)

    @torch.no_grad()
    def search(self, particles: ParticleTransforms, before: InferredPoses) -> InferredPoses:
        """The poses of a search over all views, angles and offsets, where they are more likely.

        Args:
            particles: at their own box.
            before: their poses by the encoder, refined.
        """
        small, n = self._small(particles), particles.plane.box_size_px
        settings, box = self.search_settings(), small.plane.box_size_px
        rows = torch.arange(len(particles), device=particles.device)
        generator = torch.Generator().manual_seed(_FRAME)
        posterior = search_poses_exhaustively(small, rows, self.encoder.reference, settings, generator)
        coarse = small.within(min(COARSE_SHELL, settings.max_exhaustive_shell), box)
        nearby = refine_poses(coarse, self.encoder.reference, posterior.poses, shift_sigma_px=settings.shift_sigma_px)
        found = self._refined(small, nearby.poses)
        better = (found.log_likelihood > before.log_likelihood).nonzero().squeeze(1)
        gain = (found.log_likelihood - before.log_likelihood)[better]
        new = InferredPoses(
            found.poses.in_box(n).rows(better),
            found.log_likelihood[better],
            torch.where(self._is_other(found.poses, before.poses)[better], gain, before.margin[better]),
            self._fit(small.rows(better), found.poses.rows(better)) if len(better) else gain,
            torch.ones_like(better, dtype=torch.bool),
        )
        return before.with_rows(better, new)

    @torch.no_grad()
    def refine_to_end(self, particles: ParticleTransforms, poses: PoseSet) -> PoseSet:
        """Poses refined in steps of about twice the radius up to the last shell of the particles.

        Args:
            particles: at their own box.
            poses: refined up to the encoder's last shell.
        """
        n, first = particles.plane.box_size_px, self.encoder.last_shell
        last = n // 2 - 1
        doublings = round(math.log2(last / first))
        for done in range(1, doublings + 1):
            radius = round(first * (last / first) ** (done / doublings))
            sigma_px = self.encoder.settings.shift_sigma * n
            poses = refine_poses(particles.within(radius, n), self.reference, poses, shift_sigma_px=sigma_px).poses
        return poses

    def _small(self, particles: ParticleTransforms) -> ParticleTransforms:
        return particles.within(self.encoder.fine.harmonics.plane.last_radius, self.encoder.box_size_px)

    def _refined(self, small: ParticleTransforms, poses: PoseSet) -> RefinedPoses:
        sigma_px = self.encoder.settings.shift_sigma * small.plane.box_size_px
        return refine_poses(small, self.encoder.reference, poses, shift_sigma_px=sigma_px)

    def _is_other(self, poses: PoseSet, others: PoseSet) -> Bool[Tensor, " particles"]:
        return rotation_angle_rad(poses.rotations, others.rotations) > RIGHT_RAD

    def _fit(self, small: ParticleTransforms, poses: PoseSet) -> Float[Tensor, " particles"]:
        """Log-likelihoods minus their expectation under the pose, over their standard deviation."""
        reference, weights, found = self.encoder.reference, self.encoder.reference.weights(small.plane), []
        for rows in torch.arange(len(small), device=small.device).split(_BATCH):
            some = rows if len(rows) > 1 else rows.repeat(2)  # a single row is summed in another order
            images, there = small.rows(some), poses.rows(some)
            slices = extract_slices(reference.padded, there.rotations, small.plane)
            overlap = ((images.centred(there.shifts_px) * slices.conj()).real * weights).sum(1)
            signal = (images.ctf_squared * slices.abs().square() * weights).sum(1)
            found.append(((overlap - signal) / signal.clamp(min=1e-6).sqrt())[: len(rows)])
        return torch.cat(found)

    def search_settings(self) -> RefinementSettings:
        """Settings of a search of particles up to the encoder's last shell, in the encoder's box."""
        settings, last = self.encoder.settings, self.encoder.last_shell
        return RefinementSettings(
            consensus_shells=(last,),
            max_extra_iterations=0,
            max_particles=1,
            iterations=1,
            max_exhaustive_shell=last,
            local_iterations=0,
            n_offsets=1,
            shift_sigma_px=settings.shift_sigma * self.encoder.box_size_px,
            mask_radius=settings.mask_radius,
            symmetry=settings.symmetry.to(self.reference.volume),
            box_side_angstrom=float(self.encoder.box_size_px),
        )


def errors_rad(poses: PoseSet, truth: PoseSet, symmetry: Float[Tensor, "order 3 3"]) -> Float[Tensor, " particles"]:
    """Angle between poses and true ones, up to the symmetry of the map."""
    turned = truth.rotations[:, None] @ symmetry.to(truth.rotations)
    found: Float[Tensor, " particles"] = rotation_angle_rad(poses.rotations[:, None].expand_as(turned), turned).amin(1)
    return found


def _best_of(refined: list[RefinedPoses]) -> RefinedPoses:
    """The more likely of several refined poses of each particle."""
    best = refined[0]
    for other in refined[1:]:
        better: Int[Tensor, " better"] = (other.log_likelihood > best.log_likelihood).nonzero().squeeze(1)
        best = best.with_rows(better, other.rows(better))
    return best


def _features(margin: Float[Tensor, " images"], fit: Float[Tensor, " images"]) -> Float[Tensor, "images 3"]:
    fit = fit.clamp(-_MOST_DEVIATIONS, _MOST_DEVIATIONS)
    return torch.stack([torch.ones_like(fit), margin.clamp(min=0).log1p(), fit], 1)
