"""Likelihood of particles under the map of the half set to which they do not belong.

A map that is averaged over a point group has less noise, and where the group is a pseudo-symmetry it lacks detail. The
particles say which of the two counts for more: those of one half set, at the poses that they have, under the other's
map. None of them has contributed its noise to that map, so that a map with less noise predicts them better, and one
without their detail worse.

    log p_i = sum_k 1 / s_k [ Re(C_k y_k conj P_k) - 1/2 C_k^2 |P_k|^2 ],

averaged over the copies of the particle's pose under the group, as likelihoods: a search takes the copy that suits the
map's own errors best, which both half maps may share where they began as one (5ME2, C2, 32 px: 0.0 and -0.1 nats with
two seeds whose maps erred so in shells 2 to 5, 0.3 nats, 8 and 10 standard errors, with that average).

P the projection of the map, filtered by its own signal-to-noise ratio, and s_k the noise variance per coefficient, from
what the first map leaves of the particles of each optics group.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.particles import ParticleBatch
from cryoeq.domain.pose import Poses, PoseSet
from cryoeq.domain.volume import HalfMaps
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.shells import fourier_shell_correlation, signal_to_noise
from cryoeq.physics.backprojection import wiener_filter
from cryoeq.physics.ctf import matched_filter
from cryoeq.physics.image_formation import undo_optics
from cryoeq.physics.projection import extract_slices, prepare_slices

SURE_SIGMAS = 3.0  # standard errors of a gain that counts
_BATCH_PX = 2**18
_SAMPLE_PX = 2**22  # pixels of the particles that are compared at most: 4,096 of 32 px, 1,024 of 64 px


@dataclass(frozen=True)
class Gain:
    """Log-likelihood of particles under one map beyond that under another, in nats.

    Args:
        mean: mean over the particles.
        sigmas: the mean in its standard errors, by the particles' own spread.
    """

    mean: float
    sigmas: float

    @classmethod
    def of(cls, better: Float[Tensor, " rows"], worse: Float[Tensor, " rows"]) -> "Gain":
        """Of the first log-likelihoods beyond the second."""
        difference = (better - worse).double()
        mean = float(difference.mean())
        error = float(difference.std()) / len(difference) ** 0.5 if len(difference) > 1 else float("inf")
        return cls(mean, mean / error if error > 0 else 0.0)


def held_out_log_likelihoods(
    dataset: ParticleDataset,
    poses: Sequence[Poses],
    half_set: Int[Tensor, " particles"],
    candidates: Sequence[HalfMaps],
) -> Float[Tensor, "candidates rows"]:
    """Log-likelihood of particles under the other half set's map, of each of several pairs of half maps.

    Up to a constant of the image; of particles spread evenly over the stack where these are many.

    Args:
        dataset: images of the particles.
        poses: pose of each particle against the map of its own half set, and its copies under a point group, from
            ``equivalent_poses``.
        half_set: 1 or 2 for each particle.
        candidates: unfiltered half maps, all at the box of the dataset or at a smaller one, which sets the last shell;
            the noise is what the first pair leaves. Their device computes; the result is on the CPU.
    """
    n, device = dataset.box_size_px, candidates[0].first.values.device
    plane = HalfPlane.up_to(n, candidates[0].first.box_size_px / 2 - 1, device)
    count = min(len(dataset), max(1, _SAMPLE_PX // n**2))
    rows = torch.linspace(0, len(dataset) - 1, count, dtype=torch.float64).round().long()
    slices, poses = [_slices(halves) for halves in candidates], [copy.to(device) for copy in poses]
    parts = [
        _shell_terms(batch.to(device), poses, half_set.to(device), slices, plane, dataset)
        for batch in dataset.batches(max(1, _BATCH_PX // n**2), rows)
    ]
    scores = torch.cat([scores for scores, _, _ in parts], 2)
    residual, transfer = (torch.cat([part[index] for part in parts]) for index in (1, 2))
    noise = torch.empty_like(residual)
    groups = dataset.table.optics_index[rows]
    for group in groups.unique().tolist():
        members = groups == group
        noise[members] = residual[members].sum(0) / transfer[members].sum(0).clamp(min=1e-30)
    of_copies = (scores / noise.clamp(min=torch.finfo(noise.dtype).tiny))[..., 1:].sum(-1)
    return of_copies.logsumexp(0) - math.log(len(poses))


def _slices(halves: HalfMaps) -> tuple[Complex[Tensor, "m m m"], ...]:
    fsc = fourier_shell_correlation(halves.first.values, halves.second.values)
    filtered = (wiener_filter(half.values.float(), signal_to_noise(fsc)) for half in (halves.first, halves.second))
    return tuple(prepare_slices(values) for values in filtered)


def _shell_terms(
    batch: ParticleBatch,
    poses: Sequence[Poses],
    half_set: Int[Tensor, " particles"],
    slices: Sequence[tuple[Tensor, ...]],
    plane: HalfPlane,
    dataset: ParticleDataset,
) -> tuple[
    Float[Tensor, "copies candidates batch shells"], Float[Tensor, "batch shells"], Float[Tensor, "batch shells"]
]:
    """Per shell: log-likelihood under each pair at a noise of 1, power of the first's residual, squared CTF.

    The residual is the power that the first pair leaves at the first pose. The CTF-multiplied image is compared with
    the projection times the squared CTF, so that images which were multiplied by their CTF count like the others.
    """
    coefficients = plane.transform(batch.images)
    factor, squared = None, torch.ones_like(coefficients.real)
    if batch.ctf is not None:
        factor, squared = matched_filter(batch.ctf, plane.frequencies_per_angstrom(dataset.pixel_size_angstrom))
    halves = half_set[batch.indices]
    map_plane = replace(plane, box_size_px=len(slices[0][0]) // 2)
    scores, residual = [], torch.zeros(0)
    for number, copy in enumerate(poses):
        local = PoseSet.from_angstrom(copy[batch.indices], dataset.pixel_size_angstrom, plane.box_size_px)
        observed = undo_optics(coefficients, local.shifts_px.float(), factor, plane)
        for index, pair in enumerate(slices):
            predicted = torch.empty_like(observed)
            for half in (1, 2):
                rows = halves == half
                predicted[rows] = extract_slices(pair[2 - half], local.rotations[rows].float(), map_plane)
            agreement = (observed * predicted.conj()).real - 0.5 * squared * predicted.abs().square()
            scores.append(plane.shell_sums(agreement).double())
            if number == index == 0:
                residual = plane.shell_sums((observed - squared * predicted).abs().square()).double()
    of_copies = torch.stack(scores).unflatten(0, (len(poses), len(slices)))
    return of_copies.cpu(), residual.cpu(), plane.shell_sums(squared).double().cpu()
