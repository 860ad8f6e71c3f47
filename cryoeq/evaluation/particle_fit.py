"""How well single particles agree with the projections that a map and their poses predict."""

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
    """Some particles beside their predicted projections.

    Args:
        rows: of the particle table.
        correlations: of each particle with its prediction, over all frequencies up to the limit but zero.
        images: as the model sees them, protein bright.
        filtered: the same, low-passed at the limit.
        predictions: projection at the particle's pose, shifted, with its CTF, low-passed likewise.
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
        dataset: the particles, at the box in which they are compared.
        poses: of all particles.
        volume: the map, at the box of the dataset or a larger one.
        rows: which particles.
        resolution_angstrom: limit of the comparison; beyond Nyquist it is Nyquist's.
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
