"""Projections of a map as a view network's training data, of which each can be simulated again.

A synthetic projection is a slice of the map at a random pose, times the squared CTF of a particle, with the noise that
the map leaves in the particles::

    C y = C^2 P_R exp(2 pi i k.t / n) + C noise

None is used twice. What is kept of a training simulates its projections once more, and others of the same distribution
that it has not seen: what a bound of the error on new images needs.

Training on synthetic projections: Yao et al. 2023, ACE-EM (arXiv 2302.06091).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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
from cryoeq.runtime.random_streams import Stream, stream_generator, to_device_async
from cryoeq.training.views.network_input import NetworkInput

_DONORS = 1000  # particles whose CTFs are kept, at most
_OTHERS = 500  # added to the number of a training: projections that it has not seen


@dataclass(frozen=True)
class Projections(ParticleRows):
    """Images with exact labels.

    Args:
        ctf_multiplied: coefficients times their CTF, with noise.
        directions: true views, in the frame of the map.
        shifts_px: in pixels of the map's box.
        ctf_features: conditioning vectors of their CTFs; None without a CTF.
    """

    ctf_multiplied: Complex[Tensor, "count points"]
    directions: Float[Tensor, "count 3"]
    shifts_px: Float[Tensor, "count 2"]
    ctf_features: Float[Tensor, "count 3"] | None


@dataclass(frozen=True)
class ProjectionSource:
    """A training's projections: of one map, with the CTFs and the noise of particles.

    Args:
        volume: the map.
        radius: largest spatial frequency, in cycles per box.
        sigma: standard deviation of the noise per coefficient.
        ctf_squared: CTF squared of particles, from which each projection gets one.
        ctf_features: conditioning vectors of the same CTFs; None without a CTF.
        shift_sigma_px: standard deviation of the shifts; 0 for centred particles.
        seed: random seed of the run.
        number: number of the encoder in the run; each has random numbers of its own.
        steps: optimizer steps.
        batch_size: projections per step; where particles are shifted each is used at its nearest offset and another.
    """

    volume: Float[Tensor, "n n n"]
    radius: int
    sigma: Float[Tensor, " points"]
    ctf_squared: Float[Tensor, "donors points"]
    ctf_features: Float[Tensor, "donors 3"] | None
    shift_sigma_px: float
    seed: int
    number: int
    steps: int
    batch_size: int

    @classmethod
    def from_map(
        cls,
        particles: ParticleTransforms,
        volume: Float[Tensor, "n n n"],
        radius: int,
        shift_sigma_px: float,
        *,
        seed: int,
        number: int,
        steps: int,
        batch_size: int,
    ) -> "ProjectionSource":
        """Projections of a map with CTFs and noise of given particles.

        Args:
            particles: CTF-multiplied transforms of the particles, at the map's box.
            volume: map to project.
            radius: largest spatial frequency, in cycles per box.
            shift_sigma_px: standard deviation of the shifts.
            seed: random seed of the run.
            number: number of the encoder in the run.
            steps: optimizer steps of the training.
            batch_size: projections per step.
        """
        subset = particles.within(radius, particles.plane.box_size_px)
        precision, _ = noise_and_signal(particles, volume, subset)
        donors = torch.linspace(0, len(particles) - 1, min(_DONORS, len(particles)), dtype=torch.float64)
        some = subset.rows(donors.round().long().to(subset.device))
        return cls(
            volume, radius, precision.rsqrt(), some.ctf_squared, some.ctf_features, shift_sigma_px,
            seed, number, steps, batch_size,
        )  # fmt: skip

    @property
    def count(self) -> int:
        """Number of training projections."""
        return self.steps * self.batch_size

    @cached_property
    def _plane(self) -> HalfPlane:
        return HalfPlane.up_to(len(self.volume), self.radius, self.volume.device)

    @cached_property
    def _padded(self) -> Complex[Tensor, "m m m"]:
        return prepare_slices(self.volume)

    @torch.no_grad()
    def clean_images(self, network_input: NetworkInput, count: int) -> Float[Tensor, "count m m"]:
        """Noise-free images of random poses with the mean CTF, preprocessed: first filters of a network.

        Args:
            network_input: preprocessing of the network.
            count: number of images, one random pose each.
        """
        generator = stream_generator(self.seed, Stream.FILTERS, self.number)
        rotations = random_rotations(count, generator, self.volume.device)
        slices = extract_slices(self._padded, rotations, self._plane)
        return network_input.images(slices * self.ctf_squared.mean(0))

    @torch.no_grad()
    def simulate(self, count: int, generator: torch.Generator, *, noise_scale: float = 1.0) -> Projections:
        """The map at random poses.

        Args:
            count: number of projections.
            generator: random number generator of poses, noise and CTFs.
            noise_scale: amplitude of the noise, relative to that of the particles.
        """
        device, plane = self.volume.device, self._plane
        rotations = random_rotations(count, generator, device)
        shifts = to_device_async(torch.randn(count, 2, generator=generator) * self.shift_sigma_px, device)
        donors = to_device_async(torch.randint(len(self.ctf_squared), (count,), generator=generator), device)
        squared = self.ctf_squared[donors]
        noise = to_device_async(torch.randn(count, len(plane), 2, generator=generator), device) / math.sqrt(2)
        phases = shift_phases(shifts, plane.coords, plane.box_size_px)
        clean = extract_slices(self._padded, rotations, plane) * phases * squared
        noisy = clean + torch.view_as_complex(noise) * squared.sqrt() * (noise_scale * self.sigma)
        features = None if self.ctf_features is None else self.ctf_features[donors]
        return Projections(noisy, rotations[:, 2], shifts, features)

    def training_projections(
        self, network_input: NetworkInput, first_noise: float = 1.0
    ) -> Iterator[tuple[Projections, Int[Tensor, "batch offsets"]]]:
        """The projections of each step of the training, and the offsets at which each is used.

        Args:
            network_input: preprocessing of the network.
            first_noise: amplitude of the first noise, relative to that of the particles; it rises to 1 in the first
                half of the training. 1 for the distribution that the training ends with.
        """
        generator = stream_generator(self.seed, Stream.SYNTHETIC_PROJECTIONS, self.number)
        for step in range(self.steps):
            scale = min(1.0, first_noise + (1 - first_noise) * 2 * step / self.steps)
            projections = self.simulate(self.batch_size, generator, noise_scale=scale)
            yield projections, choose_offsets(network_input, projections.shifts_px, generator)

    def held_out_projections(self, count: int) -> Iterator[Projections]:
        """Others of the same distribution, on which no training of the run was done.

        Args:
            count: number of projections in all.
        """
        generator = stream_generator(self.seed, Stream.SYNTHETIC_PROJECTIONS, self.number + _OTHERS)
        sizes = [self.batch_size] * (count // self.batch_size) + [count % self.batch_size]
        return (self.simulate(size, generator) for size in sizes if size > 0)

    def to_state(self) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint, without the map, which is kept beside them."""
        return {
            "radius": self.radius,
            "sigma": self.sigma.cpu(),
            "ctf_squared": self.ctf_squared.cpu(),
            "ctf_features": None if self.ctf_features is None else self.ctf_features.cpu(),
            "shift_sigma_px": self.shift_sigma_px,
            "seed": self.seed,
            "number": self.number,
            "steps": self.steps,
            "batch_size": self.batch_size,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], volume: Float[Tensor, "n n n"]) -> "ProjectionSource":
        """What ``to_state`` gave, with its map, on the map's device."""
        moved: dict[str, Any] = {
            key: each.to(volume.device) if isinstance(each, Tensor) else each for key, each in state.items()
        }
        return cls(volume, **moved)


def choose_offsets(
    network_input: NetworkInput, shifts_px: Float[Tensor, "batch 2"], generator: torch.Generator
) -> Int[Tensor, "batch offsets"]:
    """The offset nearest to each shift, and a random other where there are several.

    Args:
        network_input: preprocessing of the network.
        shifts_px: shifts of the projections in pixels of the map's box.
        generator: random number generator of the other offset.
    """
    nearest, others = network_input.nearest_offsets(shifts_px), network_input.offsets_per_projection - 1
    count = max(1, len(network_input.offsets_px) - 1)
    drawn = to_device_async(torch.randint(count, (len(nearest), others), generator=generator), nearest.device)
    return torch.cat([nearest[:, None], drawn + (drawn >= nearest[:, None])], 1)
