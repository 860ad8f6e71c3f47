"""First shifts, before anything is known of the structure: particles against the mean of all, made round.

The centre of mass of a projection is the projection of the centre of mass, so aligning every image with one round
template brings most of the particles close to a common centre. Template and posterior of the shifts are improved in
turn, as in expectation-maximisation with a single round class.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.physics.shift import shift_phases
from cryoeq.reconstruction.particle_transforms import ParticleTransforms

_REACH = 3.0  # of the spread of the shifts, how far they are looked for
_SPACING = 0.4
_ITERATIONS = 8


@dataclass(frozen=True)
class Centring:
    """Shifts of the images, and how far they may still be off.

    Args:
        shifts_px: posterior means.
        sigma_px: standard deviation of the posterior per axis, the root mean square over the images.
    """

    shifts_px: Float[Tensor, "particles 2"]
    sigma_px: float


def centre_images(images: ParticleTransforms, shift_sigma_px: float) -> Centring:
    """Posterior mean of the shift of each image under a round template.

    Args:
        images: at low resolution.
        shift_sigma_px: of the normal prior of the shifts, per axis; 0 leaves the images as they are.
    """
    plane, shells = images.plane, images.plane.shells
    if shift_sigma_px == 0:
        return Centring(torch.zeros(len(images), 2, device=shells.device), 0.0)
    steps = torch.arange(-_REACH, _REACH + 1e-6, _SPACING, device=shells.device) * shift_sigma_px
    trials = torch.cartesian_prod(steps, steps)
    trials = trials[trials.norm(dim=1) <= _REACH * shift_sigma_px]
    phases = shift_phases(-trials, plane.coords, plane.box_size_px)
    prior = -0.5 * trials.square().sum(1) / shift_sigma_px**2
    precision = images.total_variance.reciprocal()[shells] * plane.weights
    counts = torch.zeros(int(shells.max()) + 1, device=shells.device)
    power = counts.index_add(0, shells, images.ctf_squared.sum(0) * plane.weights)
    posterior = torch.softmax(prior, 0).expand(len(images), -1)
    for _ in range(_ITERATIONS):
        # Sum of the images, each at all its shifts with their weights, and round: one number per shell.
        centred = ((posterior.to(phases.dtype) @ phases) * images.ctf_multiplied).sum(0).real
        template = (counts.index_add(0, shells, centred * plane.weights) / power)[shells]
        weighted = images.ctf_multiplied * (precision * template)
        scores = weighted.real @ phases.real.T - weighted.imag @ phases.imag.T
        posterior = torch.softmax(scores + prior, 1)
    shifts = posterior @ trials
    variance = (posterior @ trials.square()).sum(1) - shifts.square().sum(1)
    return Centring(shifts, math.sqrt(float(variance.mean()) / 2))
