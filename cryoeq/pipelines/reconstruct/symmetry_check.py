"""Symmetry that a C1 map turns out to have: its point group, where the map and its particles both speak for it."""

from collections.abc import Generator
from dataclasses import replace

from jaxtyping import Int
from torch import Tensor

from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.data.dataset import ParticleDataset
from cryoeq.domain.events import Event, Note
from cryoeq.domain.pose import Poses
from cryoeq.domain.volume import HalfMaps, Volume
from cryoeq.evaluation.held_out_likelihood import SURE_SIGMAS, Gain, held_out_log_likelihoods
from cryoeq.geometry.fourier import crop_centred, fft_map, ifft_map
from cryoeq.maps.point_group_search import find_point_groups
from cryoeq.maps.point_groups import GroupAgreement, PointGroups
from cryoeq.maps.symmetry import average_over_group, equivalent_poses
from cryoeq.pipelines.reconstruct.metrics import ReconstructionMetrics
from cryoeq.pipelines.reconstruct.posed_particles import PosedParticles
from cryoeq.reconstruction.known_poses import ReconstructedMaps

_MIN_PARTICLES = 100
_SPARE_SHELLS = 4  # beyond the resolution


def name_symmetry(
    config: ReconstructConfig, dataset: ParticleDataset, maps: ReconstructedMaps, posed: PosedParticles
) -> Generator[Event, None, ReconstructionMetrics]:
    """The metrics, with the point group that a map made without symmetry has; as they are where it has none.

    Args:
        config: settings of the run; poses of the particle file are not questioned.
        dataset: the particles, at the box of the comparison.
        maps: maps made from the particles.
        posed: particles with assigned poses.
    """
    metrics = posed.metrics
    is_asked = config.search.symmetry.strip().upper() == "C1" and config.pose_inference != "known"
    if not is_asked or maps.halves is None or posed.half_set is None or len(dataset) < _MIN_PARTICLES:
        return metrics
    box = dataset.box_size_px
    whole, first, second = (cropped(each, box) for each in (maps.all, maps.halves.first, maps.halves.second))
    halves, poses = HalfMaps(first, second), posed.half_poses or posed.poses
    groups = find_point_groups(whole, halves)
    supported = supported_group(groups, dataset, poses, posed.half_set, halves)
    if supported is None:
        return metrics
    group, gain = supported
    yield Note(
        f"The map looks like {group.symmetry}: its copies agree with a score of {group.score:.2f} (1: as the half maps "
        f"do, 0: random rotations), and the averaged map explains the particles better by {gain.mean:.2g} ± "
        f"{gain.mean / gain.sigmas:.1g} nats each. Run with --sym {group.symmetry}."
    )
    return replace(metrics, apparent_symmetry=group.symmetry, symmetry_score=group.score, symmetry_gain_nats=gain.mean)


def symmetry_rows(metrics: ReconstructionMetrics) -> dict[str, str]:
    """The row of the report that names the symmetry, where there is one."""
    name = metrics.apparent_symmetry
    return {} if name is None else {"looks like": f"{name}: run with --sym {name}"}


def supported_group(
    groups: PointGroups, dataset: ParticleDataset, poses: Poses, half_set: Int[Tensor, " particles"], halves: HalfMaps
) -> tuple[GroupAgreement, Gain] | None:
    """The group of most elements that holds in the map and for which its particles speak.

    The averaged map is to explain the particles better than the map itself, and no worse than the map that is
    averaged over the next smaller group.

    Args:
        groups: point groups of the map.
        dataset: the particles, at the box of the half maps.
        poses: pose of each particle against the map of its own half set.
        half_set: 1 or 2 for each particle.
        halves: half maps without symmetry.
    """
    box = min(halves.first.box_size_px, 2 * (groups.last_shell + _SPARE_SHELLS))
    halves = HalfMaps(cropped(halves.first, box), cropped(halves.second, box))
    for place, group in enumerate(groups.holding):
        smaller = [each for each in groups.holding[place + 1 :] if each.order < group.order][:1]
        candidates = [halves, *(averaged(halves, each) for each in (group, *smaller))]
        copies = equivalent_poses(poses, group.symmetry, group.fit)
        plain, ours, *others = held_out_log_likelihoods(dataset, copies, half_set, candidates)
        gain = Gain.of(ours, plain)
        if gain.sigmas > SURE_SIGMAS and all(Gain.of(ours, other).sigmas > -SURE_SIGMAS for other in others):
            return group, gain
    return None


def averaged(halves: HalfMaps, group: GroupAgreement) -> HalfMaps:
    """Half maps averaged over a group, in their own frame.

    Args:
        halves: half maps without symmetry.
        group: the group, at its place in the map.
    """
    return HalfMaps(*(average_over_group(half, group.symmetry, group.fit) for half in (halves.first, halves.second)))


def cropped(volume: Volume, box_size_px: int) -> Volume:
    """A map without what lies beyond the Nyquist frequency of a smaller box.

    Args:
        volume: the map.
        box_size_px: side of the smaller box.
    """
    if volume.box_size_px == box_size_px:
        return volume
    values = ifft_map(crop_centred(fft_map(volume.values.float()), box_size_px, 3)).contiguous()
    return Volume(values, volume.pixel_size_angstrom * volume.box_size_px / box_size_px)
