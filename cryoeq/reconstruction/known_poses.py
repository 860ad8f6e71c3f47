"""Reconstruction from known poses: maps of all particles and of the half sets, in one pass over the images."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.data.dataset import ParticleDataset
from cryoeq.data.prefetch import read_batches
from cryoeq.domain.particles import ParticleBatch
from cryoeq.domain.pose import Poses, PoseSet
from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.geometry.fourier import HalfPlane
from cryoeq.geometry.pointgroup import split_over_lattice, symmetry_rotations
from cryoeq.geometry.shells import fourier_shell_correlation, signal_to_noise
from cryoeq.physics.backprojection import WienerBackprojection, wiener_filter
from cryoeq.physics.ctf import matched_filter
from cryoeq.physics.image_formation import undo_optics
from cryoeq.physics.noise import background_noise_variance, shell_means
from cryoeq.runtime.distributed import shard

_NOISE_SAMPLE = 1000  # images from which the noise of an optics group is measured
_ALL = -1  # number of the sums of all particles, where the half maps have poses of their own
_SUMS_AT_ONCE_BYTES = 2**30  # up to which the sums of all three maps are held, so that the images are read once
BATCH_PIXELS = 2**23  # in memory at a time: large enough that adding up the sums costs little


@dataclass(frozen=True)
class ReconstructedMaps:
    """Maps from particles of known pose.

    Args:
        all: map of all particles, Wiener-filtered by the half maps' correlation where there are half maps.
        halves: half maps, unfiltered; None without half sets.
        half_fsc: Fourier shell correlation of the half maps; None without half sets.
    """

    all: Volume
    halves: HalfMaps | None
    half_fsc: Float[Tensor, " shells"] | None


def reconstruct_from_poses(
    dataset: ParticleDataset,
    poses: Poses,
    half_set: Int[Tensor, " particles"] | None = None,
    *,
    half_poses: Poses | None = None,
    device: torch.device | None = None,
    batch_size: int | None = None,
    symmetry: str = "C1",
    rows: Int[Tensor, " rows"] | None = None,
) -> ReconstructedMaps:
    """Maps of all particles and of each half set, in one pass over the images, which the processes of a job share.

    Args:
        dataset: particles, at the box of the maps.
        poses: one pose per particle, in the order of the dataset.
        half_set: 1 or 2 per particle; a particle with another number counts for the map of all only.
        half_poses: poses for the half maps; None where they are the same.
        device: device of the computation; None for the CPU.
        batch_size: images in memory at a time; None for 8 million pixels.
        symmetry: point group of the map, its axes as in ``symmetry_rotations``.
        rows: particles that the maps are made from; None for all.
    """
    n = dataset.box_size_px
    plane = HalfPlane.up_to(n, n / 2 - 1e-3, device)
    precision = noise_precision_of_groups(dataset, plane)
    sets = torch.zeros(len(dataset), dtype=torch.long) if half_set is None else half_set.cpu()
    rows = torch.arange(len(dataset)) if rows is None else rows.cpu()
    there = plane.coords.device
    optics_index, device_sets, precision = dataset.table.optics_index.to(there), sets.to(there), precision.to(there)
    numbers = sets[rows].unique().tolist() + ([] if half_poses is None else [_ALL])
    sums = {number: WienerBackprojection.empty(n, device=device) for number in numbers}
    cosets, on_lattice = split_over_lattice(symmetry_rotations(symmetry))
    for batch in read_batches(dataset, batch_size or max(1, BATCH_PIXELS // n**2), there, shard(rows)):
        subsets = [(number, subset, half_poses or poses) for number, subset in _split(batch, device_sets)]
        for number, subset, used in subsets if half_poses is None else [*subsets, (_ALL, batch, poses)]:
            weights = precision[optics_index[subset.indices]]
            local = used[subset.indices.to(used.rotations.device)].to(there)
            for element in cosets:
                equivalent = replace(local, rotations=local.rotations @ element.to(local.rotations))
                _accumulate(sums[number], subset, equivalent, weights, plane, dataset)
    dataset.share_census()
    sums = {number: half_sums.symmetrised(on_lattice).all_reduced() for number, half_sums in sums.items()}
    has_halves = 1 in sums and 2 in sums
    first, second = (_as_volume(sums[number].reconstruct(), dataset) if has_halves else None for number in (1, 2))
    total, *others = (sums.pop(number) for number in (list(sums) if half_poses is None else [_ALL]))
    while others:  # in place, and each freed when it has been added: sums are most of the memory
        total += others.pop(0)
    merged = _as_volume(total.reconstruct(), dataset)
    if first is None or second is None:
        return ReconstructedMaps(merged, None, None)
    return filter_by_halves(merged, HalfMaps(first, second))


def holds_all_sums(box_size_px: int) -> bool:
    """Whether the sums of a map and of both half maps with other poses are few enough to be made in one pass.

    Args:
        box_size_px: side of the maps.
    """
    m = 2 * box_size_px
    return 3 * 3 * 4 * (m + 1) ** 2 * (m // 2 + 1) <= _SUMS_AT_ONCE_BYTES


def filter_by_halves(merged: Volume, halves: HalfMaps) -> ReconstructedMaps:
    """The map of all particles, Wiener-filtered by the correlation of the half maps.

    Args:
        merged: unfiltered map of all particles.
        halves: unfiltered half maps in the same frame.
    """
    fsc = fourier_shell_correlation(halves.first.values, halves.second.values)
    filtered = wiener_filter(merged.values, 2 * signal_to_noise(fsc))
    return ReconstructedMaps(replace(merged, values=filtered), halves, fsc)


def _split(batch: ParticleBatch, sets: Int[Tensor, " particles"]) -> Iterator[tuple[int, ParticleBatch]]:
    """Subsets of a batch by half set: its number, and its particles."""
    numbers = sets[batch.indices]
    for number in numbers.unique().tolist():
        keep = (numbers == number).nonzero().squeeze(1)
        ctf = None if batch.ctf is None else batch.ctf[keep]
        yield number, replace(batch, indices=batch.indices[keep], images=batch.images[keep], ctf=ctf)


def _accumulate(
    sums: WienerBackprojection,
    batch: ParticleBatch,
    poses: Poses,
    precision: Float[Tensor, "batch points"],
    plane: HalfPlane,
    dataset: ParticleDataset,
) -> None:
    """Add one more batch to the sums, each coefficient weighted by the inverse of its noise variance."""
    local = PoseSet.from_angstrom(poses, dataset.pixel_size_angstrom, plane.box_size_px).each(
        lambda values: values.to(precision.dtype)
    )
    factor, power = precision, precision
    if batch.ctf is not None:
        filters = matched_filter(batch.ctf, plane.frequencies_per_angstrom(dataset.pixel_size_angstrom))
        factor, power = (precision * values for values in filters)
    coefficients = plane.transform(batch.images)
    sums.add_(undo_optics(coefficients, local.shifts_px, factor, plane), power, local.rotations, plane)


def noise_precision_of_groups(dataset: ParticleDataset, plane: HalfPlane) -> Float[Tensor, "groups points"]:
    """Inverse noise variance of each coefficient, per optics group, on the CPU: that of the background.

    Args:
        dataset: particles.
        plane: coefficients.
    """
    shells = plane.shells.cpu().clamp(max=dataset.box_size_px // 2)
    radius_px = dataset.preprocessing.background_radius * dataset.box_size_px / 2
    precisions = [torch.ones(len(plane))] * len(dataset.table.optics)
    for group in dataset.table.optics_index.unique().tolist():
        rows = (dataset.table.optics_index == group).nonzero().squeeze(1)
        sample = rows[torch.linspace(0, len(rows) - 1, min(_NOISE_SAMPLE, len(rows))).round().long()]
        batch = dataset.batch(sample)
        variance = background_noise_variance(batch.images, radius_px, _premultiplication(batch, dataset))
        precisions[group] = variance.reciprocal()[shells]
    return torch.stack(precisions)


def _premultiplication(batch: ParticleBatch, dataset: ParticleDataset) -> Float[Tensor, "batch shells"] | None:
    """Mean squared CTF of each shell, by which premultiplication scaled the noise; None without such images."""
    if batch.ctf is None or not bool(batch.ctf.is_premultiplied.any()):
        return None
    whole = HalfPlane.up_to(dataset.box_size_px, dataset.box_size_px / 2 - 1e-3)
    _, power = matched_filter(batch.ctf, whole.frequencies_per_angstrom(dataset.pixel_size_angstrom))
    return shell_means(power, whole)


def _as_volume(values: Float[Tensor, "n n n"], dataset: ParticleDataset) -> Volume:
    return Volume(values.cpu(), dataset.pixel_size_angstrom)
