"""Log-likelihoods of single poses at a few neighbouring offsets: where between those that were tried the best one is.

One slice of the map serves all of them: an offset only turns the phases of its products with the image.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from cryoeq.physics.projection import extract_slices
from cryoeq.physics.shift import shift_phases
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.reference import Reference

_CROSS = ((0.0, 0.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))


def log_likelihoods_around(
    reference: Reference,
    particles: ParticleTransforms,
    rotations: Float[Tensor, "particles poses 3 3"],
    offsets_px: Float[Tensor, "particles poses 2"],
    step_px: float,
) -> Float[Tensor, "particles poses 5"]:
    """Log-likelihoods at an offset and at its neighbours: right, left, up, down; compiled in float32 on CPUs.

    Args:
        reference: the map and the noise, in the particles' box.
        particles: the particles, up to the radius of the comparison.
        rotations: RELION's matrices A of a few poses of each.
        offsets_px: the middle offset of each pose.
        step_px: distance of the neighbours.
    """
    plane, weights = particles.plane, reference.weights(particles.plane)
    if rotations.device.type == "cpu" and rotations.dtype == torch.float32:
        from cryoeq.reconstruction.compiled_offsets import compiled_scores_around  # not above, because of numba

        return compiled_scores_around(reference.padded, weights, particles, rotations, offsets_px, step_px)
    n_poses = rotations.shape[1]
    slices = extract_slices(reference.padded, rotations.flatten(0, 1), plane).unflatten(0, (-1, n_poses))
    cross = offsets_px.new_tensor(_CROSS) * step_px
    products = particles.ctf_multiplied[:, None] * slices.conj() * weights
    phases = shift_phases(-(offsets_px[..., None, :] + cross).flatten(0, 2), plane.coords, plane.box_size_px)
    overlap = (products[:, :, None] * phases.view(*offsets_px.shape[:2], len(cross), -1)).real.sum(-1)
    power = (particles.ctf_squared[:, None] * slices.abs().square() * weights).sum(-1)
    return overlap - 0.5 * power[..., None]


def vertex(
    before: Float[Tensor, "*batch"], middle: Float[Tensor, "*batch"], after: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Where a parabola through three neighbouring values is highest, in steps from the middle; one at most.

    Args:
        before: the first value.
        middle: the value in the middle.
        after: the last value.
    """
    curvature = (2 * middle - before - after).clamp(min=1e-6)
    return (0.5 * (after - before) / curvature).clamp(-1.0, 1.0)
