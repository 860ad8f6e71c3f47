"""Centring: first offsets of the images against a round template, before the structure is known.

The centre of mass of a projection is the projection of the centre of mass, so aligning every image with one round
template brings most of the particles close to a common centre. Expectation-maximisation with a single round class:
template and posterior of the offsets are updated alternately.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.physics.shift import shift_phases
from cryoeq.reconstruction.particle_transforms import ParticleTransforms

_REACH, _SPACING = 3.0, 0.4  # of the offset grid, over the standard deviation of the prior
_ITERATIONS = 8


@dataclass(frozen=True)
class Centring:
    """Offsets of the images, and their remaining uncertainty.

    Args:
        shifts_px: posterior mean of each offset, in pixels of the plane's box.
        sigma_px: standard deviation of the posterior per axis, root mean square over the images.
    """

    shifts_px: Float[Tensor, "particles 2"]
    sigma_px: float


def centre_images(images: ParticleTransforms, shift_sigma_px: float) -> Centring:
    """Posterior mean of the offset of each image under a round template.

    Args:
        images: CTF-multiplied transforms of the particles, at low resolution.
        shift_sigma_px: standard deviation of the normal prior of the offsets, per axis; 0 leaves them at zero.
    """
    plane, shells = images.plane, images.plane.shells
    if shift_sigma_px == 0:
        return Centring(torch.zeros(len(images), 2, device=shells.device), 0.0)
    steps = torch.arange(-_REACH, _REACH + 1e-6, _SPACING, device=shells.device) * shift_sigma_px
    offsets = torch.cartesian_prod(steps, steps)
    offsets = offsets[offsets.norm(dim=1) <= _REACH * shift_sigma_px]
    phases = shift_phases(-offsets, plane.coords, plane.box_size_px)
    prior = -0.5 * offsets.square().sum(1) / shift_sigma_px**2
    precision = images.total_variance.reciprocal()[shells] * plane.weights
    counts = torch.zeros(plane.last_shell + 1, device=shells.device)
    power = counts.index_add(0, shells, images.ctf_squared.sum(0) * plane.weights)
    posterior = torch.softmax(prior, 0).expand(len(images), -1)
    for _ in range(_ITERATIONS):
        # Sum of the images over all offsets with their weights, averaged over each shell: a round template.
        centred = ((posterior.to(phases.dtype) @ phases) * images.ctf_multiplied).sum(0).real
        template = (counts.index_add(0, shells, centred * plane.weights) / power)[shells]
        weighted = images.ctf_multiplied * (precision * template)
        scores = weighted.real @ phases.real.T - weighted.imag @ phases.imag.T
        posterior = torch.softmax(scores + prior, 1)
    shifts = posterior @ offsets
    variance = (posterior @ offsets.square()).sum(1) - shifts.square().sum(1)
    return Centring(shifts, math.sqrt(float(variance.mean()) / 2))
