"""Evidence on particles: how they agree with the map of the half that they are not in, at their pose and at others."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from cryoeq.domain.particles import ParticleBatch
from cryoeq.domain.pose import Poses, PoseSet
from cryoeq.domain.volume import Volume
from cryoeq.geometry.fourier import HalfPlane, crop_centred, fft_map, ifft_map
from cryoeq.geometry.so3_grid import so3_grid
from cryoeq.physics.ctf import image_transfer
from cryoeq.physics.image_formation import undo_optics
from cryoeq.physics.noise import background_noise_variance
from cryoeq.physics.projection import extract_slices, prepare_slices

_GRID_ORDER, _IN_PLANE = 2, 12
_PARTICLE_RADIUS = 0.75  # of half the box
_LEAST_SHELL = 4


@dataclass(frozen=True)
class ParticleFeatures:
    """Figures of particles against a map that was made without them.

    Args:
        rows: which particle of the stack each is; two pieces of evidence on one particle share it.
        errors: 1 less the correlation with the projection at the particle's pose.
        features: all figures that a learnt score sees, of any scale.
        directions: unit vectors; a graph joins particles with small angles between them. Those of the views, or
            embeddings of class averages.
    """

    rows: Int[Tensor, " particles"]
    errors: Float[Tensor, " particles"]
    features: Float[Tensor, "particles features"]
    directions: Float[Tensor, "particles coordinates"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: Int[Tensor, " chosen"]) -> "ParticleFeatures":
        return ParticleFeatures(self.rows[chosen], self.errors[chosen], self.features[chosen], self.directions[chosen])


@dataclass(frozen=True)
class LabelledFeatures:
    """Evidence on particles some of which were spoilt on purpose.

    Args:
        evidence: on all of them.
        is_junk: 1 for those that were spoilt; the others are as the stack has them.
        is_labelled: which labels to learn from: not those of particles that look doubtful as they are.
    """

    evidence: ParticleFeatures
    is_junk: Float[Tensor, " particles"]
    is_labelled: Bool[Tensor, " particles"]


@dataclass(frozen=True)
class MatchedImages:
    """Images ready to be compared with projections: sums over coefficients, each divided by its noise variance.

    Args:
        matched: images centred and multiplied by their transfer.
        power: transfer squared.
        energy: of the image itself.
        inside: log of the mean square within the particle's radius, after the low-pass.
        outside: the same beyond it.
    """

    matched: Complex[Tensor, "batch points"]
    power: Float[Tensor, "batch points"]
    energy: Float[Tensor, " batch"]
    inside: Float[Tensor, " batch"]
    outside: Float[Tensor, " batch"]


@dataclass(frozen=True)
class ReferenceProjections:
    """Projections of maps in even views, up to the resolution at which particles are compared.

    Args:
        plane: coefficients within that resolution.
        pixel_size_angstrom: of the images.
        precision: 1 / noise variance of each coefficient, 0 at the origin.
        padded: transforms of the maps.
        grid: rotations of the even views.
        slices: of each map in them.
    """

    plane: HalfPlane
    pixel_size_angstrom: float
    precision: Float[Tensor, " points"]
    padded: tuple[Complex[Tensor, "m m m"], ...]
    grid: Float[Tensor, "rotations 3 3"]
    slices: tuple[Complex[Tensor, "rotations points"], ...]

    @classmethod
    def of(
        cls, maps: tuple[Volume, ...], sample: Float[Tensor, "batch n n"], side_angstrom: float, limit_angstrom: float
    ) -> "ReferenceProjections":
        """Prepare maps.

        Args:
            maps: one, or two of which particles of half set 1 are compared with the first.
            sample: some images, at the box in which they are compared, for the noise.
            side_angstrom: of the box.
            limit_angstrom: finest detail to compare; four shells at least.
        """
        n = sample.shape[-1]
        radius = min(max(side_angstrom / limit_angstrom, _LEAST_SHELL), n / 2 - 1e-3)
        plane = HalfPlane.up_to(n, radius, sample.device)
        variance = background_noise_variance(sample, _PARTICLE_RADIUS * n / 2)
        precision = torch.where(plane.radii > 0, plane.weights / variance[plane.shells.clamp(max=n // 2)], 0.0)
        padded = tuple(prepare_slices(ifft_map(crop_centred(fft_map(volume.values.float()), n, 3))) for volume in maps)
        grid = so3_grid(_GRID_ORDER, _IN_PLANE, device=sample.device)
        slices = tuple(extract_slices(transform, grid, plane) for transform in padded)
        return cls(plane, side_angstrom / n, precision, padded, grid, slices)

    def match(self, batch: ParticleBatch, poses: Poses) -> MatchedImages:
        """Centre images and multiply them by their transfer."""
        observed = self.plane.transform(batch.images)
        transfer = torch.ones_like(observed.real)
        if batch.ctf is not None:
            transfer = image_transfer(batch.ctf, self.plane.frequencies_per_angstrom(self.pixel_size_angstrom))
        n = batch.images.shape[-1]
        shifts_px = PoseSet.from_angstrom(poses, self.pixel_size_angstrom, n).shifts_px
        axis = torch.arange(n, device=observed.device) - n // 2
        is_inside = axis.square() + axis[:, None].square() < (_PARTICLE_RADIUS * n / 2) ** 2
        square = self.plane.images(observed).square()
        return MatchedImages(
            undo_optics(observed, shifts_px, transfer, self.plane),
            transfer.square(),
            (self.precision * observed.abs().square()).sum(1),
            square[:, is_inside].mean(1).clamp(min=1e-12).log(),
            square[:, ~is_inside].mean(1).clamp(min=1e-12).log(),
        )

    def correlate_grid(self, images: MatchedImages, which: Int[Tensor, " batch"]) -> Float[Tensor, "batch rotations"]:
        """Correlation of each image with the projections of its map in all even views.

        Args:
            images: the images.
            which: of the maps each is compared with.
        """
        found = torch.zeros(len(which), len(self.grid), device=images.power.device)
        for number, slices in enumerate(self.slices):
            own = (which == number).nonzero().squeeze(1)
            weighted = torch.view_as_real(images.matched[own] * self.precision).flatten(1)
            cross = weighted @ torch.view_as_real(slices).flatten(1).T
            power = (images.power[own] * self.precision) @ slices.abs().square().T
            norm = (power * images.energy[own, None]).clamp(min=torch.finfo(power.dtype).tiny).sqrt()
            found = found.index_put((own,), cross / norm)
        return found

    def best_rotations(self, images: MatchedImages, which: Int[Tensor, " batch"]) -> Float[Tensor, "batch 3 3"]:
        """The even view in which each image agrees best, as a search would find for whatever it is given."""
        return self.grid[self.correlate_grid(images, which).argmax(1)]


def measure_particle_features(
    references: ReferenceProjections, images: MatchedImages, poses: Poses, rows: Int[Tensor, " batch"],
    which: Int[Tensor, " batch"],
) -> ParticleFeatures:  # fmt: skip
    """Figures of some particles: agreement at the pose, by frequency, against that at other poses, and image power.

    Args:
        references: the maps' projections.
        images: from ``match``.
        poses: of these particles.
        rows: which particles of the stack they are.
        which: of the maps each is compared with.
    """
    plane, precision = references.plane, references.precision
    slices = torch.zeros_like(images.matched)
    for number, padded in enumerate(references.padded):
        own = (which == number).nonzero().squeeze(1)
        if not len(own):  # nothing can be sampled nowhere
            continue
        slices = slices.index_put((own,), extract_slices(padded, poses.rotations[own].float(), plane))
    cross = precision * (images.matched * slices.conj()).real
    power = precision * images.power * slices.abs().square()
    is_coarse = plane.radii <= float(plane.radii.max()) / math.sqrt(2)
    tiny = torch.finfo(power.dtype).tiny
    energy = images.energy.clamp(min=tiny)

    def correlation(part: Tensor) -> Tensor:
        return cross[:, part].sum(1) / (power[:, part].sum(1) * energy).clamp(min=tiny).sqrt()

    everywhere = correlation(torch.ones_like(is_coarse))
    elsewhere = references.correlate_grid(images, which)
    mean, spread = elsewhere.mean(1), elsewhere.std(1).clamp(min=1e-6)
    features = [
        everywhere, correlation(is_coarse), correlation(~is_coarse),
        cross.sum(1) / power.sum(1).clamp(min=tiny),
        elsewhere.amax(1) - everywhere, (everywhere - mean) / spread, (elsewhere.amax(1) - mean) / spread,
        images.inside, images.outside,
    ]  # fmt: skip
    return ParticleFeatures(rows, 1 - everywhere, torch.stack(features, 1), poses.rotations[:, 2])
