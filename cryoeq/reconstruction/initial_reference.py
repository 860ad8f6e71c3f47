"""A map from elsewhere as the first reference of both half sets: low-passed, and on the grey scale of the particles."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.fourier import crop_centred, fft_map, ifft_map
from cryoeq.geometry.map_filter import low_pass
from cryoeq.physics.projection import prepare_slices
from cryoeq.reconstruction.global_realignment import search_poses_exhaustively
from cryoeq.reconstruction.maximization import particle_mask
from cryoeq.reconstruction.noise_model import mean_slice_power
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.reference import Reference
from cryoeq.reconstruction.state import ConsensusMap, ParticlePoses, RefinementSettings, RefinementState
from cryoeq.runtime.random_streams import Stream, stream_generator

_LEAST_SIGNAL = 1e-3  # of the images' variance: where less is left beside the noise, its amplitude is chance


def begin_from_reference(
    volume: Float[Tensor, "m m m"],
    shell: int,
    particles: ParticleTransforms,
    half_set: Int[Tensor, " particles"],
    settings: RefinementSettings,
    *,
    seed: int,
) -> RefinementState:
    """Both half sets at a map from elsewhere, each particle at the best of all poses and offsets at low resolution.

    Args:
        volume: the map, in the box of the particles or in a larger one of the same side in Angstrom.
        shell: resolution that it is low-passed to, in cycles per box.
        particles: CTF-multiplied transforms of all particles.
        half_set: half set of each particle, 1 or 2.
        settings: settings of the refinement.
        seed: random seed of the run.
    """
    n, device = particles.plane.box_size_px, particles.device
    cropped = ifft_map(crop_centred(fft_map(volume.to(device)), n, 3))
    filtered = low_pass(cropped, shell) * particle_mask(n, settings, device)
    scaled = filtered * amplitude(filtered, shell, particles)
    reference = Reference.prepare(scaled, particles)
    rows = torch.arange(len(particles), device=device)
    generator = stream_generator(seed, Stream.REALIGNMENT)
    found = search_poses_exhaustively(particles, rows, reference, settings, generator)
    nothing = PoseSet.identity(len(particles), n, device)
    return RefinementState(
        reference=ConsensusMap(scaled),
        half_set=half_set.to(device),
        particles=replace(ParticlePoses.unknown(nothing), poses=found.poses, log_evidence=found.log_evidence),
        fsc=torch.zeros(n // 2 + 1, device=device),
        radius=shell,
        iteration=0,
    )


def amplitude(volume: Float[Tensor, "n n n"], shell: int, particles: ParticleTransforms) -> float:
    """Factor that gives the projections of a map the power of the particles' signal.

    That is what the images have beyond the noise around the particles, over the first shells.

    Args:
        volume: map on a grey scale of its own.
        shell: last shell to compare, in cycles per box.
        particles: CTF-multiplied transforms of all particles.
    """
    power = mean_slice_power(prepare_slices(volume), particles)
    predicted, total = particles.signal_variance(power), particles.total_variance
    noise = torch.zeros_like(total) if particles.background_variance is None else particles.background_variance
    shells = slice(1, shell + 1)
    counts = particles.plane.shell_counts.to(total)[shells]
    signal = ((total - noise)[shells] * counts).sum()
    signal = torch.maximum(signal, _LEAST_SIGNAL * (total[shells] * counts).sum())
    return float((signal / (predicted[shells] * counts).sum().clamp(min=torch.finfo(total.dtype).tiny)).sqrt())
