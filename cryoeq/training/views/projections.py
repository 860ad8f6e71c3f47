"""Synthetic projections of a map with the CTFs and the noise of given particles, as transforms of particles."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.so3 import random_rotations
from cryoeq.physics.projection import extract_slices
from cryoeq.physics.shift import shift_phases
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.reference import Reference
from cryoeq.runtime.random_streams import to_device_async


@torch.no_grad()
def simulate_particles(
    donors: ParticleTransforms, reference: Reference, count: int, shift_sigma_px: float, generator: torch.Generator
) -> tuple[ParticleTransforms, PoseSet]:
    """Projections at random poses, and these poses.

    Args:
        donors: particles, up to the radius of the projections; each projection gets the CTF of one of them.
        reference: the map in their box, and their noise.
        count: number of projections.
        shift_sigma_px: standard deviation of the shifts per axis.
        generator: random number generator of poses, noise and CTFs.
    """
    plane, device = donors.plane, donors.device
    rotations = random_rotations(count, generator, device)
    shifts = to_device_async(torch.randn(count, 2, generator=generator) * shift_sigma_px, device)
    chosen = to_device_async(torch.randint(len(donors), (count,), generator=generator), device)
    noise = to_device_async(torch.randn(count, len(plane), 2, generator=generator), device) / math.sqrt(2)
    particles = donors.rows(chosen)
    phases = shift_phases(shifts, plane.coords, plane.box_size_px)
    clean = extract_slices(reference.padded, rotations, plane) * phases * particles.ctf_squared
    matched = clean + torch.view_as_complex(noise) * particles.ctf_squared.sqrt() * _deviation(reference, len(plane))
    return replace(particles, ctf_multiplied=matched), PoseSet(rotations, shifts, plane.box_size_px)


def _deviation(reference: Reference, count: int) -> Float[Tensor, " points"]:
    """Standard deviation of the noise at each coefficient; 0 where it counts for nothing."""
    precision = reference.precision[:count]
    return torch.where(precision > 0, precision.clamp(min=torch.finfo(precision.dtype).tiny).rsqrt(), 0.0)
