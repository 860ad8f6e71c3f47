"""Synthetic projections of a map with exact pose labels, made to look like the particles.

A synthetic projection is a slice of the map at a random pose, times the squared CTF of a particle, with the noise that
the map leaves in the particles::

    C y = C^2 P_R exp(2 pi i k.t / n) + C noise

Training on synthetic projections: Yao et al. 2023, ACE-EM (arXiv 2302.06091).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.so3 import random_rotations
from cryoeq.physics.projection import extract_slices, prepare_slices
from cryoeq.physics.shift import shift_phases
from cryoeq.reconstruction.noise_model import noise_and_signal
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.runtime.random_streams import to_device_async
from cryoeq.training.synthetic.encoder_input import EncoderInput


@dataclass(frozen=True)
class SyntheticProjections(ParticleRows):
    """Images with exact labels.

    Args:
        ctf_multiplied: coefficients times their CTF, with noise.
        rotations: RELION's matrices A of their poses.
        shifts_px: in pixels of the particles' box.
        ctf_features: conditioning vectors of their CTFs; None without a CTF.
    """

    ctf_multiplied: Complex[Tensor, "count points"]
    rotations: Float[Tensor, "count 3 3"]
    shifts_px: Float[Tensor, "count 2"]
    ctf_features: Float[Tensor, "count 3"] | None


@dataclass(frozen=True)
class ProjectionSimulator:
    """Simulates projections of a map as an encoder's training data.

    Args:
        padded: oversampled transform of the map.
        plane: the coefficients, in the particles' box.
        ctf_squared: CTF squared of particles, from which each projection gets one.
        sigma: standard deviation of the noise per coefficient.
        encoder_input: preprocessing of the encoder.
        shift_sigma_px: standard deviation of the shifts; 0 for centred particles.
        ctf_features: conditioning vectors of the same CTFs; None without a CTF.
    """

    padded: Complex[Tensor, "m m m"]
    plane: HalfPlane
    ctf_squared: Float[Tensor, "particles points"]
    sigma: Float[Tensor, " points"]
    encoder_input: EncoderInput
    shift_sigma_px: float
    ctf_features: Float[Tensor, "particles 3"] | None = None

    @classmethod
    def from_map(
        cls,
        particles: ParticleTransforms,
        volume: Float[Tensor, "n n n"],
        encoder_input: EncoderInput,
        shift_sigma_px: float,
    ) -> "ProjectionSimulator":
        """Projections of a map with CTFs and noise of given particles.

        Args:
            particles: CTF-multiplied transforms of the particles.
            volume: map to project.
            encoder_input: preprocessing of the encoder.
            shift_sigma_px: standard deviation of the shifts.
        """
        subset = particles.within(float(encoder_input.plane.radii.max()), particles.plane.box_size_px)
        precision, _ = noise_and_signal(particles, volume, subset)
        return cls(
            prepare_slices(volume),
            subset.plane,
            subset.ctf_squared,
            precision.rsqrt(),
            encoder_input,
            shift_sigma_px,
            particles.ctf_features,
        )

    @torch.no_grad()
    def clean_slices(self, count: int, generator: torch.Generator) -> Float[Tensor, "count m m"]:
        """Noise-free images of random poses with the mean CTF, preprocessed: template filters of an encoder.

        Args:
            count: number of images, one random pose each.
            generator: random number generator of the poses.
        """
        rotations = random_rotations(count, generator, self.padded.device)
        slices = extract_slices(self.padded, rotations, self.plane)
        return self.encoder_input.images(slices * self.ctf_squared.mean(0))

    @torch.no_grad()
    def simulate(self, count: int, generator: torch.Generator, *, noise_scale: float = 1.0) -> SyntheticProjections:
        """The map at random poses.

        Args:
            count: number of projections.
            generator: random number generator of poses, noise and CTFs.
            noise_scale: amplitude of the noise, relative to that of the particles.
        """
        device = self.padded.device
        rotations = random_rotations(count, generator, device)
        shifts = to_device_async(torch.randn(count, 2, generator=generator) * self.shift_sigma_px, device)
        donors = to_device_async(torch.randint(len(self.ctf_squared), (count,), generator=generator), device)
        squared = self.ctf_squared[donors]
        noise = to_device_async(torch.randn(count, len(self.plane), 2, generator=generator), device) / math.sqrt(2)
        phases = shift_phases(shifts, self.plane.coords, self.plane.box_size_px)
        clean = extract_slices(self.padded, rotations, self.plane) * phases * squared
        noisy = clean + torch.view_as_complex(noise) * squared.sqrt() * (noise_scale * self.sigma)
        features = None if self.ctf_features is None else self.ctf_features[donors]
        return SyntheticProjections(noisy, rotations, shifts, features)


def choose_offsets(
    encoder_input: EncoderInput, shifts_px: Float[Tensor, "batch 2"], generator: torch.Generator
) -> Int[Tensor, "batch offsets"]:
    """The offset nearest to each shift, and a random other where there are several.

    Args:
        encoder_input: preprocessing of the encoder.
        shifts_px: shifts of the projections in pixels of the particles' box.
        generator: random number generator of the other offset.
    """
    nearest, others = encoder_input.nearest_offsets(shifts_px), encoder_input.offsets_per_projection - 1
    count = max(1, len(encoder_input.offsets_px) - 1)
    drawn = torch.randint(count, (len(nearest), others), generator=generator)
    drawn = to_device_async(drawn, nearest.device)
    return torch.cat([nearest[:, None], drawn + (drawn >= nearest[:, None])], 1)
