"""Correlation of single particles with the projections of a map at their poses."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.pose import Poses, PoseSet
from cryoeq.domain.volume import Volume
from cryoeq.geometry.fourier import HalfPlane, crop_centred, fft_map, ifft_map
from cryoeq.physics.ctf import image_transfer
from cryoeq.physics.image_formation import form_images
from cryoeq.physics.projection import prepare_slices


@dataclass(frozen=True)
class ParticleFits:
    """Particles beside their predicted projections.

    Args:
        rows: rows of the particle table.
        correlations: correlation of each particle with its prediction, over all frequencies up to the limit but zero.
        images: preprocessed images, protein bright.
        filtered: the images, low-passed at the limit.
        predictions: projection at the pose of each particle, shifted and multiplied by its CTF, low-passed likewise.
    """

    rows: Int[Tensor, " rows"]
    correlations: Float[Tensor, " rows"]
    images: Float[Tensor, "rows m m"]
    filtered: Float[Tensor, "rows m m"]
    predictions: Float[Tensor, "rows m m"]


def fit_particles(
    dataset: ParticleDataset, poses: Poses, volume: Volume, rows: Int[Tensor, " rows"], *, resolution_angstrom: float
) -> ParticleFits:
    """Compare particles with the projections of a map at their poses, up to a resolution.

    Args:
        dataset: images of the particles, at the box of the comparison.
        poses: poses of all particles.
        volume: map at the box of the dataset or a larger one.
        rows: rows of the particles to compare.
        resolution_angstrom: limit of the comparison, at most the Nyquist frequency.
    """
    n, pixel = dataset.box_size_px, dataset.pixel_size_angstrom
    plane = HalfPlane.up_to(n, min(n / 2 - 1e-3, n * pixel / resolution_angstrom))
    batch, local = dataset.batch(rows), PoseSet.from_angstrom(poses[rows], pixel, n)
    transfer = None if batch.ctf is None else image_transfer(batch.ctf, plane.frequencies_per_angstrom(pixel))
    padded = prepare_slices(ifft_map(crop_centred(fft_map(volume.values.float()), n, 3)))
    predicted = form_images(padded, local.rotations, local.shifts_px, transfer, plane)
    observed = plane.transform(batch.images)
    weights = torch.where((plane.coords == 0).all(-1), 0.0, plane.weights)
    cross = (weights * (observed * predicted.conj()).real).sum(1)
    power = [(weights * values.abs().square()).sum(1) for values in (observed, predicted)]
    correlations = cross / (power[0] * power[1]).clamp(min=torch.finfo(cross.dtype).tiny).sqrt()
    return ParticleFits(rows, correlations, batch.images, plane.images(observed), plane.images(predicted))
