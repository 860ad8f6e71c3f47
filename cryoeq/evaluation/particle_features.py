"""Features of particles for screening: agreement with the other half set's map at the assigned pose and elsewhere."""

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
_MIN_SHELL = 4


@dataclass(frozen=True)
class ParticleFeatures:
    """Features of particles, measured against a map that was made without them.

    Args:
        rows: row of the particle table for each entry; copies of a particle share it.
        errors: 1 minus the correlation with the projection at the particle's pose, from 0 to 2.
        features: input of learnt scorers, each column in units of its own.
        directions: viewing directions, unit vectors.
    """

    rows: Int[Tensor, " particles"]
    errors: Float[Tensor, " particles"]
    features: Float[Tensor, "particles features"]
    directions: Float[Tensor, "particles 3"]


@dataclass(frozen=True)
class LabelledFeatures:
    """Training examples of a scorer: features of particles some of which were replaced by synthetic outliers.

    Args:
        features: features of all of them.
        is_outlier: 1 for a synthetic outlier, 0 for an unchanged particle.
        is_labelled: False for an unchanged particle that may itself be an outlier, so that it is no example.
    """

    features: ParticleFeatures
    is_outlier: Float[Tensor, " particles"]
    is_labelled: Bool[Tensor, " particles"]


@dataclass(frozen=True)
class CentredTransforms:
    """Centred Fourier coefficients of images up to the resolution of the comparison, and the power of the images.

    Args:
        ctf_multiplied: centred coefficients times the transfer function.
        ctf_squared: squared transfer function.
        energy: sum of the squared coefficients, each divided by its noise variance.
        log_power_inside: natural log of the mean square of the low-passed image within the particle's radius.
        log_power_outside: natural log of the mean square of the low-passed image beyond that radius.
    """

    ctf_multiplied: Complex[Tensor, "batch points"]
    ctf_squared: Float[Tensor, "batch points"]
    energy: Float[Tensor, " batch"]
    log_power_inside: Float[Tensor, " batch"]
    log_power_outside: Float[Tensor, " batch"]


