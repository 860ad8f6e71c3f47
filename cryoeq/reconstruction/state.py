"""Settings and state of a refinement: references of the half sets, and the pose of each particle."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoeq.domain.events import Event
from cryoeq.domain.particle_rows import ParticleRows
from cryoeq.domain.pose import PoseSet
from cryoeq.geometry.fourier import crop_centred, fft_map, ifft_map, pad_centred
from cryoeq.physics.backprojection import WienerBackprojection

FSC_THRESHOLD = 0.143  # between half maps (Rosenthal and Henderson 2003, J. Mol. Biol. 333, 721-745)


@dataclass(frozen=True)
class RefinementSettings:
    """Settings of consensus, half-set and local refinement.

    Args:
        consensus_shells: radius of each consensus iteration, in cycles per box.
        max_extra_iterations: further consensus iterations at the last radius, until the log-likelihood converges.
        max_particles: particles in consensus iterations, at most.
        iterations: half-set iterations over all orientations.
        max_exhaustive_shell: largest radius of those, in cycles per box.
        local_iterations: local iterations of the half sets, where the exhaustive search does not reach the last shell.
        n_offsets: offsets sampled for each particle while the radius is small.
        shift_sigma_px: standard deviation of the offsets per axis, in pixels of the particles' box; 0 where they are
            centred.
        mask_radius: radius of the spherical mask, as a fraction of the box.
        symmetry: rotations of the point group; the identity alone for C1.
        box_side_angstrom: side of the particles' box, for resolutions in Angstrom.
    """

    consensus_shells: tuple[int, ...]
    max_extra_iterations: int
    max_particles: int
    iterations: int
    max_exhaustive_shell: int
    local_iterations: int
    n_offsets: int
    shift_sigma_px: float
    mask_radius: float
    symmetry: Float[Tensor, "order 3 3"]
    box_side_angstrom: float

    @property
    def shared_shell(self) -> int:
        """Radius up to which the half sets share their first reference."""
        return max(self.consensus_shells)

    def resolution_angstrom(self, shell: int) -> float:
        """Resolution of a shell; infinite for shell 0."""
        return self.box_side_angstrom / shell if shell else float("inf")


@dataclass(frozen=True)
class ConsensusMap:
    """One reference that both half sets share: their correlation is no gold standard up to its radius.

    Args:
        mean: the map.
    """

    mean: Float[Tensor, "n n n"]

    def of_half(self, half: int) -> Float[Tensor, "n n n"]:
        """The same map for half set 1 and 2."""
        del half
        return self.mean

    def each(self, change: Callable[[Tensor], Tensor]) -> "ConsensusMap":
        """The reference after a change of its map."""
        return ConsensusMap(change(self.mean))


@dataclass(frozen=True)
class HalfSetMaps:
    """The references of two independent half sets.

    Args:
        first: made from half set 1 alone.
        second: made from half set 2 alone.
    """

    first: Float[Tensor, "n n n"]
    second: Float[Tensor, "n n n"]

    @property
    def mean(self) -> Float[Tensor, "n n n"]:
        """The map of all particles."""
        return (self.first + self.second) / 2

    def of_half(self, half: int) -> Float[Tensor, "n n n"]:
        """The map of half set 1 or 2."""
        return self.first if half == 1 else self.second

    def each(self, change: Callable[[Tensor], Tensor]) -> "HalfSetMaps":
        """The references after a change of both maps."""
        return HalfSetMaps(change(self.first), change(self.second))


ReferenceMaps = ConsensusMap | HalfSetMaps


@dataclass(frozen=True)
class ParticlePoses(ParticleRows):
    """Pose of each particle, and its posterior.

    Args:
        poses: most probable so far.
        confidence: probability of the most probable pose (rlnMaxValueProbDistribution).
        log_evidence: log marginal likelihood, up to a constant of the image.
    """

    poses: PoseSet
    confidence: Float[Tensor, " particles"]
    log_evidence: Float[Tensor, " particles"]

    @classmethod
    def unknown(cls, poses: PoseSet) -> "ParticlePoses":
        """Poses without any posterior yet."""
        zeros = poses.shifts_px.new_zeros(len(poses))
        return cls(poses, zeros, zeros)


@dataclass(frozen=True)
class RefinementState:
    """State of a refinement between two iterations.

    Args:
        reference: maps that particles are compared with, filtered by the correlation of the half maps.
        half_set: 1 or 2 per particle.
        particles: poses of all particles.
        fsc: Fourier shell correlation of the unfiltered half maps, within the mask.
        radius: resolution of the next iteration, in cycles per box.
        iteration: number of iterations done.
        sums: sums of the last iteration over each half set, from which the maps were made; None before the first.
    """

    reference: ReferenceMaps
    half_set: Int[Tensor, " particles"]
    particles: ParticlePoses
    fsc: Float[Tensor, " shells"]
    radius: int
    iteration: int
    sums: tuple[WienerBackprojection, WienerBackprojection] | None = None

    @property
    def poses(self) -> PoseSet:
        """Most probable poses of all particles."""
        return self.particles.poses

    @property
    def resolution_shell(self) -> int:
        """The last shell before the half maps' correlation drops below 0.143."""
        return _resolution_shell(self.fsc)

    def halves(
        self, rows: Int[Tensor, " rows"] | None = None
    ) -> Iterator[tuple[int, Int[Tensor, " half"], Float[Tensor, "n n n"]]]:
        """Number of each half set, its particles, and the map that they are compared with.

        Args:
            rows: the particles to take part; None for all.
        """
        for half, members in zip((1, 2), _members_of_halves(self.half_set, rows), strict=True):
            yield half, members, self.reference.of_half(half)

    def with_poses(self, poses: PoseSet) -> "RefinementState":
        """The state with other poses."""
        return replace(self, particles=replace(self.particles, poses=poses))

    def split(self) -> "RefinementState":
        """The state with independent half sets: from here on neither is compared with the other's map."""
        if isinstance(self.reference, HalfSetMaps):
            return self
        return replace(self, reference=HalfSetMaps(self.reference.mean, self.reference.mean))

    def merged(self) -> "RefinementState":
        """The state in which all particles are compared with the mean map."""
        return replace(self, reference=ConsensusMap(self.reference.mean))

    def to_box(self, box_size_px: int) -> "RefinementState":
        """The state in another box: the same maps and poses, without the shells that only one of the boxes has.

        Args:
            box_size_px: side of the other box, which is as wide in Angstrom.
        """
        n = self.reference.mean.shape[-1]
        if n == box_size_px:
            return self
        resize = pad_centred if box_size_px > n else crop_centred
        reference = self.reference.each(lambda volume: ifft_map(resize(fft_map(volume), box_size_px, 3)))
        fsc = torch.nn.functional.pad(self.fsc, (0, box_size_px // 2 - n // 2))
        other = replace(self, reference=reference, fsc=fsc, sums=None)
        return other.with_poses(self.poses.in_box(box_size_px))


# Of the last few tensors, which are themselves the keys: a GPU is waited for once, and none of them is ever changed.
@lru_cache(maxsize=8)
def _resolution_shell(fsc: Float[Tensor, " shells"]) -> int:
    below = (fsc.cpu()[1:] < FSC_THRESHOLD).nonzero()
    return int(below[0]) if len(below) else len(fsc) - 1


@lru_cache(maxsize=8)
def _members_of_halves(
    half_set: Int[Tensor, " particles"], rows: Int[Tensor, " rows"] | None
) -> tuple[Int[Tensor, " first"], Int[Tensor, " second"]]:
    """Which particles, all or some of them, are in half set 1 and 2, in their order."""
    half = half_set if rows is None else half_set[rows]
    order = half.argsort(stable=True)
    before, first, second = torch.stack([half < 1, half == 1, half == 2]).sum(1).tolist()
    _, of_first, of_second = (order if rows is None else rows[order])[: before + first + second].split(
        [before, first, second]
    )
    return of_first, of_second


State = TypeVar("State")
Step = Generator[Event, None, State]


@runtime_checkable
class Checkpointer(Protocol):
    """Runs a named step, or restores its result: ``state = yield from checkpoint("consensus", step)``."""

    def __call__(self, name: str, step: Step[State]) -> Step[State]:
        """The step, with its result saved or restored."""


def no_checkpoints(name: str, step: Step[State]) -> Step[State]:
    """Run the step; nothing is saved."""
    del name
    return step
