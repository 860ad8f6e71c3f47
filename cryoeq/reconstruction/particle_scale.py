"""Scale of each particle: the amplitude of its projection, which ice, ionisation damage and normalisation change.

With its pose known, the log-likelihood of a particle is quadratic in its scale s::

    log p(y | s) = s b - 1/2 s^2 a,    b = sum_k p Re(C y conj P),    a = sum_k p C^2 |P|^2

The prior of s is normal, about the mean of the particle's group (``noise_groups``), and its width is that of the data:
the variance of the maxima b / a beyond their own, 1 / a, both robustly, since junk and wrong poses have scales of their
own. Likewise the mean of a group has a normal prior about that of all, as wide as such means differ beyond their
errors. So where noise hides the scales they are all 1. The mean over each half set is 1 by definition: the common
factor is the map's. No half set sees the scales of the other.

A map from known poses needs no scales: where they spread by 15 %, the true ones raise its FSC with the truth by 0.003
at most (1WCM, 32 px, SNR 0.1 and 1). In the search of that molecule in coloured noise they left the median error of the
rotations as it was, within 4 %, and raised the FSC of the last shells by up to 0.03.

Scheres 2012, J. Struct. Biol. 180, 519-530 (a scale per group). Prior widths from the data: Efron and Morris 1973, J.
Am. Stat. Assoc. 68, 117-130.
"""

from collections.abc import Collection

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.physics.projection import extract_slices
from cryoeq.reconstruction.particle_transforms import ParticleTransforms
from cryoeq.reconstruction.reference import Reference, References
from cryoeq.reconstruction.state import RefinementState
from cryoeq.runtime.batching import in_parallel, numbers_at_a_time
from cryoeq.runtime.distributed import broadcast, gather_shard_columns, shard

_CHUNK_POINTS_ON_CPU = 2**19
_MAX_WIDTH = 0.3  # of the prior: real particles differ by less, and beyond it are junk and wrong poses
_LEAST, _LARGEST = 0.3, 2.0  # of a scale: junk has none, and noise must not decide


def update_scales(state: RefinementState, references: References, halves: Collection[int] = (1, 2)) -> None:
    """Give the particles the scales that their present poses and maps say; 1 where no pose is known yet.

    Args:
        state: maps, half sets and poses.
        references: references with the particles, which are rescaled.
        halves: numbers of the half sets whose particles are rescaled.
    """
    particles = references.unscaled
    subset = particles.within(state.radius, particles.plane.box_size_px)
    for half, rows, volume in state.halves(state.particles.log_evidence.nonzero().squeeze(1)):
        if half not in halves:
            continue
        cross, power = _cross_and_power(subset, references.of(volume), state, rows)
        group = torch.zeros_like(rows) if particles.group is None else particles.group[rows]
        references.rescale(broadcast(most_probable_scales(cross, power, group)), rows)


def most_probable_scales(
    cross: Float[Tensor, " particles"], power: Float[Tensor, " particles"], group: Int[Tensor, " particles"]
) -> Float[Tensor, " particles"]:
    """Scales of mean 1.

    Args:
        cross: b, the cross power of each image with its projection over the noise variance.
        power: a, the power of the projection likewise: the inverse variance of a scale that the image alone gives.
        group: group of each particle, from 0.
    """
    if not len(cross):
        return torch.ones_like(cross)
    alone = cross / power.clamp(min=1e-12)
    centre, typical = alone.median(), power.median()
    # Read in one go: a GPU has to be waited for.
    known, widest, last_group = torch.stack([typical, _MAX_WIDTH * centre, group.max().to(centre)]).tolist()
    if not known > 0 or not widest > 0:  # most images speak against the map: it tells nothing of their scales
        return torch.ones_like(cross)
    spread = 1.4826 * (alone - centre).abs().median()
    width2 = (spread.square() - typical.reciprocal()).clamp(min=0.0, max=widest**2)
    certainty = power / (1 + power * width2)
    mean = centre + _group_differences(alone - centre, certainty, group, int(last_group) + 1)[group]
    scale = (cross * width2 + mean) / (power * width2 + 1)
    return (scale / scale.mean()).clamp(_LEAST, _LARGEST)


def _group_differences(
    difference: Float[Tensor, " particles"],
    certainty: Float[Tensor, " particles"],
    group: Int[Tensor, " particles"],
    n_groups: int,
) -> Float[Tensor, " groups"]:
    """Mean difference of each group, shrunk towards 0 as far as it is uncertain.

    Args:
        difference: of each particle from the mean of all.
        certainty: its inverse variance within a group.
        group: group of each particle.
        n_groups: number of groups.
    """
    total = certainty.new_zeros(n_groups).index_add(0, group, certainty).clamp(min=1e-12)
    mean = certainty.new_zeros(n_groups).index_add(0, group, certainty * difference) / total
    error = total.reciprocal()
    between = ((mean.square() - error) * total).sum() / total.sum()
    between = between.clamp(min=0.0) if n_groups > 1 else torch.zeros_like(between)
    return mean * between / (between + error)


def _cross_and_power(
    particles: ParticleTransforms, reference: Reference, state: RefinementState, rows: Int[Tensor, " rows"]
) -> tuple[Float[Tensor, " rows"], ...]:
    """Of each particle at its pose, over the noise variance; the processes of a job share the particles."""
    weights, poses = reference.weights(particles.plane), state.poses

    def measure(batch: Int[Tensor, " batch"]) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        some = particles.rows(batch)
        slices = extract_slices(reference.padded, poses.rotations[batch], particles.plane)
        cross = (some.centred(poses.shifts_px[batch]) * slices.conj()).real @ weights
        return cross, (some.ctf_squared * slices.abs().square()) @ weights

    points = numbers_at_a_time(particles.device, _CHUNK_POINTS_ON_CPU)
    local = shard(torch.arange(len(rows), device=rows.device))
    batches = rows[local].split(max(1, points // len(particles.plane))) if len(local) > 0 else ()
    nothing = (weights[:0], weights[:0])
    measured = zip(nothing, *in_parallel(measure, batches), strict=True)
    return tuple(gather_shard_columns([torch.cat(parts) for parts in measured], len(rows)))