@dataclass(frozen=True)
class ReferenceProjections:
    """Central slices of one or two maps at evenly spaced poses, up to the resolution of the comparison.

    Args:
        plane: coefficients up to that resolution.
        pixel_size_angstrom: pixel size of the images that are compared.
        precision: inverse noise variance of each coefficient, 0 at the origin.
        padded: padded transform of each map.
        grid: evenly spaced rotations.
        slices: slices of each map at these rotations.
    """

    plane: HalfPlane
    pixel_size_angstrom: float
    precision: Float[Tensor, " points"]
    padded: tuple[Complex[Tensor, "m m m"], ...]
    grid: Float[Tensor, "rotations 3 3"]
    slices: tuple[Complex[Tensor, "rotations points"], ...]

    @classmethod
    def from_maps(
        cls, maps: tuple[Volume, ...], sample: Float[Tensor, "batch n n"], side_angstrom: float, limit_angstrom: float
    ) -> "ReferenceProjections":
        """Slices of maps, and the noise of the images that will be compared with them.

        Args:
            maps: one map for all particles, or one for each half set.
            sample: images from which the noise is estimated, at the box of the comparison.
            side_angstrom: side of the box.
            limit_angstrom: resolution of the comparison; at least four shells are compared.
        """
        n = sample.shape[-1]
        radius = min(max(side_angstrom / limit_angstrom, _MIN_SHELL), n / 2 - 1e-3)
        plane = HalfPlane.up_to(n, radius, sample.device)
        variance = background_noise_variance(sample, _PARTICLE_RADIUS * n / 2)
        precision = torch.where(plane.radii > 0, plane.weights / variance[plane.shells.clamp(max=n // 2)], 0.0)
        padded = tuple(prepare_slices(ifft_map(crop_centred(fft_map(volume.values.float()), n, 3))) for volume in maps)
        grid = so3_grid(_GRID_ORDER, _IN_PLANE, device=sample.device)
        slices = tuple(extract_slices(transform, grid, plane) for transform in padded)
        return cls(plane, side_angstrom / n, precision, padded, grid, slices)

    def transform(self, batch: ParticleBatch, poses: Poses) -> CentredTransforms:
        """Transform images, undo their shifts and multiply them by their CTF."""
        observed = self.plane.transform(batch.images)
        transfer = torch.ones_like(observed.real)
        if batch.ctf is not None:
            transfer = image_transfer(batch.ctf, self.plane.frequencies_per_angstrom(self.pixel_size_angstrom))
        n = batch.images.shape[-1]
        shifts_px = PoseSet.from_angstrom(poses, self.pixel_size_angstrom, n).shifts_px
        axis = torch.arange(n, device=observed.device) - n // 2
        is_inside = axis.square() + axis[:, None].square() < (_PARTICLE_RADIUS * n / 2) ** 2
        square = self.plane.images(observed).square()
        return CentredTransforms(
            undo_optics(observed, shifts_px, transfer, self.plane),
            transfer.square(),
            (self.precision * observed.abs().square()).sum(1),
            square[:, is_inside].mean(1).clamp(min=1e-12).log(),
            square[:, ~is_inside].mean(1).clamp(min=1e-12).log(),
        )

    def correlate_grid(
        self, images: CentredTransforms, map_index: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch rotations"]:
        """Correlation of each image with the projections of its map at all rotations of the grid.

        Args:
            images: centred images.
            map_index: index of the map that each image is compared with.
        """
        correlations = torch.zeros(len(map_index), len(self.grid), device=images.energy.device)
        for number, slices in enumerate(self.slices):
            rows = (map_index == number).nonzero().squeeze(1)
            weighted = torch.view_as_real(images.ctf_multiplied[rows] * self.precision).flatten(1)
            cross = weighted @ torch.view_as_real(slices).flatten(1).T
            power = (images.ctf_squared[rows] * self.precision) @ slices.abs().square().T
            norm = (power * images.energy[rows, None]).clamp(min=torch.finfo(power.dtype).tiny).sqrt()
            correlations = correlations.index_put((rows,), cross / norm)
        return correlations

    def best_rotations(self, images: CentredTransforms, map_index: Int[Tensor, " batch"]) -> Float[Tensor, "batch 3 3"]:
        """The rotation of the grid with the highest correlation: the pose that a search would give to any image."""
        return self.grid[self.correlate_grid(images, map_index).argmax(1)]


def measure_particle_features(
    references: ReferenceProjections, images: CentredTransforms, poses: Poses, rows: Int[Tensor, " batch"],
    map_index: Int[Tensor, " batch"],
) -> ParticleFeatures:  # fmt: skip
    """Correlations at the assigned pose by frequency band and at other poses, amplitude, and power of the image.

    Args:
        references: slices of the maps.
        images: images centred by the shifts of their poses.
        poses: poses of these particles.
        rows: row of each in the particle table.
        map_index: index of the map that each is compared with.
    """
    plane, precision = references.plane, references.precision
    slices = torch.zeros_like(images.ctf_multiplied)
    for number, padded in enumerate(references.padded):
        own_rows = (map_index == number).nonzero().squeeze(1)
        if not len(own_rows):  # grid_sample refuses an empty batch
            continue
        slices = slices.index_put((own_rows,), extract_slices(padded, poses.rotations[own_rows].float(), plane))
    cross = precision * (images.ctf_multiplied * slices.conj()).real
    power = precision * images.ctf_squared * slices.abs().square()
    is_coarse = plane.radii <= float(plane.radii.max()) / math.sqrt(2)
    tiny = torch.finfo(power.dtype).tiny
    energy = images.energy.clamp(min=tiny)

    def correlation(band: Tensor) -> Tensor:
        return cross[:, band].sum(1) / (power[:, band].sum(1) * energy).clamp(min=tiny).sqrt()

    at_pose = correlation(torch.ones_like(is_coarse))
    elsewhere = references.correlate_grid(images, map_index)
    mean, deviation = elsewhere.mean(1), elsewhere.std(1).clamp(min=1e-6)
    features = [
        at_pose, correlation(is_coarse), correlation(~is_coarse),
        cross.sum(1) / power.sum(1).clamp(min=tiny),
        elsewhere.amax(1) - at_pose, (at_pose - mean) / deviation, (elsewhere.amax(1) - mean) / deviation,
        images.log_power_inside, images.log_power_outside,
    ]  # fmt: skip
    return ParticleFeatures(rows, 1 - at_pose, torch.stack(features, 1), poses.rotations[:, 2])
